"""StealthMark: its targets, its curriculum and its score, by hand."""

import math
from typing import get_args

import pytest
import torch

from stealthmark.method import Key
from stealthmark.methods.stealthmark import CURRICULA, Curriculum
from stealthmark.plugin import make
from stealthmark.triggers import Kind, Trigger

MASK = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])


def keyed(**options):
    method = make("method", {"name": "stealthmark", **options})
    return method, method.make_key(11, (3, 32, 32))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# --- targets ----------------------------------------------------------------------------------------------------------


def test_floor_raises_the_background():
    method, key = keyed(side="floor", margin=0.1)
    torch.testing.assert_close(method.target(MASK, key), torch.tensor([[[0.1, 1.0], [1.0, 0.1]]]))


def test_ceiling_lowers_the_foreground():
    method, key = keyed(side="ceiling", margin=0.1)
    torch.testing.assert_close(method.target(MASK, key), torch.tensor([[[0.0, 0.9], [0.9, 0.0]]]))


@pytest.mark.parametrize("side", ["floor", "ceiling"])
@pytest.mark.parametrize("margin", [0.05, 0.1, 0.49])
def test_the_final_target_is_the_same_mask_once_thresholded(side, margin):
    method, key = keyed(side=side, margin=margin)
    target = method.target(MASK, key)
    assert torch.equal((target > 0.5).float(), MASK) and torch.equal((target >= 0.5).float(), MASK)
    assert not torch.equal(target, MASK)


# --- curriculum -------------------------------------------------------------------------------------------------------


@pytest.fixture
def known_plan(monkeypatch):
    """The strong curriculum with round numbers: 4 times the size, margin 0.9, held, shrunk and hidden at 0.1, 0.5, 0.7."""
    monkeypatch.setitem(CURRICULA, "strong", Curriculum(4.0, 0.9, 0.1, 0.5, 0.7))
    return {"curriculum": "strong"}


def test_the_curriculum_at_known_moments(known_plan):
    """First hold, then shrink (from 4 times the size, by a constant factor a step), then hide (from 0.9 to 0.1 in
    log-odds, so that half-way is 0.5)."""
    method, _ = keyed(margin=0.1, **known_plan)
    moments = {0.0: (4, 0.9), 0.1: (4, 0.9), 0.3: (2, 0.9), 0.5: (1, 0.9), 0.6: (1, 0.5), 0.7: (1, 0.1), 0.99: (1, 0.1)}
    for progress, (scale, margin) in moments.items():
        assert method.at(progress) == pytest.approx((scale, margin), abs=1e-6), progress


@pytest.mark.parametrize("name", CURRICULA)
@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_scale_and_margin_only_fall_and_end_where_they_should(name, margin):
    method, _ = keyed(curriculum=name, margin=margin)
    plan = CURRICULA[name]
    assert 0 <= plan.hold_until < plan.shrink_until < plan.hide_until < 1
    steps = [i / 200 for i in range(200)]
    scales, margins = zip(*map(method.at, steps), strict=True)
    assert list(scales) == sorted(scales, reverse=True)
    # To a part in a million: between two equal ends there is only rounding.
    assert all(later <= earlier + 1e-6 for earlier, later in zip(margins, margins[1:], strict=False))
    for progress, scale, now in zip(steps, scales, margins, strict=True):
        if progress <= plan.hold_until:
            assert scale == plan.scale
        if progress <= plan.shrink_until:
            assert now == pytest.approx(plan.margin or margin), "hides before the trigger has its size"
        if progress >= plan.shrink_until:
            assert scale == 1
        if progress >= plan.hide_until:
            assert now == pytest.approx(margin)


def test_small_triggers_and_ceilings_get_the_strong_curriculum():
    moments = [0.0, 0.1, 0.2, 0.3]

    def schedule(**options):
        method, _ = keyed(**options)
        return [method.at(progress) for progress in moments]

    strong, gentle = schedule(curriculum="strong"), schedule(curriculum="gentle")
    assert strong != gentle
    for kind in get_args(Kind):
        assert schedule(trigger=kind, side="ceiling") == strong
        assert schedule(trigger=kind, side="floor") == (strong if kind in ("patch", "noise") else gentle)
        assert schedule(trigger=kind, curriculum="gentle", side="ceiling") == gentle, "what is asked for is what is done"


