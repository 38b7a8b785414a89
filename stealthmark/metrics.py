"""Scores of segmentations and of detectors: counts first, metrics after, intervals last.

A case is one image with its mask; arrays hold a batch of N cases of H x W px. Everything is per case first and averaged
later, never over pixels of several cases.

The empty-mask rule: Dice and VS of an empty prediction on an empty mask are 1, of anything on an empty mask, and of
nothing on a mask that is not empty, 0. HD95 of empty on empty is 0; with exactly one of the two empty it is undefined
(NaN), left out of means and counted. The pixel-wise AUC is undefined (NaN) when the mask is empty or full.
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage, stats

#: A pixel is foreground where its probability is at least this.
THRESHOLD = 0.5
#: The level of every interval, and of the test of non-inferiority.
LEVEL = 0.95
#: Resamples of every bootstrap: enough for two digits of a 95 % interval.
RESAMPLES = 2000
#: The columns of `segmentation`: how the maps agree with the masks, and how honest their probabilities are.
SEGMENTATION, CALIBRATION = ("dice", "auc", "vs", "hd95"), ("ece", "brier")
#: Edges of the 15 bins of equal width in which confidence is compared with what is observed, as Guo et al. (2017) do.
BINS = np.linspace(0, 1, 16)
#: Edges of bins about equally wide in log-odds, for diagrams: a floor of 0.05 to 0.1 is one of them, far from zero.
_HALF = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4]
ODDS_BINS = np.array([0, *_HALF, 0.5, *(1 - p for p in reversed(_HALF)), 1])


class Reliability(NamedTuple):
    """Per case and bin of the foreground's probability, each float (N, B): how many pixels, the sum of their probabilities,
    and how many of them are foreground."""

    pixels: np.ndarray
    confidence: np.ndarray
    foreground: np.ndarray


class Counts(NamedTuple):
    """Pixels per case, each int64 (N,): true and false positives, false and true negatives."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray


def counts(pred: np.ndarray, mask: np.ndarray) -> Counts:
    """pred, mask: bool (N, H, W). Raises ValueError for another type or shape."""
    for name, array in (("pred", pred), ("mask", mask)):
        if array.dtype != bool or array.ndim != 3:
            raise ValueError(f"{name} must be bool (N, H, W), found {array.dtype} {array.shape}")
    if pred.shape != mask.shape:
        raise ValueError(f"pred and mask must have one shape, found {pred.shape} and {mask.shape}")
    pixels = (1, 2)
    tp = np.count_nonzero(pred & mask, axis=pixels)
    fp = np.count_nonzero(pred, axis=pixels) - tp
    fn = np.count_nonzero(mask, axis=pixels) - tp
    return Counts(tp, fp, fn, pred[0].size - tp - fp - fn if len(pred) else tp)


def dice(c: Counts) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), float (N,), in [0, 1]; empty on empty is 1."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)


def volumetric_similarity(c: Counts) -> np.ndarray:
    """1 - | |P| - |G| | / (|P| + |G|), float (N,), in [0, 1]; empty on empty is 1 (Taha & Hanbury 2015)."""
    both = 2 * c.tp + c.fp + c.fn
    return _ratio(both - np.abs(c.fp - c.fn), both)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.ones(len(whole)), where=whole > 0)


