"""Scores of segmentations and of detectors: counts first, metrics after, intervals last.

A case is one image with its mask; arrays hold a batch of N cases of H x W px. Everything is per case first and averaged
later, never over pixels of several cases.

The empty-mask rule: Dice and VS of an empty prediction on an empty mask are 1, of anything on an empty mask, and of
nothing on a mask that is not empty, 0. HD95 of empty on empty is 0; with exactly one of the two empty it is undefined
(NaN), left out of means and counted. The pixel-wise AUC is undefined (NaN) when the mask is empty or full.
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage, special, stats

#: A pixel is foreground where its probability is at least this.
THRESHOLD = 0.5
#: The level of every interval, and of the test of non-inferiority.
LEVEL = 0.95
#: The columns of `segmentation`: how the maps agree with the masks, and how honest their probabilities are.
SEGMENTATION, CALIBRATION = ("dice", "auc", "vs", "hd95"), ("ece", "brier")
#: A further column: Dice averaged over thresholds, which sees what happens to probabilities on their side of one half.
THRESHOLD_DICE = "threshold_dice"
#: How many thresholds: 0/255, 1/255, ..., 254/255, as the levels of an 8-bit map.
THRESHOLDS = 255
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


def threshold_dice(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Dice averaged over `THRESHOLDS`, float (N,), in [0, 1]: as "mean Dice" is computed by the code of PraNet (Fan et al.,
    MICCAI 2020). At each threshold a pixel is foreground where its probability is above it; the empty-mask rule holds at each.

    prob: float (N, H, W) in [0, 1]; mask: bool (N, H, W).
    """
    n, bins = len(prob), THRESHOLDS + 1
    # The thresholds in the type of the probabilities: one that came from an 8-bit map is equal to its own, not above it.
    thresholds = np.arange(THRESHOLDS, dtype=prob.dtype) / prob.dtype.type(THRESHOLDS)
    passed = np.searchsorted(thresholds, prob, side="left") + bins * np.arange(n)[:, None, None]

    def above(places: np.ndarray) -> np.ndarray:
        """How many pixels of a case pass at least the first, the first two, ... thresholds: int (N, 255)."""
        histogram = np.bincount(places.ravel(), minlength=n * bins).reshape(n, bins)
        return histogram[:, :0:-1].cumsum(axis=1)[:, ::-1]

    found, hit = above(passed), above(passed[mask])
    both = found + np.count_nonzero(mask, axis=(1, 2))[:, None]
    return np.divide(2 * hit, both, out=np.ones(both.shape), where=both > 0).mean(axis=1)


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
    """prob: float (N, H, W) in [0, 1]; mask: bool (N, H, W) -> one line a case: dice, auc, vs, hd95, ece, brier,
    threshold_dice.

    Raises ValueError for probabilities outside [0, 1] or NaN.
    """
    if prob.size and not (prob.min() >= 0 and prob.max() <= 1):
        raise ValueError(f"probabilities must lie in [0, 1], found {prob.min()} to {prob.max()}")
    pred = prob >= THRESHOLD
    c = counts(pred, mask)
    agreement = (dice(c), auc(prob, mask), volumetric_similarity(c), hd95(pred, mask))
    honesty = (expected_calibration_error(reliability(prob, mask)), brier(prob, mask))
    columns = dict(zip((*SEGMENTATION, *CALIBRATION), (*agreement, *honesty), strict=True))
    return pd.DataFrame({**columns, THRESHOLD_DICE: threshold_dice(prob, mask)})


def clopper_pearson(k: float, n: float) -> tuple[float, float]:
    """The exact interval of a binomial rate, k of n (Clopper & Pearson 1934). n may be an effective size, not whole.

    n = 0 tells nothing: (0, 1).
    """
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    return float(low), float(high)


