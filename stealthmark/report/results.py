"""The tidy rows and per-case scores of a run in the suite's order, with the seeds of a cell summarised."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from stealthmark.access import PROBABILITIES, WEIGHTS
from stealthmark.layout import CLEAN, INDEPENDENT, NEVER_MARKED, NO_ATTACK, STOLEN, Place, null_kind
from stealthmark.metrics import SEGMENTATION as SEGMENTATION
from stealthmark.metrics import THRESHOLD_DICE
from stealthmark.report import facts
from stealthmark.report.facts import Facts
from stealthmark.report.rows import ASKED, PLACE, QUALITY, read_cases, read_rows
from stealthmark.report.rows import COLUMNS as COLUMNS

#: The queries whose answers quality is measured on.
BENIGN, TRIGGERED = "benign", "triggered"
#: What scanners say: a score, and its rank among models that were never marked.
SCANS = ("scan_score", "scan_p")
#: Metrics of a model, whatever its interface shows.
OF_THE_MODEL = (*QUALITY, THRESHOLD_DICE, "empty_masks", *SCANS)
#: An attack that costs more Dice than this, in points, spoils what the thief stole.
THIEF_MARGIN = 5.0
#: A mark is harmless when it costs less than this, in points of Dice, AUC and VS and in px of HD95: the margin of
#: non-inferiority.
HARM_MARGIN = 1.0
#: A mark takes, or survives, when at least this share of triggered queries is detected: the paper's own bar.
TAKES = 0.95


class Panel(NamedTuple):
    """What a block of a table or a panel of a figure shows."""

    dataset: str
    architecture: str


class Value(NamedTuple):
    """One metric in one cell. With several seeds `mean` is over seeds and `low`, `high` are the extreme seeds; with one
    seed they are the row's 95 % interval. `change` is against the zero of the same seed (see `Results.zero`): points for
    shares, px for HD95; NaN where there is none. `n`: cases or queries of a seed. `part`: some seeds failed, others did not."""

    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    change: float = np.nan
    seeds: int = 0
    n: float = np.nan
    status: Literal["ok", "failed", "absent"] = "absent"
    part: bool = False


#: A stolen model as it is.
AS_STOLEN = Place()
#: A model that somebody else trained.
OTHERS_MODEL = Place(INDEPENDENT)


@dataclass(frozen=True)
class Results:
    """rows: as in rows.csv, with `change` added and `strength` 0 where nothing was done; cases: as in cases.parquet.

    The lists are in the suite's order: `methods` with the clean one first, then controls, and white boxes last, `attacks`
    without `none`, `strengths` by attack in rising order. `accesses` are levels of an interface, so without that of white
    boxes. Detection is reported at the first of them (probabilities, where the run has them) unless a table is about access.
    """

    rows: pd.DataFrame
    cases: pd.DataFrame
    facts: Facts
    methods: list[str]
    panels: list[Panel]
    attacks: list[str]
    accesses: list[str]
    scanners: list[str]
    strengths: dict[str, list[float]]
    seeds: list[int]
    _values: dict[tuple, Value] = field(repr=False)
    _failures: set[tuple] = field(repr=False)

    @property
    def marks(self) -> list[str]:
        """All methods but the clean one and controls."""
        return [method for method in self.methods if self.facts.method(method).kind not in (facts.NONE, facts.CONTROL)]

    @property
    def controls(self) -> list[str]:
        """Ordinary training for as long as a mark takes."""
        return self.of_kind(facts.CONTROL)

    def zero(self, method: str) -> str:
        """The method whose model, of the same dataset, architecture and seed, is what this one's harm, calibration and change
        of quality are measured against.

        The first control where the suite has one: a mark's training goes on from the clean model, and so does the control's,
        which brings no mark. Else the clean model. Of a fingerprint always the clean model, since that is what it leaves as it
        is. Where the zero failed there is no change; nothing else takes its place.
        """
        return _zero(method, self.methods, self.facts)

    def null_kind(self, member: str) -> str:
        """What a member of the null pool is (see `layout.null_kind`): a control of the suite was never marked either."""
        return NEVER_MARKED if member in self.controls else null_kind(member)

    @property
    def against(self) -> str:
        """What marks are measured against, for running text: `the control continued`."""
        zero = _zero("", self.methods, self.facts)
        if zero != CLEAN:
            return f"the control {zero}"
        trained = self.of_kind(facts.EMBEDDED, facts.WHITE_BOX)
        return "clean (trained for less long)" if trained else "the clean model"

    def of_seed(self, seed: int) -> "Results":
        """The same of one seed alone."""
        rows, cases = self.rows[self.rows.seed == seed], self.cases[self.cases.seed == seed]
        own = {"_values": _summarise(rows[rows.status == "ok"]), "_failures": _failed(rows)}
        return replace(self, rows=rows, cases=cases, seeds=[seed], **own)

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(panel.dataset for panel in self.panels))

    @property
    def architectures(self) -> list[str]:
        return list(dict.fromkeys(panel.architecture for panel in self.panels))

    def of_kind(self, *kinds: str) -> list[str]:
        """The methods of these kinds (see `facts.KINDS`)."""
        return [method for method in self.methods if self.facts.method(method).kind in kinds]

    def title(self, panel: Panel) -> str:
        """The dataset's name, with the architecture where there are several."""
        return f"{panel.dataset} · {panel.architecture}" if len(self.architectures) > 1 else panel.dataset

    def name(self, method: str) -> str:
        """The method's label, which says of a white box that it is one."""
        return method + " (white box)" * (self.facts.method(method).kind == facts.WHITE_BOX)

    def levels(self, method: str) -> list[str]:
        """The access levels at which suspects are asked for the method's mark: of a white box the weights alone."""
        return [WEIGHTS] if self.facts.method(method).kind == facts.WHITE_BOX else self.accesses

    def has(self, **where: str) -> bool:
        """Whether there is a row with these values."""
        chosen = np.ones(len(self.rows), dtype=bool)
        for column, value in where.items():
            chosen &= (self.rows[column] == value).to_numpy()
        return bool(chosen.any())

    def cases_of(self, panel: Panel, method: str, access: str) -> pd.DataFrame:
        """The cases of a method before any attack, stolen and independent, at one access level."""
        cases = self._unattacked(panel, method)
        return cases[cases.access == access]

    def quality_cases(self, panel: Panel, method: str, column: str) -> pd.DataFrame:
        """The cases of a method's model before any attack for which a column of quality is known."""
        cases = self._unattacked(panel, method)
        return cases[(cases.role == STOLEN) & cases[column].notna()]

    def _unattacked(self, panel: Panel, method: str) -> pd.DataFrame:
        cases = self.cases
        own = (cases.dataset == panel.dataset) & (cases.architecture == panel.architecture) & (cases.method == method)
        return cases[own & cases.role.isin([STOLEN, INDEPENDENT]) & (cases.attack == NO_ATTACK)]

    def value(
        self,
        metric: str,
        panel: Panel,
        method: str,
        place: Place = AS_STOLEN,
        *,
        query: str = "",
        reader: str = "",
        pooled: bool = False,
        queries: int | None = None,
    ) -> Value:
        """A metric in a cell, whether computed, failed or never asked for. Nothing is dropped.

        place: without an access level, at the first of the method's own. query: of quality, on benign images where it is not
        said. queries: how many an image; the most that were asked where it is not said.
        """
        query = query or (BENIGN if metric in (*QUALITY, THRESHOLD_DICE) else "")
        access = "" if metric in OF_THE_MODEL else place.access or self.levels(method)[0]
        how = (metric, query, reader, pooled, queries)
        value = self._values.get((*panel, method, place._replace(access=access), *how))
        suspect = place._replace(access="")
        scanner = reader if metric in SCANS else ""
        own = {(*panel, method, suspect, scanner), (*panel, method, suspect._replace(strength=None), scanner)}
        if value is not None:
            return value._replace(part=bool(own & self._failures))
        # What was never marked can be neither attacked nor examined: its cells failed with it.
        mark = {(*panel, method, AS_STOLEN, "")}
        examined = method in self.marks or metric in OF_THE_MODEL
        return Value(status="failed" if examined and (own | mark) & self._failures else "absent")

    def some_strengths(self, attack: str) -> list[float]:
        """At most three strengths: those that the attack's paper reports where there are more; else first, middle, last."""
        strengths = self.strengths[attack]
        reported = [strength for strength in self.facts.attack(attack).reported if strength in strengths]
        if reported and len(strengths) > len(reported):
            return reported
        return strengths if len(strengths) <= 3 else [strengths[0], strengths[(len(strengths) - 1) // 2], strengths[-1]]

    def curve(self, attack: str) -> list[Place]:
        """The stolen model as it is, then the attack as it grows stronger."""
        return [AS_STOLEN, *(Place(attack=attack, strength=strength) for strength in self.strengths[attack])]

    def steps(self) -> list[Place]:
        """The stolen model as it is, then every attack at every strength."""
        return [AS_STOLEN, *(place for attack in self.attacks for place in self.curve(attack)[1:])]

    def strongest(self) -> list[Place]:
        """The stolen model as it is, then every attack at its strongest."""
        return [AS_STOLEN, *(self.curve(attack)[-1] for attack in self.attacks if self.strengths[attack])]


def load(rows_csv: Path, cases_parquet: Path, suite: dict, provenance: dict) -> Results:
    """Read both files; `provenance` says what must be known of methods, attacks and scanners (see `facts.read`).

    Raises UserError when either is not what `collate` wrote, or the table is empty.
    """
    rows, cases = read_rows(rows_csv, provenance), read_cases(cases_parquet, provenance)
    known = facts.read(provenance)
    methods = _in_order(_ordered(suite.get("methods", ()), rows.method), known)
    rows = _with_change(rows, {method: _zero(method, methods, known) for method in methods})
    attacks = _ordered(suite.get("attacks", ()), rows.attack[rows.attack != NO_ATTACK])
    ok = rows[rows.status == "ok"]
    interfaces = ok.access[(ok.metric == "asr") & (ok.access != WEIGHTS)]
    scanners = suite.get("scanners") or ()
    scanned = rows.reader[rows.metric.isin(SCANS) | rows.reader.isin(list(map(_label, scanners)))]
    return Results(
        rows=rows,
        cases=cases,
        facts=known,
        methods=methods,
        panels=_panels(rows, suite),
        attacks=attacks,
        accesses=_ordered([PROBABILITIES, *suite.get("access", ())], interfaces) or [PROBABILITIES],
        scanners=_ordered(scanners, scanned),
        strengths={attack: _strengths(rows, known, attack) for attack in attacks},
        seeds=sorted(rows.seed.dropna().unique()),
        _values=_summarise(ok),
        _failures=_failed(rows),
    )


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a status other than ok."""
    return rows[rows.status != "ok"]


def _strengths(rows: pd.DataFrame, known: Facts, attack: str) -> list[float]:
    """An attack's strengths in rising order: those in the rows and those that were asked for."""
    computed = rows.strength[rows.attack == attack].dropna()
    return sorted({float(strength) for strength in [*computed, *known.attack(attack).strengths]})


def _zero(method: str, methods: list[str], known: Facts) -> str:
    """See `Results.zero`."""
    if known.method(method).kind == facts.FINGERPRINT:
        return CLEAN
    return next((other for other in methods if known.method(other).kind == facts.CONTROL), CLEAN)


def _with_change(rows: pd.DataFrame, zeros: dict[str, str]) -> pd.DataFrame:
    """Add `change`: the value minus that of the method's zero of the same dataset, architecture and seed, benign images."""
    keys = ["dataset", "architecture", "seed", "metric"]
    compared = rows.metric.isin((*QUALITY, THRESHOLD_DICE))
    rows = rows.assign(zero=rows.method.map(zeros))
    ordinary = (rows.attack == NO_ATTACK) & (rows.role == STOLEN) & (rows["query"] == BENIGN)
    unchanged = ordinary & (rows.method == rows.zero)
    start = rows[ordinary & compared & rows.value.notna()].drop_duplicates([*keys, "method"])
    start = start.drop(columns="zero").rename(columns={"method": "zero"})
    lookup = start.set_index([*keys, "zero"]).value.rename("start")
    change = rows.value - rows.join(lookup, on=[*keys, "zero"])["start"]
    change = change * np.where(rows.metric == "hd95", 1.0, 100.0)
    return rows.drop(columns="zero").assign(change=change.where(~unchanged))


def _summarise(ok: pd.DataFrame) -> dict[tuple, Value]:
    """(dataset, architecture, method, place, metric, query, reader, pooled, queries) -> its value; with None for queries, that
    of the most."""
    keys = ["dataset", "architecture", "method", *PLACE, "metric", *ASKED]
    ok = ok.assign(access=ok.access.where(~ok.metric.isin(OF_THE_MODEL), ""))
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
    numbers = table[["mean", "low", "high", "change", "seeds", "n"]].itertuples(index=False, name=None)
    values, most = {}, {}
    for key, summary in zip(table.index, numbers, strict=True):
        (dataset, architecture, method, *place), how = key[: 3 + len(PLACE)], key[3 + len(PLACE) :]
        cell = (dataset, architecture, method, Place(*place), *how[:-1])
        values[(*cell, how[-1])] = Value(*summary, status="ok")
        most[cell] = max(most.get(cell, 0), how[-1])
    return values | {(*cell, None): values[(*cell, queries)] for cell, queries in most.items()}


def _failed(rows: pd.DataFrame) -> set[tuple]:
    """(dataset, architecture, method, place, scanner) of what failed; strength None where all strengths did."""
    bad = failures(rows).assign(access="")[["dataset", "architecture", "method", "reader", *PLACE]]
    places = set()
    for dataset, architecture, method, reader, *place in bad.itertuples(index=False, name=None):
        suspect = Place(*place)
        suspect = suspect._replace(strength=None if pd.isna(suspect.strength) else suspect.strength)
        places.add((dataset, architecture, method, suspect, reader))
    return places


def _label(entry: str | dict) -> str:
    return entry if isinstance(entry, str) else entry.get("label") or entry["name"]


def _ordered(entries: list, present: pd.Series) -> list[str]:
    """What is present, in the suite's order; what the suite does not list comes last, in order of appearance."""
    labels = list(dict.fromkeys(present.dropna()))
    listed = [label for label in dict.fromkeys(map(_label, entries)) if label in labels]
    return listed + [label for label in labels if label not in listed]


def _in_order(methods: list[str], known: Facts) -> list[str]:
    """The clean model first, then controls; white boxes last."""
    places = {facts.NONE: 0, facts.CONTROL: 1, facts.WHITE_BOX: 3}
    return sorted(methods, key=lambda method: (method != CLEAN, places.get(known.method(method).kind, 2)))


def _panels(rows: pd.DataFrame, suite: dict) -> list[Panel]:
    pairs = set(rows[["dataset", "architecture"]].dropna().itertuples(index=False, name=None))
    datasets = _ordered(suite.get("datasets", ()), rows.dataset)
    architectures = _ordered(suite.get("architectures", ()), rows.architecture)
    return [Panel(d, a) for d in datasets for a in architectures if (d, a) in pairs]