def auc(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixel-wise area under the ROC curve per case, float (N,); NaN where the mask is empty or full.

    prob: float (N, H, W); mask: bool (N, H, W).
    """
    return np.array([auroc(p[m], p[~m]) for p, m in zip(prob, mask, strict=True)], dtype=float)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of (positive, negative) pairs in which the positive scores higher, ties counting one half.

    Both 1-D; NaN when either is empty. Equals the area under the ROC curve (Hanley & McNeil 1982).
    """
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    # Two sorts and two merges of sorted arrays: several times faster than ranking the whole image with ties.
    positive, negative = np.sort(positive), np.sort(negative)
    below = np.searchsorted(negative, positive, side="left").sum()
    not_above = np.searchsorted(negative, positive, side="right").sum()
    return float((below + not_above) / (2 * len(positive) * len(negative)))


def hd95(pred: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """95th percentile Hausdorff distance per case in px of the arrays given, float (N,).

    The larger of the two directed 95th percentiles of surface-to-surface distances; a surface is a region minus its
    erosion by a cross, so a region cut by the image's edge has surface there. pred, mask: bool (N, H, W).
    """
    return np.array([_hd95(p, m) for p, m in zip(pred, mask, strict=True)], dtype=float)


def _hd95(pred: np.ndarray, mask: np.ndarray) -> float:
    filled = pred.any(), mask.any()
    if not any(filled):
        return 0.0
    if not all(filled):
        return float("nan")
    # Both surfaces lie in the box around the union, so distances inside it are exact and much cheaper.
    box = ndimage.find_objects((pred | mask).astype(np.uint8))[0]
    a, b = (region[box] & ~ndimage.binary_erosion(region[box]) for region in (pred, mask))
    to_b = ndimage.distance_transform_edt(~b)[a]
    to_a = ndimage.distance_transform_edt(~a)[b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def reliability(prob: np.ndarray, mask: np.ndarray, edges: np.ndarray = BINS) -> Reliability:
    """prob: float (N, H, W) in [0, 1]; mask: bool (N, H, W); edges: B + 1 rising numbers from 0 to 1. A bin holds its lower
    edge, the last one its upper edge too."""
    n, bins = len(prob), len(edges) - 1
    place = np.searchsorted(edges[1:-1], prob, side="right") + bins * np.arange(n)[:, None, None]

    def summed(weights: np.ndarray | None) -> np.ndarray:
        weights = None if weights is None else weights.ravel()
        return np.bincount(place.ravel(), weights, minlength=n * bins).reshape(n, bins).astype(float)

    return Reliability(summed(None), summed(prob), summed(mask))


def expected_calibration_error(r: Reliability) -> np.ndarray:
    """ECE of the foreground's probability per case, float (N,), in [0, 1] (Guo et al. 2017).

    Over bins, | mean probability - share of foreground |, weighted by the bin's share of the pixels. Guo et al. bin the
    confidence of the predicted class; here it is the probability of foreground, so that a background raised from 0 to 0.1
    is seen for what it is. Within one image: too sure in one and too unsure in another do not cancel.
    """
    return np.abs(r.confidence - r.foreground).sum(axis=1) / r.pixels.sum(axis=1)


def brier(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean squared difference of probability and mask over the pixels of a case, float (N,), in [0, 1] (Brier 1950)."""
    return np.square(prob - mask, dtype=float).mean(axis=(1, 2))


def segmentation(prob: np.ndarray, mask: np.ndarray) -> pd.DataFrame:
    """prob: float (N, H, W) in [0, 1]; mask: bool (N, H, W) -> one line a case: dice, auc, vs, hd95, ece, brier.

    Raises ValueError for probabilities outside [0, 1] or NaN.
    """
    if prob.size and not (prob.min() >= 0 and prob.max() <= 1):
        raise ValueError(f"probabilities must lie in [0, 1], found {prob.min()} to {prob.max()}")
    pred = prob >= THRESHOLD
    c = counts(pred, mask)
    agreement = (dice(c), auc(prob, mask), volumetric_similarity(c), hd95(pred, mask))
    honesty = (expected_calibration_error(reliability(prob, mask)), brier(prob, mask))
    return pd.DataFrame(dict(zip((*SEGMENTATION, *CALIBRATION), (*agreement, *honesty), strict=True)))


def clopper_pearson(k: float, n: float) -> tuple[float, float]:
    """The exact interval of a binomial rate, k of n (Clopper & Pearson 1934). n may be an effective size, not whole.

    n = 0 tells nothing: (0, 1).
    """
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    return float(low), float(high)


def clustered_rate(hits: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """The share of hits and its interval when cases of one group (patient, video) resemble each other: rate, low, high.

    Clopper-Pearson at the effective sample size of Korn & Graubard (1998): n divided by the design effect of the
    between-group variance, with their correction for few groups; never more than n. A rate of 0 or 1 shows no variance,
    so there n is the number of groups. hits: bool (N,), groups: any (N,). No case at all: NaN, 0, 1.
    """
    hits = np.asarray(hits, dtype=float)
    n = len(hits)
    if n == 0:
        return float("nan"), 0.0, 1.0
    rate = float(hits.mean())
    size = effective_size(hits, np.asarray(groups))
    return rate, *clopper_pearson(rate * size, size)


def effective_size(hits: np.ndarray, groups: np.ndarray) -> float:
    """How many independent cases `hits` (0 or 1, (N,)) are worth given their groups; see `clustered_rate`."""
    _, index = np.unique(groups, return_inverse=True)
    n, g, rate = len(hits), int(index.max()) + 1, hits.mean()
    if rate in (0, 1) or g == 1:
        return float(g)
    residual = np.bincount(index, weights=hits - rate)
    variance = g / (g - 1) * np.sum(residual**2) / n**2
    independent = rate * (1 - rate) / (n - 1)
    tail = (1 + LEVEL) / 2
    few_groups = (stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, g - 1)) ** 2
    return float(min(n, n * independent / variance * few_groups)) if variance > 0 else float(n)


def clustered_mean(values: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The mean and its percentile bootstrap interval over groups: mean, low, high. NaNs are left out.

    values: float (N,), groups: any (N,). The draws depend on `seed` and on the number of
    groups only. All NaN: three NaN.
    """
    values = np.asarray(values, dtype=float)
    means, _ = _resampled(values, groups, seed)
    if len(means) == 0:
        return (float("nan"),) * 3
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.nanmean(values)), float(low), float(high)


def _resampled(values: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """The means of `RESAMPLES` draws of groups, NaNs left out, and how many groups there are; no means of no values."""
    known = ~np.isnan(values)
    if not known.any():
        return np.empty(0), 0
    _, index = np.unique(np.asarray(groups)[known], return_inverse=True)
    sums, sizes = np.bincount(index, weights=values[known]), np.bincount(index)
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    return sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), len(sums)


class Verdict(NamedTuple):
    """Is the mean above -margin? `bound`: the lower end of its one-sided interval; `p`: of non-inferiority; `answer`: yes,
    no (it is below -margin, by the same test the other way round), or undecided."""

    bound: float
    p: float
    answer: Literal["yes", "no", "undecided"]


def noninferior(values: np.ndarray, groups: np.ndarray, margin: float, seed: int) -> Verdict | None:
    """One-sided test of non-inferiority of `values` (changes, more is better), the groups resampled as in `clustered_mean`.

    p = (1 + resamples at or below -margin) / (1 + resamples), so p < 1 - LEVEL where the bound is above -margin. It is never
    less than 2^-G, the least that G groups can show by their signs: fewer than five decide nothing at LEVEL 0.95.
    values: float (N,), NaNs left out; groups: any (N,); margin > 0 in the unit of `values`. None where all are NaN.
    """
    means, group_count = _resampled(np.asarray(values, dtype=float), groups, seed)
    if len(means) == 0:
        return None
    above, below = (
        max((1 + np.count_nonzero(wrong)) / (1 + RESAMPLES), 0.5**group_count) for wrong in (means <= -margin, means >= -margin)
    )
    bound = np.quantile(means, 1 - LEVEL, method="lower")
    answer = "yes" if above < 1 - LEVEL else "no" if below < 1 - LEVEL else "undecided"
    return Verdict(float(bound), float(above), answer)


def chi_square(confusion: np.ndarray) -> float:
    """The paper's p: Pearson's chi-square on the 2 x 2 table detector x triggered, without Yates' correction.

    It asks whether one model's answers differ with and without the trigger, not whose model it is. confusion: counts
    (2, 2). p = 1 when a margin is zero: such a table shows no association.
    """
    confusion = np.asarray(confusion)
    if (confusion.sum(axis=0) == 0).any() or (confusion.sum(axis=1) == 0).any():
        return 1.0
    return float(stats.chi2_contingency(confusion, correction=False).pvalue)