def clustered_rate(hits: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """A rate and its interval, where the cases of a group (patient, video) resemble each other: rate, low, high.

    The cases of a group are taken to be drawn at a rate of its own, which comes from a beta distribution around the rate
    asked for (beta-binomial; Skellam 1948). How much they resemble each other, the intraclass correlation, is not known: the
    posterior is averaged over it. The prior of the rate is Beta(1/4, 3/4) for the lower end and Beta(3/4, 1/4) for the upper
    one, half way between Jeffreys' interval and that of Clopper & Pearson. The lower end is 0 where nothing was hit, the upper
    one 1 where all was. How often it covers, up to a correlation of 0.5: `benchmarks/tuning/intervals.py`.

    hits: bool (N,); groups: any (N,). No case at all: NaN, 0, 1.
    """
    hits = np.asarray(hits, dtype=bool)
    if not len(hits):
        return float("nan"), 0.0, 1.0
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sizes, found = np.bincount(index), np.bincount(index, weights=hits).astype(int)
    weights = _likelihood(found, sizes)
    low = _quantile(weights * _LOWER, (1 - LEVEL) / 2) if found.any() else 0.0
    high = _quantile(weights / _LOWER, (1 + LEVEL) / 2) if not hits.all() else 1.0
    rate = float(hits.mean())
    return rate, min(low, rate), max(high, rate)


#: The grid of `clustered_rate`: rates of equal weight under Jeffreys' prior; intraclass correlations, whose logarithm is taken
#: to be even; what turns Jeffreys' prior into the lower end's (1 / it: the upper end's).
_RATES = stats.beta(0.5, 0.5).ppf((np.arange(300) + 0.5) / 300)
_CORRELATIONS = np.geomspace(0.02, 0.8, 12)
_LOWER = ((1 - _RATES) / _RATES) ** 0.25


def _likelihood(found: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of `_RATES`, up to a factor: float (300,). found, sizes: int (G,), hits and cases of each group.

    With a + b = (1 - correlation) / correlation and a / (a + b) the rate, a group's k hits of n have the likelihood
    a (a + 1) ... (a + k - 1) b (b + 1) ... (b + n - k - 1) / ((a + b) ... (a + b + n - 1)), times the ways to order them. So
    all that counts is how many groups have more than 0, 1, 2, ... hits, misses and cases.
    """
    steps = np.arange(sizes.max())[:, None]
    hits, misses, cases = ((steps < counts).sum(1).astype(float) for counts in (found, sizes - found, sizes))
    of_hits, of_cases = _logarithms(1 << (len(steps) - 1).bit_length())
    logs = np.tensordot(hits, of_hits[: len(steps)], 1) + np.tensordot(misses, of_hits[: len(steps)], 1)[::-1]
    logs -= cases @ of_cases[: len(steps)]
    return np.exp(logs - logs.max()).sum(1)


@lru_cache(maxsize=8)
def _logarithms(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """log(a + i), float (steps, 300, 12), and log(a + b + i), float (steps, 12), on the grid; b is a, rates turned round."""
    both, i = (1 - _CORRELATIONS) / _CORRELATIONS, np.arange(steps)[:, None]
    return np.log(_RATES[:, None] * both + i[..., None]), np.log(both + i)


def _quantile(weights: np.ndarray, share: float) -> float:
    below = np.cumsum(weights) - weights / 2
    return float(np.interp(share * weights.sum(), below, _RATES))


class Mean(NamedTuple):
    """A mean over cases whose groups are the units. `error`: its standard error, of `freedom` degrees of freedom; `skewness`:
    of the groups' contributions; `groups`: how many."""

    value: float
    error: float
    freedom: float
    skewness: float
    groups: int

    def end(self, share: float) -> float:
        """The end of a one-sided interval: the mean is above it with probability 1 - share. A lower end where share < 1/2.

        By Student's t, and by t with the skewness taken out (Hall, JRSS B 1992): the one further out, because the first covers
        too little of what is skewed, as Dice is, and the second of what has heavy tails, as differences have. A single group
        has no end.
        """
        if self.groups < 2:
            return -math.inf if share < 0.5 else math.inf
        t, bend = float(special.stdtrit(self.freedom, 1 - share)), self.skewness / math.sqrt(self.groups)
        straight = t if abs(bend) < 1e-6 else 3 / bend * (math.cbrt(1 + bend * (t - bend / 6)) - 1)
        return self.value - self.error * (max(t, straight) if share < 0.5 else min(t, straight))

    def p_below(self, limit: float) -> float:
        """The p-value of "the mean is at most `limit`": the least share whose lower `end` is above it; 1 for a single group."""
        if self.groups < 2 or self.error == 0:
            return float(self.groups < 2 or self.value <= limit)
        t, bend = (self.value - limit) / self.error, self.skewness / math.sqrt(self.groups)
        straight = t if abs(bend) < 1e-6 else ((1 + bend * t / 3) ** 3 - 1) / bend + bend / 6
        return float(special.stdtr(self.freedom, -min(t, straight)))


def mean_over_groups(values: np.ndarray, groups: np.ndarray) -> Mean | None:
    """The mean of values float (N,), NaNs left out, and what its intervals need; groups: any (N,). None where all are NaN.

    The standard error is the jackknife's, a group left out at a time, which unequal groups do not make too small. They have as
    many degrees of freedom as groups of one size that are worth as much (Kish 1965), less one.
    """
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    if not known.any():
        return None
    _, index = np.unique(np.asarray(groups)[known], return_inverse=True)
    sums, sizes = np.bincount(index, weights=values[known]), np.bincount(index)
    count, cases = len(sums), int(sizes.sum())
    value = float(sums.sum() / cases)
    if count == 1:
        return Mean(value, math.inf, 0.0, 0.0, 1)
    shifts = (sums - value * sizes) / (cases - sizes)  # how far the mean is moved by each group
    shifts = shifts - shifts.mean()
    square = float((shifts**2).sum())
    skewness = float((shifts**3).sum()) * math.sqrt(count) / square**1.5 if square > 0 else 0.0
    error = math.sqrt(square * (count - 1) / count)
    return Mean(value, error, max(1.0, cases**2 / float((sizes**2).sum()) - 1), skewness, count)


def clustered_mean(values: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """The mean and its two-sided interval at `LEVEL`, groups being the units: mean, low, high. NaNs are left out; an interval
    ends at the least and the largest value at the latest.

    values: float (N,), groups: any (N,). All NaN: three NaN. One group: the interval is all that there is.
    """
    mean = mean_over_groups(values, groups)
    if mean is None:
        return (float("nan"),) * 3
    low, high = mean.end((1 - LEVEL) / 2), mean.end((1 + LEVEL) / 2)
    return mean.value, max(low, float(np.nanmin(values))), min(high, float(np.nanmax(values)))


def harm_interval(differences: np.ndarray, groups: np.ndarray, seeds: np.ndarray) -> tuple[float, float, float]:
    """The mean change over seeds and its two-sided interval at `LEVEL`: value, low, high.

    With several seeds the seed is a unit too. How far an end lies from the mean is the root of the sum of two squares: how far
    it lies by Student's t over the seeds' means, and how far it lies within a seed, on average, which more seeds on the same
    patients do not lessen (variance estimates recovery; Zou & Donner, Statistics in Medicine 2008). With one seed it is
    `clustered_mean`, and says nothing of other seeds. differences: float (N,), NaNs left out; groups, seeds: any (N,).
    """
    differences, groups, seeds = np.asarray(differences, dtype=float), np.asarray(groups), np.asarray(seeds)
    parts = [mean_over_groups(differences[seeds == seed], groups[seeds == seed]) for seed in np.unique(seeds)]
    means = [part for part in parts if part is not None]
    if len(means) < 2:
        return clustered_mean(differences, groups)
    values, tails = np.array([mean.value for mean in means]), ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    between = special.stdtrit(len(means) - 1, tails[1]) * values.std(ddof=1) / math.sqrt(len(means))
    within = (np.mean([(mean.end(tail) - mean.value) ** 2 for mean in means]) for tail in tails)
    down, up = (math.sqrt(between**2 + part) for part in within)
    value = float(values.mean())
    return value, value - down, value + up


class Verdict(NamedTuple):
    """Is the mean above -margin? `bound`: the lower end of its one-sided interval; `p`: of non-inferiority; `answer`: yes,
    no (it is below -margin, by the same test the other way round), or undecided."""

    bound: float
    p: float
    answer: Literal["yes", "no", "undecided"]


def noninferior(values: np.ndarray, groups: np.ndarray, margin: float) -> Verdict | None:
    """One-sided test of non-inferiority of `values` (changes, more is better), groups being the units as in `clustered_mean`.

    p is the least share at which the one-sided interval's end is above -margin (`Mean.p_below`). It is never less than 2^-G,
    the least that G groups can show by their signs: fewer than five decide nothing at LEVEL 0.95.
    values: float (N,), NaNs left out; groups: any (N,); margin > 0 in the unit of `values`. None where all are NaN.
    """
    mean = mean_over_groups(values, groups)
    if mean is None:
        return None
    turned = mean._replace(value=-mean.value, skewness=-mean.skewness)
    above, below = (max(p, 0.5**mean.groups) for p in (mean.p_below(-margin), turned.p_below(margin)))
    answer: Literal["yes", "no", "undecided"] = "yes" if above < 1 - LEVEL else "no" if below < 1 - LEVEL else "undecided"
    return Verdict(mean.end(1 - LEVEL), above, answer)


def chi_square(confusion: np.ndarray) -> float:
    """The paper's p: Pearson's chi-square on the 2 x 2 table detector x triggered, without Yates' correction.

    It asks whether one model's answers differ with and without the trigger, not whose model it is. confusion: counts
    (2, 2). p = 1 when a margin is zero: such a table shows no association.
    """
    confusion = np.asarray(confusion)
    if (confusion.sum(axis=0) == 0).any() or (confusion.sum(axis=1) == 0).any():
        return 1.0
    return float(stats.chi2_contingency(confusion, correction=False).pvalue)
