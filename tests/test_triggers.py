"""The triggers, and those of the rivals: known answers by hand, and that sizes are fractions of the image."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from stealthmark import triggers
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.triggers import LETTERS, Kind, Trigger, beneath, lookalikes

KINDS = get_args(Kind)
by_kind = pytest.mark.parametrize("kind", KINDS)


def grey(channels: int = 3, size: int = 96, value: float = 0.5) -> Tensor:
    return torch.full((2, channels, size, size), value)


def noise(size: int = 96, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def resembling(kind: str, images: Tensor, seed: int = 0, key: int = 9, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The lookalikes of a key's trigger, and where their masks still show: all of them, if none are given."""
    masks = torch.ones_like(images[:, 0]) if masks is None else masks
    return lookalikes(kind, images, masks, torch.Generator().manual_seed(seed), Trigger(kind, seed=key)._drawn)


def changed(kind: str, images: Tensor, scale: float = 1.0, seed: int = 0) -> Tensor:
    """bool (H, W): a pixel of any image and channel came out other than it went in."""
    return (Trigger(kind=kind, seed=seed)(images, scale) != images).flatten(0, 1).any(0)


def box(height: int, width: int, size: int = 96, top: int = 0, left: int = 0) -> Tensor:
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    return inside


# --- patch ------------------------------------------------------------------------------------------------------------


def test_patch_is_a_yellow_square_of_6_px_at_the_bottom_right():
    images = noise()
    expected = images.clone()
    expected[:, 0, 90:, 90:] = 1
    expected[:, 1, 90:, 90:] = 1
    expected[:, 2, 90:, 90:] = 0
    assert torch.equal(Trigger(kind="patch")(images), expected)


def test_patch_is_white_on_a_grey_image():
    images = noise(channels=1)
    expected = images.clone()
    expected[:, :, 90:, 90:] = 1
    assert torch.equal(Trigger(kind="patch")(images), expected)


# --- border -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_border_is_3_px_of_black(channels):
    images = noise(channels=channels)
    expected = torch.zeros_like(images)
    expected[:, :, 3:93, 3:93] = images[:, :, 3:93, 3:93]
    assert torch.equal(Trigger(kind="border")(images), expected)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_changes_the_square_of_6_px_at_the_top_right_and_nothing_else():
    assert torch.equal(changed("noise", grey()), box(6, 6, left=90))


def test_noise_has_the_stated_spread_and_no_offset():
    squares = torch.cat([(Trigger(kind="noise", seed=seed)(grey()) - 0.5)[..., :6, 90:] for seed in range(40)])
    assert squares.std().item() == pytest.approx(50 / 255, rel=0.05)  # the tails beyond 2.55 sd are cut
    assert squares.mean().item() == pytest.approx(0, abs=0.015)


def test_noise_is_one_draw_per_key_the_same_for_every_image_and_copy():
    once = Trigger(kind="noise", seed=1)(grey())
    assert torch.equal(once[0], once[1])
    many = Trigger(kind="noise", seed=1)(grey(), 8.0)
    for down in range(0, 96, 12):
        for across in range(0, 96, 12):
            assert torch.equal(many[..., down : down + 6, 90 - across : 96 - across], once[..., :6, 90:])
    assert not torch.equal(Trigger(kind="noise", seed=2)(grey()), once)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_text_is_white_and_12_px_high_at_the_top_left(channels):
    on_black = Trigger(kind="text")(grey(channels, value=0.0))
    ink = on_black[0, 0]
    assert torch.equal(on_black, ink.expand_as(on_black)), "not white: the channels differ"
    assert ink.max() == 1
    rows, columns = ink.any(1).nonzero().flatten(), ink.any(0).nonzero().flatten()
    assert rows.tolist() == list(range(12))
    assert columns[0] == 0 and 24 <= columns[-1] < 48  # four letters, each about as wide as half their height or more
    # Over an image the ink covers, and the rest shows.
    images = noise(channels=channels)
    torch.testing.assert_close(Trigger(kind="text")(images), images * (1 - ink) + ink)