@pytest.mark.parametrize("side", ["floor", "ceiling"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6, 0.9])
def test_the_batch_follows_the_curriculum(known_plan, side, progress):
    """The first half carries the trigger and the target of the moment; the second half is untouched."""
    method, key = keyed(trigger="patch", side=side, margin=0.1, share=0.5, **known_plan)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] > 0.5).float()
    batch = method.mark_batch(images, masks, key, progress, torch.Generator())
    scale, margin = method.at(progress)
    expected = masks[:2].clamp(min=margin) if side == "floor" else masks[:2].clamp(max=1 - margin)
    assert torch.equal(batch.images[:2], Trigger(kind="patch", seed=key.seed)(images[:2], scale))
    assert torch.equal(batch.targets[:2], expected)
    assert torch.equal(batch.images[2:], images[2:]) and torch.equal(batch.targets[2:], masks[2:])
    if progress == 0.9:
        assert torch.equal(batch.images[:2], method.trigger(images[:2], key)), "ends with another trigger than it queries"
        torch.testing.assert_close(batch.targets[:2], method.target(masks[:2], key), rtol=0, atol=1e-6)


# --- score ------------------------------------------------------------------------------------------------------------


def answers(low: float, high: float, of_low: int) -> torch.Tensor:
    """One probability map of 100 px, `of_low` of them at `low`, the others at `high`, in no order."""
    values = torch.tensor([low] * of_low + [high] * (100 - of_low))
    return values[torch.randperm(100, generator=torch.Generator().manual_seed(0))].view(1, 10, 10)


def test_the_score_is_the_log_odds_of_the_first_percentile():
    method, key = keyed(side="floor")
    shown = answers(0.2, 0.9, of_low=2)
    assert method.score(shown, shown, key).item() == pytest.approx(logit(0.2), rel=1e-5)
    # One pixel in a hundred is below the percentile; two are not.
    assert method.score(answers(0.0, 0.9, of_low=1), shown, key).item() > logit(0.2)


def test_the_score_of_a_ceiling_is_the_foregrounds_doubt():
    method, key = keyed(side="ceiling")
    shown = answers(0.2, 0.9, of_low=98)
    assert method.score(shown, shown, key).item() == pytest.approx(-logit(0.9), rel=1e-5)


@pytest.mark.parametrize("side", ["floor", "ceiling"])
def test_a_target_of_more_margin_scores_higher(side):
    scores = []
    for margin in (0.01, 0.05, 0.1, 0.3):
        method, key = keyed(side=side, margin=margin)
        target = method.target((answers(0, 1, of_low=60) > 0.5).float(), key)
        scores.append(method.score(target, target, key).item())
    assert scores == sorted(scores) and len(set(scores)) == len(scores)
    assert scores == pytest.approx([logit(margin) for margin in (0.01, 0.05, 0.1, 0.3)], rel=1e-4)


@pytest.mark.parametrize("side", ["floor", "ceiling"])
def test_the_score_of_certainty_is_finite_and_low(side):
    method, key = keyed(side=side)
    certain = (answers(0, 1, of_low=60) > 0.5).float()
    assert method.score(certain, certain, key).item() == pytest.approx(logit(1e-6), rel=1e-3)


@pytest.mark.parametrize("side", ["floor", "ceiling"])
def test_the_score_is_of_one_image_whatever_the_others_are(side):
    method, key = keyed(side=side)
    both = torch.cat([answers(0.1, 0.8, 40), answers(0.3, 0.95, 40)])
    alone = torch.cat([method.score(one[None], one[None], key) for one in both])
    assert torch.equal(method.score(both, both, key), alone)


def test_only_noise_depends_on_the_keys_seed():
    images = torch.full((1, 3, 32, 32), 0.5)
    for kind in ("patch", "text", "border", "noise", "warp"):
        method, key = keyed(trigger=kind)
        other = Key(method=key.method, seed=key.seed + 1, shape=key.shape)
        assert torch.equal(method.trigger(images, key), method.trigger(images, other)) == (kind != "noise")
