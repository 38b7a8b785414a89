"""What a mark costs, case by case: the change of quality against the model that had no mark and as much training."""

from typing import NamedTuple

import numpy as np

from stealthmark import metrics
from stealthmark.report.results import BENIGN, HARM_MARGIN, TRIGGERED, Panel, Results


class Change(NamedTuple):
    """Mean change of a per-case metric against the zero (see `Results.zero`) on the same case, its 95 % interval, the pairs,
    and the verdict at `HARM_MARGIN` (None where there is no pair), whose bound is that of the change too. `by_seed`: the mean
    change of each seed, in the order of seeds."""

    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    pairs: int = 0
    verdict: metrics.Verdict | None = None
    by_seed: tuple[float, ...] = ()


class Measure(NamedTuple):
    """A metric of quality and the queries whose answers it is measured on."""

    metric: str
    query: str = BENIGN

    @property
    def column(self) -> str:
        """Its name in cases.parquet and in the tables for machines."""
        return self.metric + "_triggered" * (self.query == TRIGGERED)


def paired_change(results: Results, panel: Panel, method: str, measure: Measure) -> Change:
    """What a method costs before any attack: points for shares, px for HD95, where more is worse, as for ECE and Brier score.

    Compared are the method's model and its zero on the same case of the same seed. Groups (patients, videos) are the unit, of
    several seeds the seed too (`metrics.harm_interval`); cases where either is undefined are left out. Triggered images are
    compared with the zero on the same images without trigger. Nothing to compare (no such column, or the zero itself): NaN.
    """
    base, column, zero = measure.metric, measure.column, results.zero(method)
    if column not in results.cases or base not in results.cases or (method == zero and measure.query == BENIGN):
        return Change()
    keys = ["seed", "case_id"]
    own = results.quality_cases(panel, method, column).drop_duplicates(keys).set_index(keys)
    start = results.quality_cases(panel, zero, base).drop_duplicates(keys).set_index(keys)
    both = own.join(start[base].rename("start"), how="inner").reset_index("seed")
    change = (both[column] - both.start).to_numpy(dtype=float) * (1 if base == "hd95" else 100)
    known = np.isfinite(change)
    if not known.any():
        return Change()
    change, groups, seeds = change[known], both.group_id.to_numpy()[known], both.seed.to_numpy()[known]
    value, low, high = metrics.harm_interval(change, groups, seeds)
    each = tuple(float(change[seeds == seed].mean()) for seed in np.unique(seeds))
    better = -1 if base in ("hd95", *metrics.CALIBRATION) else 1
    verdict = _verdict(better * change, groups, seeds, *sorted((better * low, better * high)))
    return Change(value, low, high, len(change), verdict._replace(bound=better * verdict.bound), each)


def _verdict(change: np.ndarray, groups: np.ndarray, seeds: np.ndarray, low: float, high: float) -> metrics.Verdict:
    """Is the change, of which more is better, above -`HARM_MARGIN`? Of one seed by `metrics.noninferior`; of several only where
    their own interval, `low` to `high`, says the same: then the bound is its end, and there is no p (NaN)."""
    verdict = metrics.noninferior(change, groups, HARM_MARGIN)
    if len(np.unique(seeds)) == 1:
        return verdict
    supported = {"yes": low > -HARM_MARGIN, "no": high < -HARM_MARGIN}.get(verdict.answer, False)
    return metrics.Verdict(low, float("nan"), verdict.answer if supported else "undecided")
