"""Attacks that wrap a model: what each does to images or answers, computed by hand."""

import itertools

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from stealthmark import metrics
from stealthmark.attack import Wrap, wrapped
from stealthmark.errors import UserError
from stealthmark.plugin import make

#: Wrappers that change answers alone, and no label at 0.5; a strength of each that moves the map far.
KNOBS = [("temperature", 0.5), ("temperature", 2.0), ("temperature", 50.0)]
KNOBS += [("quantile-shift", 0.002), ("quantile-shift", 0.3), ("random-floor", 0.08), ("random-floor", 0.49)]
by_knob = pytest.mark.parametrize("name, strength", KNOBS)


def answered(name: str, strength: float, p: Tensor, seed: int = 0) -> Tensor:
    """What the wrapper makes of a model that answers `p`, float (B, H, W)."""
    images = torch.zeros(len(p), 1, *p.shape[1:])
    attack = make("attack", {"name": name, "strengths": [strength]})
    return attack.answer(lambda asked: p.clone(), images, strength, torch.Generator().manual_seed(seed))


def asked(name: str, strength: float, images: Tensor, seed: int = 0) -> Tensor:
    """The images that the model behind the wrapper is asked with, once."""
    seen: list[Tensor] = []
    attack = make("attack", {"name": name, "strengths": [strength]})
    attack.answer(lambda x: seen.append(x) or x[:, 0], images, strength, torch.Generator().manual_seed(seed))
    (once,) = seen
    return once


def maps(n: int = 5, size: int = 24, seed: int = 0) -> Tensor:
    """Answers as networks give them: mostly sure, and among them both ends and both neighbours of one half."""
    logits = 6 * torch.randn(n, size, size, generator=torch.Generator().manual_seed(seed)) - 2
    p = logits.sigmoid()
    half, one = torch.tensor(0.5), torch.tensor(1.0)
    p[:, 0, :7] = torch.stack([0 * one, one, half, half.nextafter(one), half.nextafter(0 * one), one * 1e-30, one * 1e-6])
    return p


# --- answers ----------------------------------------------------------------------------------------------------------


@by_knob
def test_a_knob_keeps_every_label_and_the_order_of_pixels(name, strength):
    p = maps()
    changed = answered(name, strength, p)
    assert not torch.allclose(changed, p, atol=1e-3)
    assert torch.equal(changed > 0.5, p > 0.5) and torch.equal(changed < 0.5, p < 0.5)
    in_order = changed.flatten(1).gather(1, p.flatten(1).argsort(1))
    assert (in_order.diff(dim=1) >= 0).all()


@by_knob
def test_a_knob_leaves_dice_at_one_half_as_it_was(name, strength):
    p, masks = maps(), maps(seed=1).numpy() > 0.5
    before, after = (metrics.dice(metrics.counts(x.numpy() > 0.5, masks)) for x in (p, answered(name, strength, p)))
    assert np.array_equal(before, after) and 0 < before.mean() < 1


@by_knob
def test_a_knob_asks_with_the_very_images(name, strength):
    images = tiny.pictures(2, 3, 12, 8)
    assert torch.equal(asked(name, strength, images), images)


def test_temperature_by_hand():
    p = torch.tensor([[[0.5, 0.9, 0.1, 0.8]]])
    # Odds of 9 and 4: squared at T = 0.5, their roots at T = 2.
    torch.testing.assert_close(answered("temperature", 0.5, p), torch.tensor([[[0.5, 81 / 82, 1 / 82, 16 / 17]]]))
    torch.testing.assert_close(answered("temperature", 2.0, p), torch.tensor([[[0.5, 0.75, 0.25, 2 / 3]]]))


def test_temperatures_multiply():
    p = maps().clamp(0.01, 0.99)  # nearer to the ends, what is between the two is rounded
    for one, other in ((2.0, 1.5), (0.5, 2.0), (0.8, 3.0)):
        twice = answered("temperature", other, answered("temperature", one, p))
        torch.testing.assert_close(twice, answered("temperature", one * other, p), rtol=0, atol=1e-5)
    torch.testing.assert_close(answered("temperature", 1.0, p), p, rtol=0, atol=1e-6)


def test_quantile_shift_by_hand():
    """200 pixels: two of them are 1 %, so that the quantile is the second smallest."""
    p = torch.full((1, 10, 20), 0.6)
    p[0, 0, :5] = torch.tensor([0.1, 0.05, 0.3, 0.5, 0.2])
    shifted = answered("quantile-shift", 0.02, p)
    # [0, 0.1] becomes [0, 0.02], and [0.1, 0.5] becomes [0.02, 0.5], 1.2 times as long.
    expected = torch.tensor([0.02, 0.01, 0.02 + 0.2 * 1.2, 0.5, 0.02 + 0.1 * 1.2])
    torch.testing.assert_close(shifted[0, 0, :5], expected)
    assert torch.equal(shifted[0, 1:], p[0, 1:]), "what is not below one half was changed"


