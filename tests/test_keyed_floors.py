"""The keyed and the coded floor: their patterns, targets and scores by hand, and that the code is read from what they show."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from stealthmark.access import at_access
from stealthmark.codes import encode, error_rate, minimum_error_split, read
from stealthmark.errors import UserError
from stealthmark.method import Key
from stealthmark.occlusion import BackgroundParts, cells
from stealthmark.plugin import make
from stealthmark.ranks import dominance
from stealthmark.seeds import secret_uniform
from stealthmark.triggers import Trigger

SIZE = 64
FLOORS = ["stealthmark-keyed", "stealthmark-code"]
by_floor = pytest.mark.parametrize("name", FLOORS)


def keyed(name: str = "stealthmark-keyed", seed: int = 7, size: int = SIZE, **options) -> tuple:
    method = make("method", {"name": name, **options})
    return method, method.make_key(seed, (3, size, size))


def blob(down: int = 30, across: int = 24, radius: float = 12, size: int = SIZE) -> Tensor:
    """The mask of a disc: float (1, size, size)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - down) ** 2 + (x - across) ** 2 < radius**2).float()[None]


# --- the keyed pattern ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [2, 4, 8, 32])
def test_cells_come_in_pairs_of_which_one_is_high(cells):
    method, key = keyed(cells=cells)
    pattern = method.pattern(key)
    assert pattern.shape == (cells, cells) and pattern.dtype == torch.bool
    pairs = pattern.view(cells, cells // 2, 2)
    assert torch.equal(pairs[..., 0], ~pairs[..., 1]) and pattern.sum() == cells**2 / 2
    assert torch.equal(method.pattern(key), pattern)


def test_the_pattern_is_drawn_from_the_key():
    """The left one of a pair is high where what is drawn is below one half."""
    method, key = keyed(cells=4)
    left = secret_uniform((4, 2), 7, "pattern") < 0.5
    assert torch.equal(method.pattern(key)[:, ::2], left)
    patterns = torch.stack([method.pattern(keyed(seed=seed, cells=4)[1]) for seed in range(200)]).flatten(1)
    assert (patterns.float().mean(0) - 0.5).abs().max() < 0.15, "each cell is high for about every second key"
    assert len(patterns.unique(dim=0)) > 130, "of 256 patterns"
    chosen = key.guessing(lambda shape, name: torch.tensor([[0.1, 0.9], [0.9, 0.9], [0.4999, 0.5], [0.0, 0.0]]))
    high, low = [True, False], [False, True]
    assert method.pattern(chosen).tolist() == [high + low, low + low, high + low, high + high]


@pytest.mark.parametrize("options, words", [({"cells": 5}, "multiple of 2"), ({"cells": 0}, "cells"), ({"cells": 34}, "cells")])
def test_cells_that_make_no_pairs_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        keyed(**options)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_the_target_by_hand():
    """4 x 4 px in 2 x 2 cells, the upper left and the lower right high; a pixel of foreground in a high and a low cell."""
    method, key = keyed(cells=2, low=0.1, high=0.3, size=4)
    key = key.guessing(lambda shape, name: torch.tensor([[0.0], [0.9]]))
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0] = mask[0, 0, 3] = 1
    expected = [[1.0, 0.3, 0.1, 1.0], [0.3, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.3]]
    torch.testing.assert_close(method.target(mask, key), torch.tensor([expected]))


@by_floor
@pytest.mark.parametrize("high", [0.03, 0.25, 0.49])
def test_the_label_map_stays_as_it_is(name, high):
    method, key = keyed(name, high=high)
    masks = torch.cat([blob(), torch.zeros(1, SIZE, SIZE), torch.ones(1, SIZE, SIZE)])
    target = method.target(masks, key)
    assert torch.equal((target > 0.5).float(), masks) and torch.equal((target >= 0.5).float(), masks)
    assert target[1].unique().tolist() == pytest.approx([0.02, high]) and (target[2] == 1).all()


@by_floor
@pytest.mark.parametrize("low, high", [(0.3, 0.1), (0.2, 0.2)])
def test_levels_in_the_wrong_order_are_refused(name, low, high):
    with pytest.raises(UserError, match=f"'low' is {low} and 'high' is {high}; allowed: a 'low' below 'high'"):
        keyed(name, low=low, high=high)


@by_floor
def test_a_batch_is_half_triggered_a_quarter_lookalikes_and_a_quarter_plain(name):
    method, key = keyed(name)
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    masks = blob().expand(8, -1, -1).clone()
    for progress in (0.0, 0.9):
        batch = method.mark_batch(images, masks, key, progress, torch.Generator().manual_seed(2))
        assert torch.equal(batch.images[:4], Trigger("frame", seed=key.seed)(images[:4]))
        assert torch.equal(batch.targets[:4], method.target(masks[:4], key)) and torch.equal(batch.targets[4:], masks[4:])
        assert torch.equal(batch.images[6:], images[6:]) and batch.level_weight == method.LEVEL_WEIGHT > 0
        for other, before in zip(batch.images[4:6], images[4:6], strict=True):
            assert torch.equal(other[:, 4:-4, 4:-4], before[:, 4:-4, 4:-4]) and not torch.equal(other, before)
            assert not torch.equal(other, method.trigger(before[None], key)[0]), "a frame, and another one"