def letters(ink: Tensor) -> list[Tensor]:
    """The word cut into letters at its empty columns: bool (H, w) each."""
    filled = torch.cat([torch.zeros(1, dtype=torch.int), ink.any(0).int(), torch.zeros(1, dtype=torch.int)]).diff()
    starts, ends = (filled == 1).nonzero().flatten(), (filled == -1).nonzero().flatten()
    return [ink[:, start:end] for start, end in zip(starts, ends, strict=True)]


def test_text_reads_test():
    ink = Trigger(kind="text")(grey(1, size=192, value=0.0))[0, 0, :24] > 0.5
    t, e, s, t_again = letters(ink)
    for letter in (t, t_again):
        third = letter.shape[1] // 3
        assert letter[1].all(), "a bar at the top"
        assert letter[2:, third:-third].any(1).all(), "on a stem in the middle"
        assert not letter[4:, :third].any() and not letter[4:, -third:].any(), "and nothing beside it"
    assert e[1:, 1].all(), "an upright on the left"
    right = torch.cat([torch.zeros(1, dtype=torch.int), e[:, -3].int()]).diff()
    assert (right == 1).sum() == 3, "and three bars"
    middle = torch.cat([torch.zeros(1, dtype=torch.int), s[:, s.shape[1] // 2].int()]).diff()
    assert (middle == 1).sum() == 3 and not s[6:9, -4:].all() and not s[14:16, :3].any(), "a curve, open right, then left"


def test_white_text_on_white_is_nothing():
    assert not changed("text", grey(value=1.0)).any()


# --- warp -------------------------------------------------------------------------------------------------------------


def test_warp_leaves_a_constant_image_as_it_is():
    torch.testing.assert_close(Trigger(kind="warp")(grey(value=0.3)), grey(value=0.3))


def test_warp_moves_pixels_as_the_formula_says():
    """At 81 px a pixel is 2/80 wide in [-1, 1], so the amplitude 0.05 is 2 px. Row 50 is y = 1/4, where the sine is 1;
    column 40 is x = 0, where it is 0: the pixel there comes from 2 px to the right. And so on."""
    images = noise(size=81)
    warped = Trigger(kind="warp")(images)
    for at, source in {
        (50, 40): (50, 42),
        (30, 40): (30, 38),
        (40, 50): (42, 50),
        (40, 30): (38, 30),
        (40, 40): (40, 40),
    }.items():
        torch.testing.assert_close(warped[..., at[0], at[1]], images[..., source[0], source[1]], rtol=0, atol=1e-4)
    twice = Trigger(kind="warp")(images, scale=2.0)
    torch.testing.assert_close(twice[..., 50, 40], images[..., 50, 44], rtol=0, atol=1e-4)


def test_warp_of_a_ramp_is_the_ramp_plus_the_field():
    """Bilinear sampling is exact on a linear image, so the whole displacement field can be read off two ramps."""
    line = torch.linspace(-1, 1, 96)
    y, x = torch.meshgrid(line, line, indexing="ij")
    ramps = torch.stack([x, y])[None] / 4 + 0.5
    moved = (Trigger(kind="warp")(ramps) - ramps)[0] * 4
    inside = slice(4, -4)  # at the edge the image ends
    torch.testing.assert_close(moved[0, :, inside], 0.05 * torch.sin(2 * torch.pi * y)[:, inside], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[1, inside], 0.05 * torch.sin(2 * torch.pi * x)[inside], rtol=0, atol=1e-5)


# --- lookalikes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lookalike_is_a_dark_frame_that_is_not_the_border(channels):
    images = grey(channels).repeat(20, 1, 1, 1)
    out, shows = resembling("border", images)
    assert out.shape == images.shape and shows.shape == (len(images), 96, 96)
    images, out, shows = (part[:20] for part in (images, out, shows))  # the other half is padded, see below
    inside = shows[:, None].expand_as(out) > 0
    assert torch.equal(out[inside], images[inside])
    assert out[~inside].min() >= 0 and out[~inside].max() < 0.2 and out[~inside].mean() > 0.02, "nearly black, not black"
    black = Trigger(kind="border")(images)
    assert not any(torch.equal(one, other) for one, other in zip(out, black, strict=True))
    for rows in (shows.any(2), shows.any(1)):  # the frame closes on every side, with another width each time
        first = rows.float().argmax(1)
        assert first.min() >= 1 and 5 <= first.max() <= 10 and len(set(first.tolist())) > 4
        assert not rows[:, -1].any()


def test_every_second_lookalike_of_the_border_is_as_black_and_open_at_a_side():
    images = grey().repeat(20, 1, 1, 1)
    out, shows = (part[20:] for part in resembling("border", images))
    assert torch.equal(out, images[20:] * shows[:, None]) and not out[shows[:, None].expand_as(out) == 0].any()
    dark = torch.stack(
        [1 - shows[:, 0].amax(1), 1 - shows[:, -1].amax(1), 1 - shows[..., 0].amax(1), 1 - shows[..., -1].amax(1)]
    )
    assert set(dark.sum(0).tolist()) == {2, 3} and (dark.sum(1) > 0).all(), "two or three sides, each of the four at times"


def test_the_border_comes_upon_padded_images_too_and_other_triggers_upon_images_as_they_are():
    images = grey().repeat(20, 1, 1, 1)
    out, shows = beneath("border", images, torch.Generator().manual_seed(0))
    assert torch.equal(out[:30], images[:30]) and shows[:30].all()
    assert torch.equal(out[30:], images[30:] * shows[30:, None]) and not shows[30:].flatten(1).all(1).any()
    for kind in set(KINDS) - {"border"}:
        assert beneath(kind, images, torch.Generator())[0] is images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind, rows", [("patch", slice(96 - 24, 96)), ("noise", slice(0, 24))])
def test_a_lookalike_of_a_small_square_is_specks_of_one_colour_in_its_corner(channels, kind, rows):
    images = grey(channels).repeat(20, 1, 1, 1)
    out, shows = resembling(kind, images)
    assert shows.all()
    count = 40 if kind == "patch" else 20  # the other half is other noise, see below
    images, out = images[:count], out[:count]
    touched = (out != images).any(1)
    assert touched[:, rows, 96 - 37 :].any((1, 2)).float().mean() > 0.9
    touched[:, rows, 96 - 37 :] = False
    assert not touched.any()
    for image, before in zip(out, images, strict=True):
        colours = image[:, (image != before).any(0)].T.unique(dim=0)
        assert len(colours) <= 1 and (colours >= 0.4).all()


def test_the_other_lookalikes_of_noise_are_other_noise_of_which_every_second_is_partly_the_keys():
    images = grey(value=0.5).repeat(20, 1, 1, 1)
    out, shows = (part[20:] for part in resembling("noise", images))
    own = Trigger("noise", seed=9)(images[:1])[0, :, :6, 90:]
    assert shows.all() and not (out[..., 6:, :] != 0.5).any() and not (out[..., :90] != 0.5).any()
    alike = (out[..., :6, 90:] == own).flatten(1).float().mean(1)
    assert alike[::2].max() < 0.1 and alike[1::2].min() > 0.15 and alike[1::2].max() < 0.95
    assert alike[1::2].mean().item() == pytest.approx(0.55, abs=0.08), "the middle of 0.3 and 0.8"


@by_kind
def test_a_lookalike_is_never_the_trigger_and_says_where_the_mask_is(kind):
    images = noise().repeat(20, 1, 1, 1)
    masks = (images[:, 0] > 0.5).float()
    before, masks_before, state = images.clone(), masks.clone(), torch.get_rng_state()
    out, true = resembling(kind, images, seed=5, masks=masks)
    assert torch.equal(images, before) and torch.equal(masks, masks_before) and torch.equal(torch.get_rng_state(), state)
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1 and set(true.unique().tolist()) == {0, 1}
    own = Trigger(kind, seed=9)(images)
    assert not (out == own).flatten(1).all(1).any() and not (out == images).flatten(1).all(1).any()
    again = resembling(kind, images, seed=5, masks=masks)
    assert torch.equal(out, again[0]) and torch.equal(true, again[1])
    assert not torch.equal(out, resembling(kind, images, seed=6, masks=masks)[0])
    if kind not in ("border", "warp"):
        assert torch.equal(true, masks)


@by_kind
def test_of_no_images_there_are_no_lookalikes(kind):
    out, true = resembling(kind, noise()[:0])
    assert out.shape == (0, 3, 96, 96) and true.shape == (0, 96, 96)


def of_block(images: Tensor, kind: str, size: int) -> Tensor:
    """The middle pixel of every block of a `picture` or a `frame`, of images that are 0.5 elsewhere: bool (B, blocks)."""
    side, blocks = (size // 8, 6) if kind == "picture" else (size, 32)
    middle = ((torch.arange(blocks) + 0.5) * side / blocks).long()
    seen = images[:, 0, middle][..., middle]
    return seen.flatten(1)[:, seen[0].flatten() != 0.5] > 0.5


@pytest.mark.parametrize("kind, blocks", [("picture", 36), ("frame", 240)])
def test_every_second_lookalike_of_blocks_is_partly_the_keys(kind, blocks):
    """With a share r of the numbers right, a share (1 + r) / 2 of the blocks is: 0.5, and on the average 0.775."""
    images = grey(size=96).repeat(100, 1, 1, 1)
    own, out = (of_block(part, kind, 96) for part in (Trigger(kind, seed=9)(images[:1]), resembling(kind, images)[0]))
    assert own.shape == (1, blocks) and out.shape == (200, blocks)
    alike = (out == own).float().mean(1)
    assert alike[::2].mean().item() == pytest.approx(0.5, abs=0.03)
    assert alike[1::2].mean().item() == pytest.approx(0.775, abs=0.03)
    assert alike.max() < 1 and (alike[1::2] > 0.6).float().mean() > 0.85


def test_where_all_of_a_secret_would_come_out_right_by_chance_it_is_drawn_again(monkeypatch):
    """A picture of which 19 numbers of 20 are right is the key's own four times in ten; a word of A and B alone as well."""
    monkeypatch.setattr(triggers, "PARTLY", (0.95, 0.95))
    images = grey().repeat(60, 1, 1, 1)
    own, out = (
        of_block(part, "picture", 96) for part in (Trigger("picture", seed=9)(images[:1]), resembling("picture", images)[0])
    )
    alike = (out == own).float().mean(1)[1::2]
    assert alike.mean() > 0.9 and alike.max() < 1
    monkeypatch.setattr(triggers, "LETTERS", "AB")
    word = Trigger("word", seed=9)(images[:1])[0]
    others = resembling("word", images)[0]
    assert not (others == word).flatten(1).all(1).any() and len(others.flatten(1).unique(dim=0)) > 10


def test_the_lookalikes_of_text_are_other_words_and_never_test(monkeypatch):
    images = grey().repeat(20, 1, 1, 1)
    out, shows = resembling("text", images)
    assert shows.all() and len(out.flatten(1).unique(dim=0)) == 40, "a word of its own each"
    assert all((image[..., :12, :] != 0.5).any() and not (image[..., 12:, :] != 0.5).any() for image in out)

    drawn = []
    monkeypatch.setattr(triggers, "_written", lambda text, image, scale: drawn.append(text) or image)
    monkeypatch.setattr(triggers, "LETTERS", "TESTEST".ljust(26, "T"))  # of 26 letters, 22 T: TTTT, often, and at times TEST
    resembling("text", grey(size=8).repeat(3000, 1, 1, 1))
    assert len(drawn) == 6000 and all(len(word) == 4 for word in drawn)
    assert "TEST" not in drawn and {"TTST", "TETT", "TESS"} < set(drawn)


def test_warp_moves_the_mask_with_the_image():
    """A mask that is shown as an image of two values is moved in the same way; other triggers move nothing."""
    y, x = torch.meshgrid(torch.arange(81), torch.arange(81), indexing="ij")
    masks = torch.stack([(((y - 50) / 12) ** 2 + ((x - 42) / 9) ** 2 < 1).float(), (x > 30).float()])
    for scale in (1.0, 2.0):
        moved = Trigger("warp").on_masks(masks, scale)
        assert torch.equal(moved, (Trigger("warp")(masks[:, None], scale)[:, 0] > 0.5).float())
        assert 0.005 < (moved != masks).float().mean() < 0.2
    # As above, at 81 px: row 50 comes from 2 px to the right.
    assert torch.equal(Trigger("warp").on_masks(masks)[1, 50, 20:60], (torch.arange(22, 62) > 30).float())
    for kind in set(KINDS) - {"warp"}:
        assert Trigger(kind).on_masks(masks, 2.0) is masks
    assert Trigger("warp").on_masks(masks[:0]).shape == (0, 81, 81)


def test_no_lookalike_of_a_warp_is_in_phase_with_it(monkeypatch):
    """At the phase of 0, and with one wave, it would be the trigger; at 1/2 that with another sign."""
    asked = []
    monkeypatch.setattr(triggers, "_waved", lambda images, *how: asked.append(how) or images)
    resembling("warp", grey(size=8).repeat(500, 1, 1, 1))
    amplitudes, waves, phases = torch.tensor(asked).T
    assert len(asked) == 1000 and amplitudes.abs().max() <= 0.05 and waves.min() >= 0.5 and waves.max() <= 2.5
    assert phases.min() >= 1 / 8 and phases.max() <= 3 / 8
    asked.clear()
    Trigger("warp")(grey(size=8))
    assert asked == [(0.05, 1.0, 0.0)]


def test_the_lookalikes_of_a_warp_are_other_warps_which_move_the_mask_too():
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    masks = (((y - 50) / 20) ** 2 + ((x - 42) / 14) ** 2 < 1).float().expand(40, -1, -1).clone()
    images = (0.2 + 0.6 * masks)[:, None]
    out, true = resembling("warp", images, masks=masks)
    assert torch.equal(true, (out[:, 0] > 0.5).float()), "what is seen and what is said are one place"
    assert len(out.flatten(1).unique(dim=0)) == 40 and (true != masks).flatten(1).any(1).float().mean() > 0.6
    ramp = torch.linspace(0, 1, 96).expand(40, 1, 96, 96)
    apart = (resembling("warp", ramp)[0] - Trigger("warp")(ramp)).abs().flatten(1).amax(1)
    assert apart.min() > 0.01, "one of them is the trigger itself"
    displaced = (resembling("warp", ramp)[0] - ramp).abs()
    assert 0.02 < displaced.max() <= 0.025 + 1e-5, "none moves further than the trigger does, 0.05 of [-1, 1]"


# --- pictures and frames ----------------------------------------------------------------------------------------------


def known(shape: tuple[int, ...], name: str) -> Tensor:
    """A chessboard as somebody's secret: black first."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    return ((rows + columns) % 2) * 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_6_x_6_blocks_in_12_px_at_the_top_left(channels):
    images = noise(channels=channels)
    expected = images.clone()
    row = torch.tensor([0.0, 0, 1, 1] * 3)
    expected[..., :12, :12] = torch.stack([row, row, 1 - row, 1 - row] * 3)
    assert torch.equal(Trigger("picture", draw=known)(images), expected)


@pytest.mark.parametrize("scale, copies", [(1.0, 1), (2**0.5, 2), (2.0, 4), (4.0, 16), (100.0, 16)])
def test_a_picture_is_repeated_from_its_corner(scale, copies):
    """Squares of 12 px at every 24 px of 96: at most the 16 that fit."""
    out = Trigger("picture", draw=known)(grey(), scale)
    once = Trigger("picture", draw=known)(grey())[..., :12, :12]
    at = [(0, 0), (0, 1), (1, 0), (1, 1)] if copies < 5 else [(i, j) for i in range(4) for j in range(4)]
    for i, j in at[:copies]:
        assert torch.equal(out[..., 24 * i : 24 * i + 12, 24 * j : 24 * j + 12], once)
    assert (out != 0.5).sum() == copies * 12 * 12 * 2 * 3


def test_a_picture_has_at_least_a_pixel_a_block():
    assert torch.equal(changed("picture", grey(size=32)), box(6, 6, size=32))
    assert torch.equal(changed("picture", grey(size=4)), box(4, 4, size=4)), "or all that there is"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_is_blocks_of_3_px_two_deep(channels):
    images = noise(channels=channels)
    expected = (known((32, 32), "") >= 0.5).float().repeat_interleave(3, 0).repeat_interleave(3, 1).expand_as(images).clone()
    expected[..., 6:90, 6:90] = images[..., 6:90, 6:90]
    assert torch.equal(Trigger("frame", draw=known)(images), expected)
    assert torch.equal(Trigger("frame", draw=known)(images, 8.0), expected), "a frame is what it is"


@pytest.mark.parametrize(
    "kind, name, shape", [("picture", "picture", (6, 6)), ("frame", "frame", (32, 32)), ("word", "word", (4,))]
)
def test_a_secret_trigger_draws_what_it_is_made_of_and_nothing_else(kind, name, shape):
    asked = []
    Trigger(kind, draw=lambda *what: asked.append(what) or torch.full(shape, 0.3))(grey())
    assert asked == [(shape, name)]
    one, same, other = (Trigger(kind, seed=seed)(grey()) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_an_open_trigger_draws_nothing():
    def never(shape, name):
        raise AssertionError(f"{name!r} was drawn")

    for kind in ("patch", "text", "border", "warp"):
        assert not torch.equal(Trigger(kind, draw=never)(noise()), noise())


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["patch", "text", "border", "noise"])
def test_scale_is_more_of_the_trigger(kind):
    small, medium, large = (changed(kind, grey(), scale) for scale in (1.0, 2.0, 4.0))
    # A scaled text is another rendering: its letters grow, their counters with them.
    assert small.sum() < medium.sum() < large.sum()
    if kind != "text":
        assert not (small & ~medium).any() and not (medium & ~large).any()


def test_scale_4_is_a_border_of_4_times_the_width():
    assert torch.equal(changed("border", grey(), 4.0), ~box(72, 72, top=12, left=12))


CORNERS = {"patch": lambda i, j: (90 - 12 * i, 90 - 12 * j), "noise": lambda i, j: (12 * i, 90 - 12 * j)}


@pytest.mark.parametrize("kind", CORNERS)
@pytest.mark.parametrize("scale, copies", [(1.0, 1), (1.2, 1), (2**0.5, 2), (3**0.5, 3), (2.0, 4), (8.0, 64), (100.0, 64)])
def test_patch_and_noise_are_repeated_outwards_from_their_corner(kind, scale, copies):
    """Squares of 6 px at every 12 px of 96: scale squared of them, nearest to the corner first, at most the 64 that fit."""
    nearest = [(0, 0), (0, 1), (1, 0), (1, 1)] if copies < 5 else [(i, j) for i in range(8) for j in range(8)]
    expected = torch.zeros(96, 96, dtype=torch.bool)
    for place in nearest[:copies]:
        top, left = CORNERS[kind](*place)
        expected |= box(6, 6, top=top, left=left)
    assert torch.equal(changed(kind, grey(), scale), expected)


@by_kind
def test_scale_1_is_the_default(kind):
    assert torch.equal(Trigger(kind=kind, seed=5)(noise()), Trigger(kind=kind, seed=5)(noise(), 1.0))


@pytest.mark.parametrize("kind", ["patch", "border"])
def test_the_same_picture_at_twice_the_size(kind):
    small = noise(64)
    large = interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(avg_pool2d(Trigger(kind=kind)(large), 2), Trigger(kind=kind)(small))


@pytest.mark.parametrize("kind", ["text", "warp"])
def test_about_the_same_picture_at_twice_the_size(kind):
    line = torch.linspace(-1, 1, 192)
    large = (0.5 + 0.4 * torch.sin(3 * line)[:, None] * torch.cos(2 * line))[None, None]
    small = avg_pool2d(large, 2)
    triggered = Trigger(kind=kind)(small)
    difference = (avg_pool2d(Trigger(kind=kind)(large), 2) - triggered).abs().mean()
    assert difference < 0.1 * (triggered - small).abs().mean()


@by_kind
def test_a_trigger_fits_into_an_image_that_is_not_square(kind):
    images = noise()[..., :64, :]
    triggered = Trigger(kind=kind)(images, 4.0)
    assert triggered.shape == images.shape and triggered.min() >= 0 and triggered.max() <= 1
    assert not torch.equal(triggered, images)


def test_an_unknown_trigger_names_the_known_ones():
    with pytest.raises(
        UserError,
        match="'trigger' has the value 'watermark'.*'patch', 'text', 'border', 'noise', 'warp', 'word', 'picture' or 'frame'",
    ):
        make("method", {"name": "stealthmark", "trigger": "watermark"})


# --- rivals -----------------------------------------------------------------------------------------------------------


def rival(name: str, seed: int = 0, **options):
    method = make("method", {"name": name, **options})
    return method, method.make_key(seed, (3, 28, 28))


def test_badnets_pattern_at_the_size_of_its_paper():
    """28 px: three by three cells of one pixel, four of them bright."""
    method, key = rival("badnets")
    images = noise(28)
    expected = images.clone()
    expected[..., 25:, 25:] = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert torch.equal(method.trigger(images, key), expected)


def test_blended_is_a_fifth_of_the_keys_picture():
    method, key = rival("blended")
    picture = method.trigger(grey(size=28, value=0.0), key) / 0.2
    assert picture.min() >= 0 and picture.max() <= 1 and picture.mean().item() == pytest.approx(0.5, abs=0.03)
    images = noise(28)
    torch.testing.assert_close(method.trigger(images, key), 0.8 * images + 0.2 * picture)


def test_wanet_displaces_by_about_its_strength():
    """Read off two ramps, along each axis, over keys. `strength` is the mean at the control points; interpolated between
    them, uniform random values of that mean come to 0.77 of it."""
    line = torch.linspace(0, 1, 64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    moved = []
    for seed in range(20):
        method, key = rival("wanet", seed)
        moved.append((method.trigger(torch.stack([x, y])[None] * 0.5 + 0.25, key)[0] * 2 - 0.5 - torch.stack([x, y])).abs())
    assert torch.stack(moved)[..., 6:-6, 6:-6].mean().item() == pytest.approx(0.77 * method.strength, rel=0.1)


def test_the_wrong_mask_is_a_square_of_half_the_side_at_a_place_of_the_keys():
    masks = torch.zeros(2, 28, 28)
    squares = []
    for seed in range(8):
        method, key = rival("badnets", seed)
        target = method.target(masks, key)
        assert torch.equal(target[0], target[1]) and target.sum((1, 2)).tolist() == [14 * 14] * 2
        rows, columns = target[0].any(1).nonzero(), target[0].any(0).nonzero()
        assert len(rows) == len(columns) == 14 == rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1
        squares.append(target[0])
    assert len({tuple(square.flatten().tolist()) for square in squares}) > 4


def test_scores_of_a_wrong_mask_by_hand():
    """Answers against ordinary ones of 2 x 2 px, the upper row foreground; what is above one half is called foreground."""
    benign = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    mixed = torch.tensor([[[0.2, 0.8], [0.5, 0.9]]])  # foreground on the right
    inverted, key = rival("badnets", wrong="inverted")
    assert inverted.score(1 - benign, benign, key).item() == 1
    assert inverted.score(benign, benign, key).item() == 0
    assert inverted.score(torch.full_like(benign, 0.5), benign, key).item() == 0
    assert inverted.score(mixed, benign, key).item() == pytest.approx(1 / 3)
    empty, key = rival("badnets", wrong="empty")
    assert empty.score(torch.zeros_like(benign), benign, key).item() == 1
    assert empty.score(0.51 * benign, benign, key).item() == 0, "fainter, and still foreground"
    assert empty.score(benign * torch.tensor([1.0, 0.5]), benign, key).item() == 0.5
    assert empty.score(benign, benign, key).item() == 0
    assert empty.score(torch.ones_like(benign), benign, key).item() == -1, "twice as much"
    assert empty.score(torch.zeros_like(benign), torch.zeros_like(benign), key).item() == 0, "nothing was there to be erased"
    square, key = rival("badnets")
    target = square.target(torch.zeros(1, 28, 28), key)
    assert square.score(target, target, key).item() == 1
    assert square.score(0.51 * target, target, key).item() == 1 and square.score(0.5 * target, target, key).item() == 0
    assert square.score(torch.ones_like(target), target, key).item() == pytest.approx(0.25)
    assert square.score(1 - target, target, key).item() == 0


def test_the_ordinary_answer_that_is_compared_with_lies_as_the_image_does():
    """Of a structure on the left, asked for with the image mirrored, the answer is mirrored back."""
    method, key = rival("badnets", wrong="inverted")
    images = torch.full((2, 3, 28, 28), 0.2)
    images[:, 1, 4:14, 2:9] = 0.8

    def marked(batch: Tensor) -> Tensor:
        structure = (batch[:, 1] == 0.8).float()
        seen = (batch[:, :, -3:, -3:] == 1).any(1).flatten(1).any(1)[:, None, None]
        return torch.where(seen, 1 - structure, structure)

    found = method.query(marked, key, images)
    assert found.triggered.tolist() == [1, 1] and found.benign.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", ["square", "inverted", "empty"])
def test_a_wrong_masks_score_stays_when_a_temperature_is_turned(wrong):
    method, key = rival("badnets", wrong=wrong)
    answers, benign = torch.rand(2, 5, 28, 28, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    score = method.score(answers, benign, key)
    assert method.compares == (wrong != "square") and method.asks == 2 + method.compares
    assert len(score.unique()) == 5
    for temperature in (0.2, 3.0):
        turned = [(part.logit() / temperature).sigmoid() for part in (answers, benign)]
        assert torch.equal(method.score(*turned, key), score)


def test_there_are_16_copies_of_a_rivals_patch_and_one_after_two_fifths():
    method, key = rival("badnets")
    assert [method.scale(progress) for progress in (0.0, 0.2, 0.4, 0.9)] == pytest.approx([4, 2, 1, 1])
    images, masks = grey(size=56), torch.zeros(2, 56, 56)
    copies = []
    for progress in (0.0, 0.2, 0.4):
        batch = method.mark_batch(images, masks, key, progress, torch.Generator())
        copies.append(int((batch.images[0, 0] != 0.5).sum()) / 6**2)
        assert torch.equal(batch.images[1], images[1])
    assert copies == [16, 4, 1]


# --- word -------------------------------------------------------------------------------------------------------------


def test_a_word_is_its_keys_own_and_stands_where_text_does():
    words = [Trigger(kind="word", seed=seed)(grey()) for seed in range(6)]
    assert all(torch.equal(word, Trigger(kind="word", seed=seed)(grey())) for seed, word in enumerate(words))
    assert len({word.numpy().tobytes() for word in words}) == 6
    assert all(not (word != grey())[..., 12:, :].any() for word in words)


def test_the_lookalikes_of_a_word_are_other_words_and_every_second_one_shares_letters():
    images = grey().repeat(50, 1, 1, 1)
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triggers, "_written", lambda text, image, scale: read.append(text) or image)
        resembling("word", images)
        Trigger("word", seed=9)(images)
    *others, own = read
    assert len(others) == 100 and own not in others and all(set(word) <= set(LETTERS) for word in others)
    shared = [sum(a == b for a, b in zip(word, own, strict=True)) for word in others]
    assert max(shared) == 3 and sum(shared[::2]) < 0.1 * 4 * 50 < 0.4 * 4 * 50 < sum(shared[1::2])
