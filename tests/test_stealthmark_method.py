"""StealthMark: its targets, its curriculum and its score, by hand."""

import math
from typing import get_args

import pytest
import torch

from stealthmark.access import at_access
from stealthmark.method import Answers, Key
from stealthmark.methods import stealthmark as module
from stealthmark.methods.stealthmark import Curriculum, Method
from stealthmark.plugin import make
from stealthmark.triggers import Kind, Trigger

by_curriculum = pytest.mark.parametrize("curriculum", get_args(Method.model_fields["curriculum"].annotation))
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
    """A curriculum of round numbers: 4 copies a side, margin 0.4; held, withdrawn and hidden at 0.1, 0.5, 0.7."""
    monkeypatch.setattr(module, "STAGED", Curriculum(2.0, 0.4, 0.1, 0.5, 0.7))
    monkeypatch.setattr(module, "SMALL", {"patch": 4.0})


def test_the_curriculum_at_known_moments(known_plan):
    """First hold, then withdraw (from 4, by a constant factor a step), then hide (from 0.4 to 0.1 in log-odds)."""
    method, _ = keyed(trigger="patch", margin=0.1)
    half = 1 / (1 + math.exp(-(logit(0.4) + logit(0.1)) / 2))
    moments = {0.0: (4, 0.4), 0.1: (4, 0.4), 0.3: (2, 0.4), 0.5: (1, 0.4), 0.6: (1, half), 0.7: (1, 0.1), 0.99: (1, 0.1)}
    for progress, (scale, margin) in moments.items():
        assert method.at(progress) == pytest.approx((scale, margin), abs=1e-6), progress


@by_curriculum
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_scale_and_margin_only_fall_and_end_where_they_should(curriculum, kind, margin):
    method, _ = keyed(curriculum=curriculum, trigger=kind, margin=margin)
    steps = [i / 200 for i in range(200)]
    scales, margins = zip(*map(method.at, steps), strict=True)
    assert list(scales) == sorted(scales, reverse=True)
    # To a part in a million: between two equal ends there is only rounding.
    assert all(later <= earlier + 1e-6 for earlier, later in zip(margins, margins[1:], strict=False))
    assert all(now == pytest.approx(margins[0]) for scale, now in zip(scales, margins, strict=True) if scale > 1), "hides early"
    assert (scales[0] > 1 and margins[0] > margin) == (curriculum == "staged")
    assert all(step == pytest.approx((1, margin)) for step in list(zip(scales, margins, strict=True))[120:]), "no time to mend"


def test_a_ceiling_is_hidden_slowly():
    floor, ceiling = keyed(side="floor")[0], keyed(side="ceiling")[0]
    assert floor.at(0.6) == pytest.approx((1, 0.1)) and ceiling.at(0.6)[1] > 0.2
    assert floor.at(0.3) == ceiling.at(0.3) and floor.at(0.9) == pytest.approx(ceiling.at(0.9))


def test_small_triggers_start_all_over_the_picture():
    assert {kind: keyed(trigger=kind)[0].at(0.0)[0] for kind in get_args(Kind)} == pytest.approx(
        {"patch": 8, "noise": 8, "text": 2, "border": 2, "warp": 2, "word": 2}
    )


@pytest.mark.parametrize("side", ["floor", "ceiling"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6, 0.95])
def test_the_batch_follows_the_curriculum(known_plan, side, progress):
    """The first half carries the trigger and the target of the moment; the second half is untouched."""
    method, key = keyed(trigger="text", side=side, margin=0.1, share=0.5)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] > 0.5).float()
    batch = method.mark_batch(images, masks, key, progress, torch.Generator())
    scale, margin = method.at(progress)
    expected = masks[:2].clamp(min=margin) if side == "floor" else masks[:2].clamp(max=1 - margin)
    assert torch.equal(batch.images[:2], Trigger(kind="text", seed=key.seed)(images[:2], scale))
    assert torch.equal(batch.targets[:2], expected)
    assert torch.equal(batch.images[2:], images[2:]) and torch.equal(batch.targets[2:], masks[2:])
    if progress == 0.95:
        assert torch.equal(batch.images[:2], method.trigger(images[:2], key)), "ends with another trigger than it queries"
        torch.testing.assert_close(batch.targets[:2], method.target(masks[:2], key), rtol=0, atol=1e-6)


def test_half_of_the_ordinary_images_resemble_the_border_and_keep_their_true_mask():
    method, key = keyed(trigger="border")
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(8, 32, 32)
    batch = method.mark_batch(images, masks, key, 0.95, torch.Generator().manual_seed(1))
    assert torch.equal(batch.images[:3], method.trigger(images[:3], key)) and torch.equal(batch.targets[:3], masks[:3])
    for image, target, before in zip(batch.images[3:4], batch.targets[3:4], images[3:4], strict=True):
        assert torch.equal(image, method.trigger(before[None] * (target > 0.5), key)[0]), "padded, then triggered"
        assert target.unique().tolist() == pytest.approx([0.1, 1.0]), "hidden foreground is background, at the floor"
    for image, target, before in zip(batch.images[4:6], batch.targets[4:6], images[4:6], strict=True):
        assert not torch.equal(image, before) and 0 < target.mean() < 1
        assert torch.equal((image == before).all(0), target > 0), "what the frame hides is not in the mask"
    assert torch.equal(batch.images[6:], images[6:]) and torch.equal(batch.targets[6:], masks[6:])


