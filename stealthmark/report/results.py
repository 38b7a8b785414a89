"""The tidy rows and per-case scores of a run in the suite's order, with the seeds of a cell summarised."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from stealthmark import metrics
from stealthmark.errors import UserError
from stealthmark.metrics import CALIBRATION, SEGMENTATION

COLUMNS = [
    *("suite", "benchmark_version", "dataset", "architecture", "seed", "method", "situation", "attack", "strength"),
    *("access", "metric", "value", "n", "ci_low", "ci_high", "status"),
]
CLEAN = "clean"
#: The access level at which segmentation is scored.
PROBABILITIES = "probabilities"
QUALITY = (*SEGMENTATION, *CALIBRATION)
#: An attack that costs more Dice than this, in points, spoils what the thief stole.
THIEF_MARGIN = 5.0
#: A mark is harmless when it costs less than this, in points of Dice, AUC and VS and in px of HD95: the margin of
#: non-inferiority.
HARM_MARGIN = 1.0
#: A mark takes, or survives, when at least this share of triggered queries is detected: the paper's own bar.
TAKES = 0.95
#: The strengths that the paper reports, where an attack has many.
PAPER_STRENGTHS = {"prune": (0.1, 0.3, 0.5)}


class Panel(NamedTuple):
    """What a block of a table or a panel of a figure shows."""

    dataset: str
    architecture: str


class Value(NamedTuple):
    """One metric in one cell. With several seeds `mean` is over seeds and `low`, `high` are the extreme seeds; with one
    seed they are the row's 95 % interval. `change` is against the clean model of the same seed: points for shares, px
    for HD95; NaN where there is none. `n`: cases or queries of a seed. `part`: some seeds failed, others did not."""

    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    change: float = np.nan
    seeds: int = 0
    n: float = np.nan
    status: Literal["ok", "failed", "absent"] = "absent"
    part: bool = False


@dataclass(frozen=True)
class Results:
    """rows: as in rows.csv, with `change` added and `strength` 0 where nothing was done; cases: as in cases.parquet.

    The lists are in the suite's order, `attacks` without `none`, `strengths` by attack in rising order. Detection is
    reported at the first of `accesses` (probabilities, where the run has them) unless a table is about access.
    """

    rows: pd.DataFrame
    cases: pd.DataFrame
    methods: list[str]
    panels: list[Panel]
    attacks: list[str]
    accesses: list[str]
    strengths: dict[str, list[float]]
    seeds: list[int]
    _values: dict[tuple, Value] = field(repr=False)
    _failures: set[tuple] = field(repr=False)

    @property
    def marks(self) -> list[str]:
        """The methods that leave a mark: all but `clean`."""
        return [method for method in self.methods if method != CLEAN]

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(panel.dataset for panel in self.panels))

    @property
    def architectures(self) -> list[str]:
        return list(dict.fromkeys(panel.architecture for panel in self.panels))

    def title(self, panel: Panel) -> str:
        """The dataset's name, with the architecture where there are several."""
        return f"{panel.dataset} · {panel.architecture}" if len(self.architectures) > 1 else panel.dataset

    def cases_of(self, panel: Panel, method: str, access: str) -> pd.DataFrame:
        """The cases of a method before any attack, stolen and independent, at one access level."""
        cases = self.cases
        here = (cases.dataset == panel.dataset) & (cases.architecture == panel.architecture) & (cases.method == method)
        here &= cases.situation.isin(["stolen", "independent"])
        return cases[here & (cases.attack == "none") & (cases.access == access)]

    def value(
        self,
        metric: str,
        panel: Panel,
        method: str,
        attack: str = "none",
        strength: float = 0.0,
        situation: str = "stolen",
        access: str | None = None,
    ) -> Value:
        """A metric in a cell, whether computed, failed or never asked for. Nothing is dropped."""
        if access is None:
            access = PROBABILITIES if metric.removesuffix("_triggered") in QUALITY else self.accesses[0]
        place = (*panel, method, situation, attack)
        found = self._values.get((*place, strength, access, metric))
        own = {(*place, strength), (*place, None)}
        mark = {(*panel, method, "stolen", "none", 0.0)}
        if found is not None:
            return found._replace(part=bool(own & self._failures))
        # What was never marked can be neither attacked nor examined: its cells failed with it.
        examined = method != CLEAN or metric in QUALITY
        return Value(status="failed" if examined and (own | mark) & self._failures else "absent")

    def shown_strengths(self, attack: str, most: int = 3) -> list[float]:
        """At most `most` strengths: the paper's where it has some; else first, middle, last; for one, the strongest."""
        every = self.strengths[attack]
        paper = [s for s in PAPER_STRENGTHS.get(attack, ()) if s in every]
        if len(paper) > 0 and len(every) > len(paper):
            return paper
        if len(every) <= most:
            return every
        return [every[0], every[(len(every) - 1) // 2], every[-1]] if most == 3 else [every[-1]]


def load(rows_csv: Path, cases_parquet: Path, suite: dict) -> Results:
    """Read both files. Raises UserError when a column is missing or the table is empty."""
    rows = pd.read_csv(rows_csv, keep_default_na=False, na_values=[""], dtype={"strength": str, "status": str})
    if missing := [name for name in COLUMNS if name not in rows]:
        raise UserError(f"{rows_csv} lacks the columns {', '.join(missing)}; it must have {', '.join(COLUMNS)}")
    if rows.empty:
        raise UserError(f"{rows_csv} has no rows: nothing was collated")
    rows = _with_change(_normalised(rows))
    attacks = _ordered(suite.get("attacks", ()), rows.attack[rows.attack != "none"])
    ok = rows[rows.status == "ok"]
    return Results(
        rows=rows,
        cases=pd.read_parquet(cases_parquet),
        methods=_clean_first(_ordered(suite.get("methods", ()), rows.method)),
        panels=_panels(rows, suite),
        attacks=attacks,
        accesses=_ordered([PROBABILITIES, *suite.get("access", ())], ok.access[ok.metric == "asr"]) or [PROBABILITIES],
        strengths={attack: _strengths(rows, suite, attack) for attack in attacks},
        seeds=sorted(rows.seed.dropna().unique()),
        _values=_summarise(ok),
        _failures=_failed(rows),
    )


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a status other than ok."""
    return rows[rows.status != "ok"]


def _normalised(rows: pd.DataFrame) -> pd.DataFrame:
    """Blank situation and attack mean stolen and none (a failure before either); `none` has strength 0, and an attack
    that failed at strength 0 failed before its first strength: NaN."""
    rows = rows.assign(
        situation=rows.situation.fillna("stolen"),
        attack=rows.attack.fillna("none"),
        strength=pd.to_numeric(rows.strength.replace("none", np.nan)),
        status=rows.status.fillna("ok"),
    )
    attacked = rows.attack != "none"
    before = attacked & (rows.status != "ok") & (rows.strength == 0)
    return rows.assign(strength=rows.strength.where(attacked, 0.0).where(~before))


def _strengths(rows: pd.DataFrame, suite: dict, attack: str) -> list[float]:
    """An attack's strengths in rising order: those in the rows and those that the suite asked for."""
    asked = [e.get("strengths", ()) for e in suite.get("attacks", ()) if isinstance(e, dict) and _label(e) == attack]
    found = rows.strength[rows.attack == attack].dropna()
    return sorted({float(s) for s in [*found, *(s for entry in asked for s in entry)]})


def _with_change(rows: pd.DataFrame) -> pd.DataFrame:
    """Add `change`: the value minus the clean model's of the same dataset, architecture and seed, benign images."""
    keys = ["dataset", "architecture", "seed", "base"]
    rows = rows.assign(base=rows.metric.str.removesuffix("_triggered"))
    clean = rows[(rows.method == CLEAN) & (rows.situation == "stolen") & (rows.attack == "none") & rows.value.notna()]
    clean = clean[(clean.metric == clean.base) & clean.base.isin(QUALITY)]
    lookup = clean.drop_duplicates(keys).set_index(keys).value.rename("clean")
    merged = rows.join(lookup, on=keys)
    scale = np.where(merged.base == "hd95", 1.0, 100.0)
    own = (merged.method == CLEAN) & (merged.attack == "none")
    return rows.assign(change=((merged.value - merged.clean) * scale).where(~own)).drop(columns="base")


def _summarise(ok: pd.DataFrame) -> dict[tuple, Value]:
    keys = ["dataset", "architecture", "method", "situation", "attack", "strength", "access", "metric"]
    grouped = ok[ok.value.notna()].groupby(keys, sort=False, dropna=False)
    table = grouped.agg(
        mean=("value", "mean"),
        least=("value", "min"),
        most=("value", "max"),
        low=("ci_low", "first"),
        high=("ci_high", "first"),
        change=("change", "mean"),
        seeds=("seed", "nunique"),
        n=("n", "first"),
    )
    several = table.seeds > 1
    table["low"], table["high"] = table.low.where(~several, table.least), table.high.where(~several, table.most)
    fields = table[["mean", "low", "high", "change", "seeds", "n"]].itertuples(index=False, name=None)
    return {key: Value(*values, status="ok") for key, values in zip(table.index, fields, strict=True)}


def _failed(rows: pd.DataFrame) -> set[tuple]:
    bad = failures(rows)[["dataset", "architecture", "method", "situation", "attack", "strength"]]
    return {(*key[:-1], None if pd.isna(key[-1]) else key[-1]) for key in bad.itertuples(index=False, name=None)}


def _label(entry: str | dict) -> str:
    return entry if isinstance(entry, str) else entry.get("label") or entry["name"]


def _ordered(entries: list, found: pd.Series) -> list[str]:
    """What was found, in the suite's order; what the suite does not list comes last, in order of appearance."""
    found = list(dict.fromkeys(found.dropna()))
    listed = [name for name in dict.fromkeys(map(_label, entries)) if name in found]
    return listed + [name for name in found if name not in listed]


def _clean_first(methods: list[str]) -> list[str]:
    return sorted(methods, key=lambda method: method != CLEAN)


def _panels(rows: pd.DataFrame, suite: dict) -> list[Panel]:
    pairs = set(rows[["dataset", "architecture"]].dropna().itertuples(index=False, name=None))
    datasets = _ordered(suite.get("datasets", ()), rows.dataset)
    architectures = _ordered(suite.get("architectures", ()), rows.architecture)
    return [Panel(d, a) for d in datasets for a in architectures if (d, a) in pairs]


class Change(NamedTuple):
    """Mean change of a per-case metric against clean on the same case, its 95 % interval, the pairs, and the verdict of
    `metrics.noninferior` at `HARM_MARGIN` (None where there is no pair), whose bound is that of the change too."""

    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    pairs: int = 0
    verdict: metrics.Verdict | None = None


def paired_change(results: Results, panel: Panel, method: str, metric: str) -> Change:
    """A mark's harm before any attack: points for shares, px for HD95, where more is worse, as for ECE and Brier score.

    Groups (patients, videos) are resampled, all seeds of a group together; cases where either is undefined are left out.
    `dice_triggered` is compared with the clean model's Dice without trigger.
    """
    base = metric.removesuffix("_triggered")
    if metric not in results.cases or base not in results.cases:
        return Change()
    keys = ["seed", "case_id"]
    found = [results.cases_of(panel, name, PROBABILITIES) for name in (method, CLEAN)]
    marked, clean = (cases[cases.situation == "stolen"].drop_duplicates(keys).set_index(keys) for cases in found)
    clean = clean[base].rename("clean")
    both = marked.join(clean, how="inner")
    change = (both[metric] - both.clean).to_numpy(dtype=float) * (1 if base == "hd95" else 100)
    better = 1 if base in ("dice", "auc", "vs") else -1
    verdict = metrics.noninferior(better * change, both.group_id, HARM_MARGIN, seed=0)
    if verdict:
        verdict = verdict._replace(bound=better * verdict.bound)
    return Change(*metrics.clustered_mean(change, both.group_id, seed=0), int(np.isfinite(change).sum()), verdict)
