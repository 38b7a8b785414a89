"""How often intervals cover: simulated groups (patients, videos), the candidates side by side, and what the library uses.

`python -m benchmarks.tuning.intervals [--repeats 1000]` prints four tables as Markdown. A line says, over all settings, the
least, the mean and the highest share of intervals that cover the truth, which should be 0.95, and how wide they
are beside the library's.

- Rates: 12 to 100 groups of 1, 5, 20 or 1 to 20 cases; intraclass correlations of 0 to 0.5 (beta-binomial); rates of 0.02 to
  0.5. Higher ones are the same turned round.
- Means: 12 to 100 groups of 1 to 7 cases; skewed as Dice is, with the heavy tails of differences (t with 3 degrees of freedom),
  and normal.
- Non-inferiority: how often it is found of these where the truth is at the margin, which should be 0.05 at most.
- Seeds: 2 to 5 seeds of the same 20 patients, which differ as much as patients do, half as much, or not at all.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from stealthmark import metrics

TAIL = (1 - metrics.LEVEL) / 2
GROUPS = (12, 25, 50, 100)
#: Resamples of the bootstraps, which are candidates only.
RESAMPLES = 500

Ends = tuple[np.ndarray, np.ndarray]


# --- rates ------------------------------------------------------------------------------------------------------------


def draw_groups(rng: np.random.Generator, groups: int, size: int | None, correlation: float, rate: float, repeats: int) -> Ends:
    """Hits and cases of each group, int (repeats, groups) each; `size` None: 1 to 20 cases."""
    cases = rng.integers(1, 21, (repeats, groups)) if size is None else np.full((repeats, groups), size)
    own = np.full(cases.shape, rate)
    if correlation:
        spread = (1 - correlation) / correlation
        own = rng.beta(rate * spread, (1 - rate) * spread, cases.shape)
    return rng.binomial(cases, own), cases


def library_rate(hits: np.ndarray, cases: np.ndarray) -> Ends:
    def interval(k: np.ndarray, n: np.ndarray) -> tuple[float, float]:
        groups = np.repeat(np.arange(len(n)), n)
        place = np.arange(len(groups)) - np.repeat(np.cumsum(n) - n, n)
        return metrics.clustered_rate(place < np.repeat(k, n), groups)[1:]

    low, high = np.array([interval(*each) for each in zip(hits, cases, strict=True)]).T
    return low, high


def effective(hits: np.ndarray, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rate, the variance between groups, and how many independent cases these are worth (Korn & Graubard 1998); with a rate
    of 0 or 1 as many as there are groups."""
    n, groups = cases.sum(1), cases.shape[1]
    rate = hits.sum(1) / n
    variance = groups / (groups - 1) * ((hits - rate[:, None] * cases) ** 2).sum(1) / n**2
    few = (stats.t.ppf(1 - TAIL, n - 1) / stats.t.ppf(1 - TAIL, groups - 1)) ** 2
    with np.errstate(all="ignore"):
        worth = np.minimum(n, n * rate * (1 - rate) / (n - 1) / variance * few)
    return rate, variance, np.where((rate == 0) | (rate == 1), groups, np.where(variance > 0, worth, n))


def exact(k: np.ndarray, n: np.ndarray, prior: float = 0.0) -> Ends:
    """Clopper & Pearson's interval; with `prior` 1/2 Jeffreys', which starts at 0 of none and ends at 1 of all too."""
    low = stats.beta.ppf(TAIL, np.where(k > 0, k + prior, 1), n - k + 1 - prior)
    high = stats.beta.ppf(1 - TAIL, k + 1 - prior, np.where(k < n, n - k + prior, 1))
    return np.where(k > 0, low, 0.0), np.where(k < n, high, 1.0)


def wilson(rate: np.ndarray, n: np.ndarray) -> Ends:
    z2 = stats.norm.ppf(1 - TAIL) ** 2
    centre, half = rate + z2 / (2 * n), np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2)))
    return (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)


def agresti_coull(rate: np.ndarray, n: np.ndarray) -> Ends:
    z2 = stats.norm.ppf(1 - TAIL) ** 2
    centre = (rate * n + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * centre * (1 - centre) / (n + z2))
    return centre - half, centre + half


def logit_t(rate: np.ndarray, variance: np.ndarray, groups: int) -> Ends:
    """Student's t on log-odds; nothing to go by at a rate of 0 or 1, where it is the exact interval of as many as groups."""
    safe = np.clip(rate, 1e-9, 1 - 1e-9)
    half = stats.t.ppf(1 - TAIL, groups - 1) * np.sqrt(variance) / (safe * (1 - safe))
    centre = np.log(safe / (1 - safe))
    ends = exact(rate * groups, np.full(rate.shape, groups))
    known = (rate > 0) & (rate < 1)
    low, high = (
        np.where(known, 1 / (1 + np.exp(-np.clip(centre + side * half, -700, 700))), end)
        for side, end in zip((-1, 1), ends, strict=True)
    )
    return low, high