def test_after_a_quantile_shift_all_maps_have_one_level():
    """Raised or not, exactly zero or not."""
    raised = [maps(1, 20).clamp(min=level) for level in (0.0, 0.01, 0.1, 0.3)]
    dark = torch.zeros(1, 20, 20)
    for p in (*raised, dark):
        fourth = answered("quantile-shift", 0.002, p).flatten().sort().values[3]  # of 400
        assert fourth.item() == pytest.approx(0.002)
    assert (answered("quantile-shift", 0.002, dark) == torch.tensor(0.002)).all()


@pytest.mark.parametrize("value", [0.5, 0.7, 1.0])
def test_a_quantile_of_one_half_or_more_is_not_moved(value):
    p = torch.full((1, 10, 20), value)
    p[0, 0, 0] = 0.2  # one of 200: below 1 %
    assert torch.equal(answered("quantile-shift", 0.002, p), p)


def test_a_random_floor_is_one_level_an_image_and_never_above_its_strength():
    p = maps(n=300, size=8)
    raised = answered("random-floor", 0.08, p)
    levels = raised.amin((1, 2))
    assert torch.equal(raised, p.maximum(levels.view(-1, 1, 1)))
    assert levels.min() >= 0 and levels.max() <= 0.08
    # Uniform: of 300 the mean is 0.04 with a standard error of 0.0013, and three quarters lie above 0.02.
    assert levels.mean().item() == pytest.approx(0.04, abs=0.006)
    assert (levels > 0.02).double().mean().item() == pytest.approx(0.75, abs=0.1)
    assert not torch.equal(levels, answered("random-floor", 0.08, p, seed=1).amin((1, 2)))


def test_a_random_floor_is_drawn_anew_for_another_query():
    attack = make("attack", {"name": "random-floor"})
    behind = wrapped(lambda images: torch.zeros(len(images), 4, 4), Wrap(attack.options(), 0.08, 3))
    one, other = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert torch.equal(behind(one), behind(one)) and not torch.equal(behind(one), behind(other))


# --- images -----------------------------------------------------------------------------------------------------------


def test_the_median_of_nine_by_hand():
    image = torch.tensor([[0.1, 0.2, 0.3], [0.4, 1.0, 0.6], [0.7, 0.8, 0.9]])[None, None]
    seen = asked("median", 1 / 32, image)
    assert seen[0, 0, 1, 1] == torch.tensor(0.6)
    # In the corner, with the edge repeated: 0.1 four times, 0.2 and 0.4 twice, 1.0 once.
    assert seen[0, 0, 0, 0] == torch.tensor(0.2)


def test_a_median_removes_specks_and_keeps_channels_and_images_apart():
    images = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).repeat(1, 3, 16, 16) * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    specked = images.clone()
    specked[:, :, 4::6, 4::6] = 1.0
    assert torch.equal(asked("median", 1 / 32, specked), images)


@pytest.mark.parametrize("shape, side", [((64, 64), 3), ((96, 96), 3), ((32, 200), 3), ((512, 600), 17), ((160, 128), 5)])
def test_the_side_of_the_median_is_odd_and_grows_with_the_image(shape, side):
    """Half a line of `side` and one pixel more survives the filter along it; one pixel less does not."""
    half = side // 2
    for length, survives in ((half + 1, True), (half, False)):
        image = torch.zeros(1, 1, *shape)
        image[..., 20 : 20 + length] = 1.0  # a band from top to bottom
        assert (asked("median", 1 / 32, image).max() == 1) == survives


def test_a_blur_of_a_point_is_gaussian_and_keeps_its_sum():
    image = torch.zeros(1, 1, 64, 96)
    image[0, 0, 32, 48] = 1.0
    seen = asked("blur", 1 / 32, image)[0, 0].double()  # 2 px
    assert seen.sum().item() == pytest.approx(1, abs=1e-5)
    for off in (1, 2, 3):
        for there in (seen[32 + off, 48], seen[32, 48 - off]):
            assert (there / seen[32, 48]).item() == pytest.approx(np.exp(-(off**2) / 8), rel=1e-4)


def test_a_blur_leaves_a_plain_image_as_it_is_up_to_its_edge():
    images = torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1).repeat(1, 3, 20, 30)
    torch.testing.assert_close(asked("blur", 0.2, images), images)


def test_bit_depth_by_hand():
    values = torch.tensor([0.0, 0.05, 0.2, 0.5, 0.52, 0.9, 1.0]).view(1, 1, 1, 7)
    # 3 bits are the 8 shades 0, 1/7, ..., 1; 0.5 is 3.5 of them, and goes to the even neighbour.
    expected = torch.tensor([0, 0, 1, 4, 4, 6, 7]).view(1, 1, 1, 7) / 7
    torch.testing.assert_close(asked("bit-depth", 5.0, values), expected)
    images = tiny.pictures(2, 3, 40)
    assert [len(asked("bit-depth", removed, images).unique()) for removed in (3.0, 4.0, 5.0)] == [32, 16, 8]


def test_resizing_loses_what_is_fine_and_keeps_what_is_coarse():
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float()[None, None]
    seen = asked("resize", 2.0, board)
    torch.testing.assert_close(seen[..., 4:-4, 4:-4], torch.full((1, 1, 8, 8), 0.5))
    ramp = torch.linspace(0.2, 0.8, 32).expand(1, 3, 32, 32)
    torch.testing.assert_close(asked("resize", 2.0, ramp)[..., 4:-4], ramp[..., 4:-4], rtol=0, atol=1e-5)


