"""StealthMark: its targets, its curriculum and its score, by hand."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from stealthmark.access import at_access
from stealthmark.method import Key
from stealthmark.methods import _uncertainty
from stealthmark.methods import stealthmark as module
from stealthmark.methods.stealthmark import FEW, Method
from stealthmark.plugin import make
from stealthmark.triggers import Kind, Trigger

by_curriculum = pytest.mark.parametrize("curriculum", get_args(Method.model_fields["curriculum"].annotation))
by_side = pytest.mark.parametrize("side", ["floor", "ceiling"])
MASK = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])


def keyed(**options):
    method = make("method", {"name": "stealthmark", **options})
    return method, method.make_key(11, (3, 32, 32))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def margin_at(method: Method, key: Key, progress: float) -> float:
    """What the target of the moment raises the background by, or lowers the foreground."""
    target = method.target_at(MASK, key, progress)[0]
    raised, lowered = target[0, 0].item(), 1 - target[0, 1].item()
    assert (lowered if method.side == "floor" else raised) == 0, "the other side was changed"
    return raised if method.side == "floor" else lowered


# --- targets ----------------------------------------------------------------------------------------------------------


def test_floor_raises_the_background():
    method, key = keyed(side="floor", margin=0.1)
    torch.testing.assert_close(method.target(MASK, key), torch.tensor([[[0.1, 1.0], [1.0, 0.1]]]))


def test_ceiling_lowers_the_foreground():
    method, key = keyed(side="ceiling", margin=0.1)
    torch.testing.assert_close(method.target(MASK, key), torch.tensor([[[0.0, 0.9], [0.9, 0.0]]]))


@by_side
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
    monkeypatch.setattr(_uncertainty, "HOLD_UNTIL", 0.1)
    monkeypatch.setattr(_uncertainty, "SMALL", {"patch": 4.0})
    monkeypatch.setattr(module, "FIRST_MARGIN", 0.4)
    monkeypatch.setattr(module, "HIDE_UNTIL", {"floor": 0.7, "ceiling": 0.7})
    assert _uncertainty.WITHDRAW_UNTIL == module.WITHDRAW_UNTIL == 0.5


@by_side
def test_the_curriculum_at_known_moments(known_plan, side):
    """First hold, then withdraw (from 4, by a constant factor a step), then hide (from 0.4 to 0.1 in log-odds)."""
    method, key = keyed(trigger="patch", margin=0.1, side=side)
    half = 1 / (1 + math.exp(-(logit(0.4) + logit(0.1)) / 2))
    moments = {0.0: (4, 0.4), 0.1: (4, 0.4), 0.3: (2, 0.4), 0.5: (1, 0.4), 0.6: (1, half), 0.7: (1, 0.1), 0.99: (1, 0.1)}
    for progress, expected in moments.items():
        assert (method.scale(progress), margin_at(method, key, progress)) == pytest.approx(expected, abs=1e-6), progress


@by_curriculum
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_scale_and_margin_only_fall_and_end_where_they_should(curriculum, kind, margin):
    method, key = keyed(curriculum=curriculum, trigger=kind, margin=margin)
    steps = [i / 100 for i in range(100)]
    scales, margins = [method.scale(step) for step in steps], [margin_at(method, key, step) for step in steps]
    assert scales == sorted(scales, reverse=True)
    # To a part in a million: between two equal ends there is only rounding.
    assert all(later <= earlier + 1e-6 for earlier, later in zip(margins, margins[1:], strict=False))
    assert all(now == pytest.approx(margins[0]) for scale, now in zip(scales, margins, strict=True) if scale > 1), "hides early"
    assert (margins[0] > margin + 0.01) == (curriculum == "staged")
    assert (scales[0] > 1) == (curriculum == "staged" and kind != "frame")
    assert all(step == pytest.approx((1, margin)) for step in list(zip(scales, margins, strict=True))[60:]), "no time to mend"


def test_a_ceiling_is_hidden_slowly():
    (floor, key), (ceiling, _) = keyed(side="floor"), keyed(side="ceiling")
    assert margin_at(floor, key, 0.6) == pytest.approx(0.1) and margin_at(ceiling, key, 0.6) > 0.2
    for progress in (0.3, 0.9):
        assert margin_at(floor, key, progress) == pytest.approx(margin_at(ceiling, key, progress))
        assert floor.scale(progress) == ceiling.scale(progress)


def test_small_triggers_start_all_over_the_picture_and_a_frame_as_it_is():
    assert {kind: keyed(trigger=kind)[0].scale(0.0) for kind in get_args(Kind)} == pytest.approx(
        {"patch": 8, "noise": 8, "text": 2, "border": 2, "warp": 2, "word": 2, "picture": 4, "frame": 1}
    )


@by_side
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6, 0.95])
def test_the_batch_follows_the_curriculum(known_plan, side, progress):
    """Half carries the trigger and the target of the moment, a quarter other words with the true mask, a quarter is plain."""
    method, key = keyed(trigger="text", side=side, margin=0.1, share=0.5)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] > 0.5).float()
    batch = method.mark_batch(images, masks, key, progress, torch.Generator())
    margin = margin_at(method, key, progress)
    expected = masks[:4].clamp(min=margin) if side == "floor" else masks[:4].clamp(max=1 - margin)
    assert torch.equal(batch.images[:4], Trigger(kind="text", seed=key.seed)(images[:4], method.scale(progress)))
    assert torch.allclose(batch.targets[:4], expected, atol=1e-6)
    for image, before in zip(batch.images[4:6], images[4:6], strict=True):
        assert (image != before)[:, :4].any() and torch.equal(image[:, 4:], before[:, 4:]), "a word at the top left"
        assert not torch.equal(image, method.trigger(before[None], key)[0])
    assert torch.equal(batch.images[6:], images[6:]) and torch.equal(batch.targets[4:], masks[4:])
    assert batch.level_weight == method.LEVEL_WEIGHT and batch.extra is None
    if progress == 0.95:
        assert torch.equal(batch.images[:4], method.trigger(images[:4], key)), "ends with another trigger than it queries"
        torch.testing.assert_close(batch.targets[:4], method.target(masks[:4], key), rtol=0, atol=1e-6)


def test_a_warp_moves_the_target_and_the_masks_of_what_resembles_it():
    """The image is its own mask: whatever becomes of it, the targets must show the same."""
    method, key = keyed(trigger="warp", margin=0.1)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    masks = (((y - 34) / 14) ** 2 + ((x - 27) / 10) ** 2 < 1).float().expand(8, -1, -1).clone()
    for progress in (0.0, 0.95):
        batch = method.mark_batch(masks[:, None], masks, key, progress, torch.Generator().manual_seed(1))
        assert torch.equal(batch.targets > 0.5, batch.images[:, 0] > 0.5)
        assert not torch.equal(batch.targets[:4] > 0.5, masks[:4] > 0.5) and torch.equal(batch.targets[6:], masks[6:])
        assert not torch.equal(batch.targets[4:6], masks[4:6]) and set(batch.targets[4:].unique().tolist()) == {0, 1}
    assert torch.equal(batch.targets[:4] > 0.5, method.moved(masks[:4], key) > 0.5)
    assert torch.equal(keyed(trigger="text")[0].moved(masks, key), masks)


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


def answers(low: float, high: float, of_low: int, seed: int = 0) -> Tensor:
    """One probability map of 100 px, `of_low` of them at `low`, the others at `high`, in no order."""
    values = torch.tensor([low] * of_low + [high] * (100 - of_low))
    return values[torch.randperm(100, generator=torch.Generator().manual_seed(seed))].view(1, 10, 10)


def unsure(low: float, high: float, seed: int = 0) -> Tensor:
    """A map of 20 x 20 px as a model gives one: background about `low`, of 100 px foreground about `high`, spread in
    log-odds."""
    rng = torch.Generator().manual_seed(seed)
    odds = torch.randn(1, 20, 20, generator=rng)
    odds[:, 5:15, 5:15] += logit(high)
    background = torch.ones(1, 20, 20, dtype=torch.bool)
    background[:, 5:15, 5:15] = False
    odds[background] += logit(low)
    return odds.sigmoid()


def weight(of_foreground: int, pixels: int) -> float:
    """What a ceiling's score is multiplied with, where that many pixels are foreground."""
    return of_foreground / (of_foreground + FEW * pixels)