def rates(hits: np.ndarray, cases: np.ndarray) -> Iterator[tuple[str, Ends]]:
    rate, variance, n = effective(hits, cases)
    yield "library: posterior of beta-binomial", library_rate(hits, cases)
    yield "Clopper-Pearson, groups ignored", exact(hits.sum(1), cases.sum(1))
    yield "Clopper-Pearson, effective size (Korn & Graubard)", exact(rate * n, n)
    yield "Jeffreys, effective size", exact(rate * n, n, 0.5)
    yield "Wilson, effective size (Dean & Pagano)", wilson(rate, n)
    yield "Agresti-Coull, effective size (Dean & Pagano)", agresti_coull(rate, n)
    yield "logit, Student's t", logit_t(rate, variance, cases.shape[1])


def rate_table(rng: np.random.Generator, repeats: int) -> "Table":
    table = Table("rates")
    for groups in GROUPS:
        for size in (1, 5, 20, None):
            for correlation in (0, 0.1, 0.3, 0.5) if size != 1 else (0,):
                for rate in (0.02, 0.05, 0.1, 0.3, 0.5):
                    setting = f"{groups} groups of {size or '1 to 20'}, correlation {correlation}, rate {rate}"
                    for name, ends in rates(*draw_groups(rng, groups, size, correlation, rate, repeats)):
                        table.add(name, setting, ends, rate)
    return table


# --- means ------------------------------------------------------------------------------------------------------------

#: What groups differ by: name, draw, true mean.
KINDS: tuple[tuple[str, Callable, float], ...] = (
    ("skewed as Dice", lambda rng, shape: rng.beta(9, 1.2, shape), 9 / 10.2),
    ("difference of two of these", lambda rng, shape: rng.beta(9, 1.2, shape) - rng.beta(6, 1.2, shape), 9 / 10.2 - 6 / 7.2),
    ("heavy tails", lambda rng, shape: 0.05 * rng.standard_t(3, shape), 0.0),
    ("normal", lambda rng, shape: rng.normal(0, 1, shape), 0.0),
)


def draw_values(rng: np.random.Generator, draw: Callable, groups: int, repeats: int) -> Ends:
    """The sum of values of each group and its cases, float (repeats, groups) each."""
    sizes = rng.integers(1, 8, (repeats, groups)).astype(float)
    return draw(rng, sizes.shape) * sizes + 0.02 * np.sqrt(sizes) * rng.normal(size=sizes.shape), sizes


def library_means(sums: np.ndarray, sizes: np.ndarray) -> list[metrics.Mean]:
    """Each group's cases all have the group's mean: what counts is the sum and the size."""
    made = []
    for total, n in zip(sums, sizes.astype(int), strict=True):
        mean = metrics.mean_over_groups(np.repeat(total / n, n), np.repeat(np.arange(len(n)), n))
        assert mean is not None
        made.append(mean)
    return made


def ends_of_means(means: list[metrics.Mean], tail: float) -> Ends:
    return np.array([mean.end(tail) for mean in means]), np.array([mean.end(1 - tail) for mean in means])


def means_of(rng: np.random.Generator, sums: np.ndarray, sizes: np.ndarray, tail: float) -> Iterator[tuple[str, Ends]]:
    """The candidates' ends, each side missing the mean with probability `tail`."""
    groups = sums.shape[1]

    def moments(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = sums.sum(-1) / sizes.sum(-1)
        residuals = (sums - mean[..., None] * sizes) / sizes.mean(-1)[..., None]
        return mean, np.sqrt((residuals**2).sum(-1) / (groups - 1) / groups)  # linearised (Cochran 1977, Chapter 6)

    library = library_means(sums, sizes)
    mean, error = moments(sums, sizes)
    t = stats.t.ppf(1 - tail, groups - 1)
    skewness = np.array([each.skewness for each in library])
    bend = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness) / np.sqrt(groups)
    upper, lower = (3 / bend * (np.cbrt(1 + bend * (side * t - bend / 6)) - 1) for side in (1, -1))
    yield "library: the further of Student's t and Hall's", ends_of_means(library, tail)
    yield "Student's t", (mean - t * error, mean + t * error)
    yield "Hall's t without skewness", (mean - upper * error, mean - lower * error)
    low, high, low_t, high_t = (np.empty(len(sums)) for _ in range(4))
    for i in range(len(sums)):
        draws = rng.integers(0, groups, (RESAMPLES, groups))
        resampled, errors = moments(sums[i][draws], sizes[i][draws])
        low[i], high[i] = np.quantile(resampled, [tail, 1 - tail])
        studentised = (resampled - mean[i]) / np.maximum(errors, 1e-12)
        low_t[i], high_t[i] = mean[i] - error[i] * np.quantile(studentised, [1 - tail, tail])
    yield "bootstrap of groups, percentiles", (low, high)
    yield "bootstrap of groups, studentised", (low_t, high_t)


