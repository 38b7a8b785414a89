"""Dominance: by hand, by brute force, and that it stays under whatever keeps the order."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score
from torch import Tensor

from stealthmark.ranks import dominance

ROW = torch.tensor([[[0.1, 0.3, 0.3, 0.9]]])


def chosen(*places: int) -> Tensor:
    """Which of four pixels in a row are in a group: bool (1, 1, 4)."""
    return torch.tensor([[[place in places for place in range(4)]]])


def of(higher: Tensor, lower: Tensor) -> float:
    return dominance(ROW, higher, ROW, lower).item()


def test_dominance_by_hand():
    assert of(chosen(3), chosen(0, 1, 2)) == 1 and of(chosen(0, 1, 2), chosen(3)) == -1
    assert of(chosen(1), chosen(0, 3)) == 0, "above the one, below the other"
    assert of(chosen(1), chosen(0, 2)) == 0.5, "a tie is half of each"
    assert of(chosen(1), chosen(2)) == 0 and of(chosen(0, 1, 2, 3), chosen(0, 1, 2, 3)) == 0
    assert of(chosen(1, 3), chosen(0, 2)) == (3 - 0) / 4


@pytest.mark.parametrize("higher, lower", [((), (0, 1)), ((0, 1), ()), ((), ())])
def test_nothing_shows_nothing(higher, lower):
    assert of(chosen(*higher), chosen(*lower)) == 0


def test_two_maps_are_compared_image_by_image():
    higher = torch.tensor([[[0.6, 0.2]], [[0.1, 0.2]], [[0.5, 0.5]]])
    lower = torch.tensor([[[0.1, 0.9]], [[0.5, 0.4]], [[0.5, 0.5]]])
    everything = torch.ones(3, 1, 2, dtype=torch.bool)
    first = everything & torch.tensor([True, False])
    found = dominance(higher, everything, lower, first)
    assert found.dtype == torch.float64 and found.tolist() == [1, -1, 0]
    assert dominance(higher, everything, lower, everything).tolist() == [0, -1, 0]
    assert dominance(*(part[:0] for part in (higher, everything, lower, everything))).shape == (0,)


def maps(n: int = 3, seed: int = 0, values: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two batches of 12 x 9 px and a group in each; with `values`, in steps that leave many ties."""
    rng = torch.Generator().manual_seed(seed)
    levels = torch.rand(2, n, 12, 9, generator=rng, dtype=torch.float64)
    levels = (levels * values).floor() / values if values else levels
    groups = torch.rand(2, n, 12, 9, generator=rng) < torch.tensor([0.3, 0.6]).view(2, 1, 1, 1)
    return levels[0], groups[0], levels[1], groups[1]


@pytest.mark.parametrize("values", [None, 5, 50])
def test_dominance_is_the_count_over_all_pairs_and_that_of_scipy_and_scikit_learn(values):
    higher, of_higher, lower, of_lower = maps(values=values)
    for i, found in enumerate(dominance(higher, of_higher, lower, of_lower).tolist()):
        a, b = higher[i][of_higher[i]], lower[i][of_lower[i]]
        assert found == pytest.approx((a[:, None] - b).sign().mean().item(), abs=1e-12)
        assert found == pytest.approx(2 * mannwhitneyu(a.numpy(), b.numpy()).statistic / (len(a) * len(b)) - 1, abs=1e-12)
        truth = np.r_[np.ones(len(a)), np.zeros(len(b))]
        assert found == pytest.approx(2 * roc_auc_score(truth, torch.cat([a, b]).numpy()) - 1, abs=1e-12)


MONOTONE = {
    "a temperature": lambda p: (p.clamp(1e-9).logit() / 7).sigmoid(),
    "a bias": lambda p: (p.clamp(1e-9).logit() - 3).sigmoid(),
    "stretched": lambda p: 0.02 + p / 2,
    "ranks, as of a quantile map": lambda p: torch.searchsorted(p.flatten().unique(), p).double(),
    "steep": lambda p: p**9,
}


@pytest.mark.parametrize("values", [None, 5])
@pytest.mark.parametrize("change", MONOTONE.values(), ids=MONOTONE)
def test_what_keeps_the_order_keeps_dominance(change, values):
    higher, of_higher, lower, of_lower = maps(values=values)
    before = dominance(higher, of_higher, lower, of_lower)
    changed = change(torch.cat([higher, lower]))
    assert torch.equal(dominance(changed[:3], of_higher, changed[3:], of_lower), before) and before.abs().min() > 0


def test_the_other_way_round_it_is_the_opposite():
    higher, of_higher, lower, of_lower = maps(values=5)
    there, back = dominance(higher, of_higher, lower, of_lower), dominance(lower, of_lower, higher, of_higher)
    assert torch.equal(there, -back) and torch.equal(dominance(-higher, of_higher, -lower, of_lower), -there)


def test_more_pairs_than_32_bits_count():
    """70,000 pixels against as many are 4.9e9 pairs."""
    line = torch.arange(70_000).view(1, 1, -1)
    everything = torch.ones_like(line, dtype=torch.bool)
    assert dominance(line + 70_000, everything, line, everything).item() == 1
    assert dominance(line, everything, line, everything).item() == 0