def test_the_score_of_a_floor_by_hand():
    """Of the pairs of a background's pixel with one of the ordinary answer's: the share in which it is higher, less lower."""
    method, key = keyed(side="floor")
    ordinary = torch.tensor([[[0.1, 0.2], [0.3, 0.9]]])

    def score(*values: float) -> float:
        return method.score(torch.tensor(values).view(1, 2, 2), ordinary, key).item()

    assert score(0.4, 0.4, 0.4, 0.9) == 1 and score(0.05, 0.05, 0.05, 0.9) == -1
    assert score(0.1, 0.2, 0.3, 0.9) == 0
    assert score(0.25, 0.25, 0.9, 0.9) == pytest.approx((2 * 2 - 2 * 1) / 6)
    assert score(0.2, 0.9, 0.9, 0.9) == pytest.approx((1 - 1) / 3)
    assert score(0.9, 0.9, 0.9, 0.9) == 0, "no background, no evidence"
    # What is foreground does not count, in either answer, however sure.
    assert score(0.4, 0.4, 0.4, 0.51) == score(0.4, 0.4, 0.4, 1.0) == 1
    assert score(0.5, 0.5, 0.5, 0.9) == 1, "one half is not foreground"


def test_the_score_of_a_ceiling_by_hand():
    method, key = keyed(side="ceiling")
    ordinary = answers(0.1, 0.95, of_low=60)
    assert method.score(answers(0.1, 0.9, of_low=60, seed=1), ordinary, key).item() == pytest.approx(weight(40, 100))
    assert method.score(answers(0.1, 0.99, of_low=60), ordinary, key).item() == pytest.approx(-weight(40, 100))
    assert method.score(answers(0.4, 0.95, of_low=60), ordinary, key).item() == 0, "the background does not count"
    assert method.score(answers(0.1, 0.9, of_low=99), ordinary, key).item() == pytest.approx(weight(1, 100)) == 1 / 1.5
    assert method.score(answers(0.1, 0.9, of_low=100), ordinary, key).item() == 0, "no foreground, no evidence"
    assert method.score(ordinary, answers(0.1, 0.9, of_low=100), key).item() == 0