def mean_tables(rng: np.random.Generator, repeats: int) -> Iterator["Table"]:
    table, errors = Table("means"), Table("non-inferiority at the margin", errors=True)
    for kind, draw, truth in KINDS:
        for groups in GROUPS:
            sums, sizes = draw_values(rng, draw, groups, repeats)
            for name, ends in means_of(rng, sums, sizes, TAIL):
                table.add(name, f"{kind}, {groups} groups", ends, truth)
            # A change whose mean is at the margin, of a metric of which more is better, and of one of which less is.
            for name, (low, high) in means_of(rng, sums, sizes, 2 * TAIL):
                errors.rates(name, f"{kind}, {groups} groups, more is better", low > truth, high - low)
                errors.rates(name, f"{kind}, {groups} groups, less is better", high < truth, high - low)
    yield table
    yield errors


# --- seeds ------------------------------------------------------------------------------------------------------------


def seed_table(rng: np.random.Generator, repeats: int) -> "Table":
    table, patients, each = Table("change over seeds"), 20, 3
    for seeds in (2, 3, 5):
        for between in (0.0, 0.5, 1.0):
            groups = np.tile(np.repeat(np.arange(patients), each), seeds)
            names = np.repeat(np.arange(seeds), patients * each)
            made: dict[str, list] = {
                f"{unit} units": [] for unit in ("library: seeds and patients are", "patients are", "seeds are")
            }
            t = stats.t.ppf(1 - TAIL, seeds - 1)
            for _ in range(repeats):
                change = rng.normal(0, 1, patients)[groups] + between * rng.normal(0, 1, seeds)[names]
                change = change + rng.normal(0, 0.3, len(names)) + 0.3 * rng.normal(0, 1, (seeds, patients))[names, groups]
                of_seeds = change.reshape(seeds, -1).mean(1)
                half = t * of_seeds.std(ddof=1) / np.sqrt(seeds)
                ways = (
                    metrics.harm_interval(change, groups, names)[1:],
                    metrics.clustered_mean(change, groups)[1:],
                    (of_seeds.mean() - half, of_seeds.mean() + half),
                )
                for name, ends in zip(made, ways, strict=True):
                    made[name].append(ends)
            for name, pairs in made.items():
                low, high = np.array(pairs).T
                table.add(name, f"{seeds} seeds, which differ by {between} of what patients do", (low, high), 0.0)
    return table


# --- tables -----------------------------------------------------------------------------------------------------------


class Table:
    """The share of each setting, and the mean width, of every candidate; `errors`: shares should be small, not 0.95."""

    def __init__(self, title: str, errors: bool = False):
        self.title, self.errors = title, errors
        self.shares: dict[str, dict[str, float]] = {}
        self.widths: dict[str, list[float]] = {}

    def add(self, name: str, setting: str, ends: Ends, truth: float) -> None:
        low, high = ends
        self.rates(name, setting, (low <= truth) & (truth <= high), high - low)

    def rates(self, name: str, setting: str, found: np.ndarray, widths: np.ndarray) -> None:
        self.shares.setdefault(name, {})[setting] = float(found.mean())
        self.widths.setdefault(name, []).append(float(widths.mean()))

    def markdown(self) -> str:
        bounds = (0.05, 0.06) if self.errors else (0.93, 0.97)
        outer = [f"below {bounds[0]}", f"above {bounds[1]}"]
        heads = ["interval", "least", "mean", "highest", "width", *outer, "worst"]
        lines = [f"## {self.title}", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        library = np.array(next(iter(self.widths.values())))
        for name, shares in self.shares.items():
            values = np.array(list(shares.values()))
            worst = (max if self.errors else min)(shares, key=shares.__getitem__)
            numbers = [f"{x:.3f}" for x in (values.min(), values.mean(), values.max(), np.mean(self.widths[name] / library))]
            outside = [f"{np.count_nonzero(far)} of {len(values)}" for far in (values < bounds[0], values > bounds[1])]
            lines.append(f"| {' | '.join([name, *numbers, *outside, worst])} |")
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="simulated tables a setting")
    repeats, rng = parser.parse_args().repeats, np.random.default_rng(0)
    for table in (rate_table(rng, repeats), *mean_tables(rng, repeats), seed_table(rng, repeats)):
        print(table.markdown(), flush=True)


if __name__ == "__main__":
    main()