def test_what_is_cropped_is_the_margin_and_it_is_answered_with_background():
    """A margin of 2 of 20 px at each side; the model says what it sees, and all that it sees is bright."""
    image = torch.zeros(1, 3, 20, 20)
    image[..., 2:-2, 2:-2] = 0.8
    attack = make("attack", {"name": "crop"})
    torch.testing.assert_close(asked("crop", 0.1, image), torch.full_like(image, 0.8))
    answers = attack.answer(lambda images: images[:, 0], image, 0.1, torch.Generator())
    torch.testing.assert_close(answers, image[:, 0])


def test_what_a_cropped_image_shows_comes_back_in_its_own_place():
    ramp = torch.linspace(0.1, 0.9, 60).expand(1, 1, 40, 60)
    answers = make("attack", {"name": "crop"}).answer(lambda images: images[:, 0], ramp, 0.1, torch.Generator())
    torch.testing.assert_close(answers[:, 4:-4, 10:-10], ramp[:, 0, 4:-4, 10:-10], rtol=0, atol=2e-3)
    answers[:, 4:-4, 6:-6] = 0
    assert not answers.any(), "the margin, 4 px of the height and 6 of the width, is background"


def test_a_border_strip_is_the_mirrored_inside():
    row = torch.arange(10.0).expand(1, 1, 10, 10) / 10
    seen = asked("border-strip", 0.3, row)[0, 0]
    assert torch.equal(seen, torch.tensor([5, 4, 3, 3, 4, 5, 6, 6, 5, 4]).expand(10, 10) / 10)
    assert torch.equal(asked("border-strip", 0.3, row.mT)[0, 0], seen.mT)


@pytest.mark.parametrize("shape, wide", [((64, 64), 9), ((96, 96), 14), ((64, 128), 9)])
def test_nothing_of_the_border_reaches_the_model(shape, wide):
    """9/64 of the short side, and not a pixel more."""
    images = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    marked = images.clone()
    for side in (np.s_[..., :wide, :], np.s_[..., -wide:, :], np.s_[..., :wide], np.s_[..., -wide:]):
        marked[side] = 0.0
    seen = asked("border-strip", 9 / 64, images)
    assert torch.equal(asked("border-strip", 9 / 64, marked), seen)
    inside = np.s_[..., wide:-wide, wide:-wide]
    assert torch.equal(seen[inside], images[inside])
    assert torch.equal(seen[..., wide - 1, wide:-wide], images[..., wide, wide:-wide])


def test_a_strip_as_wide_as_the_image_leaves_its_middle():
    line = torch.arange(5.0).view(1, 1, 1, 5) / 5  # one pixel high: the strip is one wide
    assert torch.equal(asked("border-strip", 0.49, line), torch.tensor([1, 1, 2, 3, 3]).view(1, 1, 1, 5) / 5)
    images = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(asked("border-strip", 0.49, images), images[..., 2:3, 2:3].expand(1, 1, 5, 5))


def test_noise_on_images_has_the_stated_deviation_and_is_drawn_anew():
    images = torch.full((2, 3, 64, 64), 0.5)
    noise = asked("input-noise", 0.05, images) - images
    assert noise.std().item() == pytest.approx(0.05, rel=0.03) and noise.mean().item() == pytest.approx(0, abs=2e-3)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, asked("input-noise", 0.05, images, seed=1) - images)


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG = {
    "temperature": ([100.0], "temperatures, above 0 and below 100"),
    "quantile-shift": ([0.5], "levels of the background, above 0 and below 0.5"),
    "random-floor": ([0.5, 0.7], "levels of the background, above 0 and below 0.5"),
    "median": ([3.0], "fractions of the short side, above 0 and below 0.5"),
    "blur": ([1.0], "fractions of the short side, above 0 and below 0.5"),
    "bit-depth": ([8.0, 2.5], "how many of 8 bits are removed: whole numbers from 1 to 7"),
    "resize": ([1.0, 0.5], "factors by which a side shrinks, above 1 and below 100"),
    "crop": ([0.5], "fractions of a side, above 0 and below 0.5"),
    "border-strip": ([9.0], "fractions of the short side, above 0 and below 0.5"),
    "input-noise": ([1.0, 12.0], r"standard deviations of values in \[0, 1\], above 0 and below 1"),
    "quantise": ([15.0, 31.0, 24.5], "how many of 32 bits are removed: whole numbers from 16 to 30"),
    "weight-noise": ([10.0], "fractions of the weights' standard deviation, above 0 and below 10"),
}


@pytest.mark.parametrize("name, strength", [*itertools.chain(*([(n, s) for s in given] for n, (given, _) in WRONG.items()))])
def test_a_strength_that_is_none_is_refused_with_what_is_allowed(name, strength):
    with pytest.raises(UserError, match=f"'strengths' has the value .*: strengths are {WRONG[name][1]}"):
        make("attack", {"name": name, "strengths": [strength]})