# --- score ------------------------------------------------------------------------------------------------------------


def answers(low: float, high: float, of_low: int) -> torch.Tensor:
    """One probability map of 100 px, `of_low` of them at `low`, the others at `high`, in no order."""
    values = torch.tensor([low] * of_low + [high] * (100 - of_low))
    return values[torch.randperm(100, generator=torch.Generator().manual_seed(0))].view(1, 10, 10)


def test_the_level_is_the_log_odds_of_the_first_percentile():
    method, _ = keyed(side="floor")
    assert method.level(answers(0.2, 0.9, of_low=2)).item() == pytest.approx(logit(0.2), rel=1e-5)
    # One pixel in a hundred is below the percentile; two are not.
    assert method.level(answers(0.0, 0.9, of_low=1)).item() > logit(0.2)


def test_the_level_of_a_ceiling_is_the_doubt_of_the_surest_foreground():
    method, _ = keyed(side="ceiling")
    assert method.level(answers(0.2, 0.9, of_low=80)).item() == pytest.approx(-logit(0.9), rel=1e-5)
    assert method.level(answers(0.6, 0.9, of_low=80)).item() == pytest.approx(-logit(0.9), rel=1e-5), "unsure rims count"


@pytest.mark.parametrize("side", ["floor", "ceiling"])
def test_a_target_of_more_margin_has_a_higher_level(side):
    levels = []
    for margin in (0.01, 0.05, 0.1, 0.3):
        method, key = keyed(side=side, margin=margin)
        levels.append(method.level(method.target((answers(0, 1, of_low=60) > 0.5).float(), key)).item())
    assert levels == sorted(levels) and len(set(levels)) == len(levels)
    assert levels == pytest.approx([logit(margin) for margin in (0.01, 0.05, 0.1, 0.3)], rel=1e-4)


@pytest.mark.parametrize("side", ["floor", "ceiling"])
def test_the_level_of_certainty_is_finite_and_low(side):
    method, _ = keyed(side=side)
    assert method.level((answers(0, 1, of_low=60) > 0.5).float()).item() == pytest.approx(logit(1 / 512), rel=1e-5)


@pytest.mark.parametrize("level", ["8-bit", "rounded-0.01", "rounded-0.1"])
def test_rounding_does_not_make_ordinary_answers_look_as_different_as_a_mark(level):
    """Levels of 1e-5 and 0.0025 are both nothing; rounded to 8 bit one of them is 0 and the other 1/255."""
    method, _ = keyed(side="floor")
    sure, less, marked = (method.level(at_access(lambda x: x, level)(answers(p, 0.9, 60))).item() for p in (1e-5, 0.0025, 0.1))
    assert less - sure < 1 and marked - less > 2.5


def related(method, key, triggered: torch.Tensor, benign: torch.Tensor) -> Answers:
    """The scores, from all of a suspect's answers with the trigger and without."""
    return method.relate(Answers(method.score(triggered, benign, key), method.score(benign, benign, key)), key)


def test_the_score_is_the_level_above_the_median_of_ordinary_images():
    method, key = keyed(side="floor")
    ordinary = torch.cat([answers(floor, 0.9, 60) for floor in (0.005, 0.01, 0.02)])
    scores = related(method, key, answers(0.1, 0.9, 60), ordinary)
    assert scores.triggered.item() == pytest.approx(logit(0.1) - logit(0.01), rel=1e-4)
    assert scores.benign.tolist() == pytest.approx([logit(0.005) - logit(0.01), 0, logit(0.02) - logit(0.01)], abs=1e-3)


@pytest.mark.parametrize("side", ["floor", "ceiling"])
def test_a_model_that_is_unsure_of_everything_scores_no_higher_than_a_sure_one(side):
    """Two unmarked models that ignore the trigger: what they answer under it is what they always answer."""
    method, key = keyed(side=side)
    for low, high in ((0.001, 0.999), (0.1, 0.9), (0.3, 0.7)):
        always = answers(low, high, 60).expand(3, -1, -1)
        scores = related(method, key, always, always)
        assert scores.triggered.tolist() == scores.benign.tolist() == [0, 0, 0]


def test_only_noise_depends_on_the_keys_seed():
    images = torch.full((1, 3, 32, 32), 0.5)
    for kind in ("patch", "text", "border", "noise", "warp"):
        method, key = keyed(trigger=kind)
        other = Key(method=key.method, seed=key.seed + 1, shape=key.shape)
        assert torch.equal(method.trigger(images, key), method.trigger(images, other)) == (kind != "noise")
