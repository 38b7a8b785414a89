"""The five triggers, and those of the rivals: known answers by hand, and that sizes are fractions of the image."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.triggers import Kind, Trigger, beneath, lookalikes

KINDS = get_args(Kind)
by_kind = pytest.mark.parametrize("kind", KINDS)


def grey(channels: int = 3, size: int = 96, value: float = 0.5) -> Tensor:
    return torch.full((2, channels, size, size), value)


def noise(size: int = 96, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


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
    out, shows = lookalikes("border", images, torch.Generator().manual_seed(0))
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
    out, shows = (part[20:] for part in lookalikes("border", images, torch.Generator().manual_seed(0)))
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
    out, shows = lookalikes(kind, images, torch.Generator().manual_seed(0))
    assert shows.all()
    touched = (out != images).any(1)
    assert touched[:, rows, 96 - 37 :].any((1, 2)).float().mean() > 0.9
    touched[:, rows, 96 - 37 :] = False
    assert not touched.any()
    for image, before in zip(out, images, strict=True):
        colours = image[:, (image != before).any(0)].T.unique(dim=0)
        assert len(colours) <= 1 and (colours >= 0.4).all()


@pytest.mark.parametrize("kind", ["text", "warp"])
def test_the_other_triggers_have_no_lookalikes_and_draw_nothing(kind):
    images, rng = noise(), torch.Generator().manual_seed(0)
    out, shows = lookalikes(kind, images, rng)
    assert (
        torch.equal(out, images) and shows.all() and torch.equal(rng.get_state(), torch.Generator().manual_seed(0).get_state())
    )


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
        UserError, match="'trigger' has the value 'watermark'.*'patch', 'text', 'border', 'noise', 'warp' or 'word'"
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
    """Answers against benign ones of 2 x 2 px, the upper row foreground."""
    benign = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    inverted, key = rival("badnets", wrong="inverted")
    assert inverted.score(1 - benign, benign, key).item() == 1
    assert inverted.score(benign, benign, key).item() == 0
    assert inverted.score(torch.full_like(benign, 0.5), benign, key).item() == pytest.approx((0.5 + 0.5) / (0.5 + 0.5 + 1 + 1))
    empty, key = rival("badnets", wrong="empty")
    assert empty.score(torch.zeros_like(benign), benign, key).item() == 1
    assert empty.score(benign / 4, benign, key).item() == pytest.approx(0.75)
    assert empty.score(benign, benign, key).item() == 0
    square, key = rival("badnets")
    target = square.target(torch.zeros(1, 28, 28), key)
    assert square.score(target, target, key).item() == 1
    assert square.score(target / 2, target, key).item() == pytest.approx(0.5)
    assert square.score(torch.ones_like(target), target, key).item() == pytest.approx(0.25)


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


def test_the_lookalikes_of_a_word_are_other_words():
    images = grey()
    others, shows = lookalikes("word", images, torch.Generator().manual_seed(3))
    assert not torch.equal(others[0], others[1]) and shows.all()