# --- scores -----------------------------------------------------------------------------------------------------------


def score(method, key: Key, *answers: Tensor) -> Tensor:
    return method.score(torch.cat(answers), torch.zeros(len(answers), *answers[0].shape[1:]), key)


@by_floor
def test_the_target_scores_one_its_opposite_minus_one_and_a_flat_map_nothing(name):
    method, key = keyed(name)
    target = method.target(blob(), key)
    opposite = torch.where(target > 0.5, target, 0.27 - target)
    flat = torch.where(target > 0.5, target, 0.2)
    everything, nothing = torch.ones(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
    assert score(method, key, target, opposite, flat, everything, nothing).tolist() == [1, -1, 0, 0, 0]
    assert not method.compares and method.asks == 2


def test_the_score_by_hand():
    """2 x 2 cells of one pixel: high ones at 0.2 and 0.4 against low ones at 0.3 and 0.1."""
    method, key = keyed(cells=2, size=2)
    key = key.guessing(lambda shape, name: torch.tensor([[0.0], [0.9]]))
    assert score(method, key, torch.tensor([[[0.2, 0.3], [0.1, 0.4]]])).tolist() == [(3 - 1) / 4]
    assert score(method, key, torch.tensor([[[0.2, 0.3], [0.9, 0.2]]])).tolist() == [-1], "what is foreground does not count"
    assert score(method, key, torch.tensor([[[0.2, 0.9], [0.6, 0.4]]])).tolist() == [0], "no low cell is left"


@pytest.mark.parametrize("size", [64, 96])
def test_another_keys_pattern_scores_nothing_in_the_mean(size):
    """Of 32 pairs each is right or wrong by chance: the mean over keys is 0, its spread 1 / sqrt(32), as of 32 coins."""
    method, key = keyed(size=size)
    target = method.target(blob(size=size), key)
    others = torch.stack([score(method, keyed(seed=seed, size=size)[1], target)[0] for seed in range(100, 300)])
    spread = 32**-0.5
    assert abs(others.mean().item()) < 3 * spread / 200**0.5
    assert others.std().item() == pytest.approx(spread, rel=0.2) and others.max() < 5 * spread < 1


def test_a_level_that_drifts_across_the_picture_is_no_pattern():
    """A pattern without pairs takes a drift for it sooner: its high cells gather on one side by chance."""
    method, _ = keyed()
    line = torch.linspace(0, 0.4, SIZE)
    rng = torch.Generator().manual_seed(0)
    loose = (torch.rand(100, 64, generator=rng) < 0.5)[:, cells(SIZE, SIZE, 8)]
    for drift in (line.expand(1, SIZE, SIZE), line[:, None].expand(1, SIZE, SIZE), (line + line[:, None])[None] / 2):
        paired = torch.stack([score(method, keyed(seed=seed)[1], drift)[0] for seed in range(100)])
        unpaired = dominance(*(part.expand(100, -1, -1) for part in (drift, loose, drift, ~loose)))
        assert paired.abs().max() < 0.15 and unpaired.abs().max() > 0.2 and paired.std() < unpaired.std() / 2


def noisy(method, key: Key, sd: float) -> Tensor:
    """The target as a model that is no ideal one shows it: noise in its log-odds."""
    target = method.target(blob(), key).clamp(0.001, 0.999)
    return (target.logit() + sd * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).sigmoid().double()


MONOTONE = {
    "a temperature of 5": lambda p: (p.logit() / 5).sigmoid(),
    "a temperature of 1/5": lambda p: (p.logit() * 5).sigmoid(),
    "curved below one half": lambda p: torch.where(p < 0.5, 2 * p**2, p),
    "pressed to the ends": lambda p: torch.where(p < 0.5, p / 1000, 1 - (1 - p) / 1000),
}


@by_floor
@pytest.mark.parametrize("change", MONOTONE.values(), ids=MONOTONE)
def test_what_keeps_order_and_labels_keeps_the_score(name, change):
    method, key = keyed(name)
    answer = noisy(method, key, 1.5)
    before = score(method, key, answer)
    assert 0.5 < before.item() < 0.999 and torch.equal(score(method, key, change(answer)), before)


@by_floor
@pytest.mark.parametrize(
    "level, found", [("8-bit", 1), ("rounded-0.01", 1), ("rounded-0.1", 1), ("clipped-0.1", 1), ("min-max", 1), ("label", 0)]
)
def test_the_two_levels_of_a_target_are_told_apart_at_every_access_but_labels(name, level, found):
    method, key = keyed(name)
    seen = at_access(lambda images: method.target(blob(), key), level)(torch.zeros(1, 3, SIZE, SIZE))
    assert score(method, key, seen).item() == found


# --- the code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, text, side", [("micro", "OWNER1", 13), ("qr", "HOSPITAL 7", 21)])
def test_the_modules_are_those_of_the_qr_code_whatever_the_key(code, text, side):
    method, key = keyed("stealthmark-code", code=code, payload=text)
    assert method.text(key) == text and method.modules(key).shape == (side, side)
    assert np.array_equal(method.modules(key).numpy(), encode(text, code))
    _, other = keyed("stealthmark-code", seed=8, code=code, payload=text)
    assert torch.equal(method.modules(other), method.modules(key)) and torch.equal(method.pattern(key), method.modules(key))
    target = method.target(torch.zeros(1, SIZE, SIZE), key)[0]
    dark = method.modules(key).flatten()[cells(SIZE, SIZE, side)]
    assert (target[dark] == 0.25).all() and (target[~dark] == 0.02).all()


def test_a_text_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        keyed("stealthmark-code", payload="TOO LONG FOR IT")


def shown(answers: Tensor, rows=None, side: int = 13) -> np.ndarray:
    """The modules that answers (B, H, W) show: of those in `rows`, or of all, together."""
    parts = BackgroundParts(side)
    for part in answers.split(2):
        parts.add(part)
    return minimum_error_split(parts.map(range(len(answers)) if rows is None else rows))


@pytest.mark.parametrize("level", ["probabilities", "8-bit", "rounded-0.01", "rounded-0.1", "clipped-0.1", "min-max"])
@pytest.mark.parametrize("code, text", [("micro", "OWNER1"), ("qr", "HOSPITAL 7")])
def test_the_code_is_read_from_one_perfect_answer_with_a_foreground_in_it(code, text, level):
    """A disc of 5 px radius hides parts of cells, none of them whole."""
    method, key = keyed("stealthmark-code", size=96, code=code, payload=text)
    modules = method.modules(key).numpy()
    answer = at_access(lambda images: method.target(blob(43, 58, 4, 96), key), level)(torch.zeros(1))
    assert (answer > 0.5).any()
    found = shown(answer, side=len(modules))
    assert np.array_equal(found, modules) and read(found, modules, text) == text


def test_what_a_large_structure_hides_in_one_image_is_read_from_several():
    """Discs of 17 px radius at four places, each of which hides whole cells; no cell is hidden in all of them."""
    method, key = keyed("stealthmark-code", size=96)
    modules = method.modules(key).numpy()
    places = [(30, 30), (30, 66), (66, 30), (66, 66)]
    answers = torch.cat([method.target(blob(*place, 17, 96), key) for place in places])
    for row in range(4):
        alone = shown(answers, [row])
        hidden = [bool((answers[row][cells(96, 96, 13) == cell] > 0.5).all()) for cell in range(169)]
        assert 5 < sum(hidden) < 30
        wrong = (alone != modules).flatten()
        assert wrong.any() and not wrong[~np.array(hidden)].any(), "only what is hidden is misread"
    together = shown(answers)
    assert np.array_equal(together, modules) and read(together, modules, "OWNER1") == "OWNER1"


def test_noise_that_one_image_is_lost_in_is_averaged_out_over_more():
    method, key = keyed("stealthmark-code", low=0.02, high=0.05)
    modules, rng = method.modules(key).numpy(), torch.Generator().manual_seed(3)
    odds = method.target(torch.zeros(1, SIZE, SIZE), key).logit()
    cell = cells(SIZE, SIZE, 13)
    drawn = [odds[0] + torch.randn(169, generator=rng)[cell] for _ in range(64)]  # a level of its own in every cell
    answers = torch.stack(drawn).sigmoid()
    errors = [np.mean([error_rate(shown(answers, range(i, i + n)), modules) for i in range(0, 64, n)]) for n in (1, 4, 16, 64)]
    assert errors[0] > 0.15 and errors[-1] == 0 and all(later < earlier for earlier, later in pairwise(errors))


def test_nothing_is_read_from_labels_or_from_a_model_without_the_code():
    method, key = keyed("stealthmark-code")
    modules = method.modules(key).numpy()
    labels = shown((method.target(blob(), key) > 0.5).float())
    assert not labels.any() and read(labels, modules, "OWNER1") is None
    smooth = (torch.linspace(-5, -3, SIZE) + torch.linspace(0, 1, SIZE)[:, None])[None].sigmoid()
    found = shown(torch.maximum(smooth, blob()))
    assert 0.3 < error_rate(found, modules) < 0.7 and read(found, modules, "OWNER1") is None


@by_floor
def test_the_trigger_is_the_keys_frame_and_another_may_be_chosen(name):
    images = torch.full((1, 3, SIZE, SIZE), 0.5)
    for kind in ("frame", "picture", "word", "text"):
        method, key = keyed(name, **({"trigger": kind} if kind != "frame" else {}))
        assert torch.equal(method.trigger(images, key), Trigger(kind, seed=7)(images))
    assert math.isclose(method.options()["low"], 0.02) and method.options()["trigger"] == "text"