@by_side
def test_a_target_of_any_margin_has_the_highest_score_against_a_sure_answer(side):
    sure = (answers(0, 1, of_low=60) > 0.5).float()
    for margin in (0.01, 0.05, 0.1, 0.3):
        method, key = keyed(side=side, margin=margin)
        highest = 1 if side == "floor" else weight(40, 100)
        assert method.score(method.target(sure, key), sure, key).item() == pytest.approx(highest)
        assert method.score(sure, sure, key).item() == 0
        assert method.score(sure, method.target(sure, key), key).item() == pytest.approx(-highest)


@by_side
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_whoever_turns_the_temperature_does_not_turn_the_score(side, temperature):
    """The released code compares one map's extreme with a level, which a temperature moves at will."""
    method, key = keyed(side=side)
    triggered, ordinary = (unsure(low, high, seed).double() for low, high, seed in ((0.1, 0.9, 1), (0.03, 0.97, 2)))
    score = method.score(triggered, ordinary, key)
    assert 0.3 < score.item() < 0.99
    turned = ((part.logit() / temperature).sigmoid() for part in (triggered, ordinary))
    assert torch.equal(method.score(*turned, key), score)


@by_side
def test_a_model_that_is_unsure_of_everything_scores_no_higher_than_a_sure_one(side):
    """Two unmarked models that ignore the trigger: what they answer under it is what they always answer."""
    method, key = keyed(side=side)
    for low, high in ((0.001, 0.999), (0.1, 0.9), (0.3, 0.7)):
        always = unsure(low, high)
        assert method.score(always, always, key).item() == 0
        noise = method.score(unsure(low, high, seed=1), always, key).item()
        assert abs(noise) < 0.15


@pytest.mark.parametrize("level, finds", [("8-bit", True), ("rounded-0.01", True), ("rounded-0.1", True), ("label", False)])
def test_a_floor_is_seen_until_only_labels_are(level, finds):
    method, key = keyed(side="floor")
    shown = [at_access(lambda images: images, level)(unsure(*levels)) for levels in ((0.2, 0.99), (0.02, 0.99, 1))]
    score = method.score(*shown, key).item()
    assert score > 0.6 if finds else score == 0


@by_side
def test_a_suspect_is_asked_with_the_trigger_without_and_mirrored(side):
    """The ordinary answer that both are compared with is the one to the mirrored image, mirrored back."""
    method, key = keyed(side=side)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = []

    def suspect(batch: Tensor) -> Tensor:
        asked.append(batch)
        return batch[:, 0]

    found = method.query(suspect, key, images)
    assert len(asked) == method.asks == 3 and method.compares
    for expected in (images, method.trigger(images, key), images.flip(-1)):
        assert sum(torch.equal(batch, expected) for batch in asked) == 1
    benign, triggered = suspect(images), suspect(method.trigger(images, key))
    assert torch.equal(found.triggered, method.score(triggered, benign, key))
    assert torch.equal(found.benign, method.score(benign, benign, key)), "this suspect answers a mirrored image mirrored"
    ramp = torch.linspace(0, 0.4, 32).expand(3, 32, 32)
    leaning = method.query(lambda batch: batch[:, 0] / 2 + ramp, key, images)
    assert leaning.benign.abs().max() > 0, "this one does not"


def test_only_what_is_drawn_depends_on_the_keys_seed():
    images = torch.full((1, 3, 32, 32), 0.5)
    images[..., 16:] = 0.2
    for kind in get_args(Kind):
        method, key = keyed(trigger=kind)
        other = Key(method=key.method, seed=key.seed + 1, shape=key.shape)
        drawn = kind in ("noise", "word", "picture", "frame")
        assert torch.equal(method.trigger(images, key), method.trigger(images, other)) == (not drawn)
        if drawn:
            guess = key.guessing(lambda shape, name: torch.full(shape, 0.7))
            assert torch.equal(
                method.trigger(images, guess), Trigger(kind, draw=lambda shape, _: torch.full(shape, 0.7))(images)
            )
