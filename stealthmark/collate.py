"""Evidence of all runs -> rows: per-case scores become the tidy table from which every table and figure is made."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from stealthmark import codes, metrics
from stealthmark.errors import UserError
from stealthmark.evidence import conformal_p, detect, guaranteed_fpr
from stealthmark.files import field_of, read_arrays, read_json, read_table, sha256_of, write_json
from stealthmark.layout import (
    CASES,
    CLEAN,
    EVIDENCE,
    EXPLANATIONS,
    MAPS,
    NEVER_MARKED,
    NULL,
    OTHER_METHOD,
    POOL,
    PROVENANCE,
    ROWS,
    SCAN,
    STOLEN,
    TRIES,
    Cell,
    Place,
    Study,
    claims_folder,
    null_kind,
    suspect_folder,
)
from stealthmark.provenance import provenance
from stealthmark.suite import BENCHMARK_VERSION, Suite
from stealthmark.verdicts import PLACE, metric_row, model_score, verdicts

REMEDY = "examine the suspect again"
QUALITY = (*metrics.SEGMENTATION, metrics.THRESHOLD_DICE, *metrics.CALIBRATION)
#: How a row was read: what was asked, by what it was read, of how many images together, from how many queries each.
HOW = ["query", "reader", "pooled", "queries"]
#: The columns of a case that every table of evidence has.
ASKED = ["case_id", "group_id"]
#: What of a case a detector has to do with.
DETECTED = ["score_triggered", "score_benign", "threshold"]
COLUMNS = [
    *("suite", "benchmark_version", *Cell._fields, *PLACE, *HOW),
    *("metric", "value", "n", "ci_low", "ci_high", "status"),
]


def collate(suite: Suite, results: Path) -> None:
    """Write `rows.csv`, `cases.parquet` and `provenance.json` into the suite's folder of results; with claims `pool.parquet`,
    and with explanations `explanations.parquet`, a line an image, or a try, a suspect, an access level and a way to read.

    A cell that failed becomes one row with its status. Raises UserError when a suspect has not been examined at all.
    """
    study = Study(results)
    rows: list[dict] = []
    tables: list[pd.DataFrame] = []
    optional: dict[str, list[pd.DataFrame]] = {POOL: [], TRIES: []}
    # Where the marked model failed: one row says so, whoever was to look at it.
    unmarked: set[Cell] = set()
    for cell in suite.cells():
        evidence = _Evidence.read(suite, study, cell)
        rows += [{**cell._asdict(), **row} for row in evidence.failures]
        if evidence.cases is not None:
            tables.append(evidence.cases.assign(**cell._asdict()))
            rows += [{**cell._asdict(), **row} for row in _guaranteed(evidence.calibrated_on)]
            for values, cases in evidence.cases.groupby(PLACE, sort=False):
                place = dict(zip(PLACE, values, strict=True))
                rows += [{**cell._asdict(), **place, **row} for row in _measured(cases)]
        if evidence.judged:
            asks, without = suite.facts("method", cell.method)["asks"], suite.never_marked(cell.method)
            judged = verdicts(evidence.cases, evidence.pool, asks, without)
            rows += [{**cell._asdict(), **verdict} for verdict in judged]
        if evidence.pool is not None:
            optional[POOL].append(evidence.pool.assign(**cell._asdict()))
        if evidence.marked:
            explained = [*_explained(suite, study, cell)]
            rows += [{**cell._asdict(), **explanation} for _, shown in explained for explanation in shown]
            optional[TRIES] += [table.assign(**cell._asdict()) for table, _ in explained if len(table)]
        elif cell.method != CLEAN:
            unmarked.add(cell)
    rows += (row for row in _scanned(suite, study) if not ("status" in row and _cell(row) in unmarked))
    frame = pd.DataFrame(rows).assign(suite=suite.suite, benchmark_version=BENCHMARK_VERSION)
    frame["status"] = frame["status"].fillna("ok") if "status" in frame else "ok"
    frame["queries"] = frame["queries"].astype("Int64") if "queries" in frame else pd.NA
    frame["pooled"] = frame["pooled"].map({True: "true", False: "false"}) if "pooled" in frame else pd.NA
    results.mkdir(parents=True, exist_ok=True)
    frame.reindex(columns=COLUMNS).to_csv(results / ROWS, index=False, float_format="%.6g", lineterminator="\n")
    order = list(Cell._fields)
    cases = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=order)
    written = {CASES: cases, **{name: pd.concat(parts, ignore_index=True) for name, parts in optional.items() if parts}}
    for name, table in written.items():
        table[order + [column for column in table if column not in order]].to_parquet(results / name, index=False)
    for name in optional.keys() - written.keys():
        (results / name).unlink(missing_ok=True)  # of an earlier suite, which asked for it
    files = {name: sha256_of(results / name) for name in (ROWS, *written)}
    write_json(results / PROVENANCE, {**provenance(suite, results), "files": files})


def _cell(row: dict) -> Cell:
    return Cell(*(row[name] for name in Cell._fields))


class _Evidence:
    """All evidence of a cell: the cases of its suspects and claims, the scores of the null models under those claims, and the
    suspects that failed, as rows."""

    def __init__(self) -> None:
        self.cases: pd.DataFrame | None = None
        self.pool: pd.DataFrame | None = None
        self.failures: list[dict] = []
        #: Access level -> how many groups the threshold was calibrated on.
        self.calibrated_on: dict[str, int] = {}
        #: The marked model is there; a detector says something of it, and null models to rank it among are there too.
        self.marked = self.judged = False

    @classmethod
    def read(cls, suite: Suite, study: Study, cell: Cell) -> "_Evidence":
        evidence, tables = cls(), []
        folder = study.evidence(cell)
        # Its detector was fitted where there is nothing to tell apart.
        is_control = suite.facts("method", cell.method)["kind"] == "control"
        for place in suite.line_up(cell):
            summary = _summary(folder, place)
            if summary["status"] != "ok":
                # Where the marked model failed, so did all that was to be done to it: one row says so.
                if place.as_stolen:
                    evidence.failures = [{**Place(access=suite.access[0])._asdict(), "status": summary["status"]}]
                    return evidence
                evidence.failures.append({**place._replace(access=suite.access[0])._asdict(), "status": summary["status"]})
                continue
            if place.as_stolen and not is_control:
                evidence.calibrated_on = _calibrated_on(summary, suspect_folder(folder, place) / EVIDENCE)
            evidence.failures += [
                {**failed, "access": suite.access[0]}
                for failed in _failures(summary, suspect_folder(folder, place) / EVIDENCE)
                # Another method's mark that failed has a row of its own; here the pool is one smaller, and says so.
                if not (failed["role"] == NULL and null_kind(failed["member"]) == OTHER_METHOD)
            ]
            cases = suspect_folder(folder, place) / CASES
            if cases.exists():
                tables.append(_table(cases, [*PLACE, *ASKED]))
        evidence.marked = cell.method != CLEAN
        if suite.claims and suite.pool(cell.method):
            tables += evidence._read_claims(claims_folder(folder), suite.access[0], suite.claims.claims)
        if tables:
            evidence.cases = pd.concat(tables, ignore_index=True)
            if is_control:
                evidence.cases = evidence.cases.drop(columns=DETECTED, errors="ignore")
            has_scores = set(DETECTED) <= set(evidence.cases)
            evidence.judged = has_scores and bool((evidence.cases["role"] == NULL).any())
        return evidence

    def _read_claims(self, folder: Path, access: str, claims: tuple[str, ...]) -> list[pd.DataFrame]:
        """The cases of the stolen model under others' claims, if any; a row a claim where these could not be examined."""
        try:
            status = field_of(read_json(folder / EVIDENCE), "status", str, folder / EVIDENCE)
        except FileNotFoundError:
            raise UserError(f"{folder / EVIDENCE} is absent: the claims have not been examined") from None
        if status != "ok":
            self.failures += [{**Place(claim, access=access)._asdict(), "status": status} for claim in claims]
        elif (folder / POOL).exists():
            self.pool = _table(folder / POOL, ["claim", "member", "access", "score"])
            return [_table(folder / CASES, [*PLACE, *ASKED])]
        return []


def _summary(folder: Path, place: Place) -> dict:
    """What a suspect's evidence says of itself. Where the job that examined all members of a role failed, so did each: what
    lies in its folder may be of another key."""
    job, own = (suspect_folder(folder, where) / EVIDENCE for where in (place._replace(member=""), place))
    for card in (job, own):
        if not card.exists():
            raise UserError(f"{card} is absent: the suspect has not been examined")
        summary = read_json(card)
        if field_of(summary, "status", str, card) != "ok":
            break
    return summary


def _calibrated_on(summary: dict, card: Path) -> dict[str, int]:
    """Access level -> how many groups its threshold was calibrated on. A clean model has none; evidence of a key from before
    that was counted knows none."""
    counts = field_of(summary, "calibrated_on", dict, card) if "calibrated_on" in summary else {}
    for level, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(
                f"{card}: field 'calibrated_on' has {count!r} for {level!r}; allowed: a whole number from 1; {REMEDY}"
            )
    return counts


def _guaranteed(calibrated_on: dict[str, int]) -> Iterator[dict]:
    """What the threshold at each access level guarantees; n counts the groups."""
    for level, groups in calibrated_on.items():
        yield {**Place(access=level)._asdict(), **metric_row("fpr_guaranteed", groups, guaranteed_fpr(groups))}


def _failures(summary: dict, card: Path) -> list[dict]:
    """The suspects that a card lists as failed: where each stands, and its status."""
    listed = field_of(summary, "failures", list, card)
    for failed in listed:
        if not (isinstance(failed, dict) and {*PLACE, "status"} <= failed.keys() and isinstance(failed["member"], str)):
            raise UserError(f"{card}: field 'failures' lists {str(failed)[:100]}; allowed: a place and a status; {REMEDY}")
    return listed


def _table(file: Path, columns: list[str]) -> pd.DataFrame:
    """A table of evidence. Raises UserError where it is absent, lacks a column, or holds what is of another kind."""
    try:
        table = read_table(file, columns)
    except FileNotFoundError:
        raise UserError(f"{file} is absent; {REMEDY}") from None
    if "foreground" not in table and any(metric in table for metric in QUALITY):
        raise UserError(f"{file} lacks the column foreground; {REMEDY}")
    numbers = [
        "strength",
        "foreground",
        "score",
        "bit_error",
        *QUALITY,
        *(f"{metric}_triggered" for metric in QUALITY),
        *DETECTED,
    ]
    for name in ("case_id", "group_id", "role", "attack", "access", "claim"):
        if name in table and not table[name].map(lambda value: isinstance(value, str)).all():
            raise UserError(f"{file}: the column {name!r} holds what is no text; {REMEDY}")
    for name in numbers:
        if name in table and not (pd.api.types.is_numeric_dtype(table[name]) or table[name].isna().all()):
            raise UserError(f"{file}: the column {name!r} holds no numbers; {REMEDY}")
    return table


def _measured(cases: pd.DataFrame) -> Iterator[dict]:
    """The metrics of one suspect at one access level, from its cases. Groups, not cases, are the units."""
    for query, suffix in (("benign", ""), ("triggered", "_triggered")):
        for metric in QUALITY:
            values = cases.get(metric + suffix)
            if values is not None and values.notna().any():
                asked = cases[values.notna() | (cases["foreground"].notna())]
                numbers = asked[metric + suffix].to_numpy()
                estimate = metrics.clustered_mean(numbers, asked["group_id"].to_numpy())
                yield {"query": query, **metric_row(metric, int(np.isfinite(numbers).sum()), *estimate)}
    if "dice" in cases and cases["dice"].notna().any():
        images = cases[cases["foreground"].notna()]
        yield metric_row("empty_masks", len(images), int((images["foreground"] == 0).sum()))
    scored = cases[cases["threshold"].notna()] if "threshold" in cases else cases[:0]
    if len(scored):
        threshold, groups = scored["threshold"].iloc[0], scored["group_id"].to_numpy()
        triggered, benign = scored["score_triggered"].to_numpy(), scored["score_benign"].to_numpy()
        hit, alarm = detect(triggered, threshold), detect(benign, threshold)
        for metric, marked in (("asr", hit), ("fnr", ~hit), ("fpr", alarm)):
            yield metric_row(metric, len(hit), *metrics.clustered_rate(marked, groups))
        yield metric_row("auroc", len(hit) + len(alarm), metrics.auroc(triggered, benign))
        confusion = np.array([[hit.sum(), (~hit).sum()], [alarm.sum(), (~alarm).sum()]])
        yield metric_row("chi2_p", len(hit) + len(alarm), metrics.chi_square(confusion))
        yield model_score(triggered, groups)


def _explained(suite: Suite, study: Study, cell: Cell) -> Iterator[tuple[pd.DataFrame, list[dict]]]:
    """Of every job: what it wrote, a line an image or a try; and the rows of it, or of its failure."""
    for place in suite.explained(cell):
        folder = suspect_folder(study.explanations(cell), place)
        try:
            summary = read_json(folder / EXPLANATIONS)
        except FileNotFoundError:
            raise UserError(f"{folder / EXPLANATIONS} is absent: the suspect has not been explained") from None
        status = field_of(summary, "status", str, folder / EXPLANATIONS)
        if status != "ok":
            yield pd.DataFrame(), [{**place._replace(access=suite.access[0])._asdict(), "status": status}]
            continue
        failed = [{**failed, "access": suite.access[0]} for failed in _failures(summary, folder / EXPLANATIONS)]
        try:
            maps = read_arrays(folder / MAPS)
        except FileNotFoundError:
            raise UserError(f"{folder / MAPS} is absent; {REMEDY}") from None
        side = len(np.atleast_1d(maps["payload"])) if "payload" in maps else 0
        table = _table(folder / CASES, [])
        if len(table):
            table = _table(folder / CASES, [*PLACE, *HOW, "group_id", "bit_error", "decoded"])
        yield table, [*failed, *_shown(table, side)]


def _shown(table: pd.DataFrame, side: int) -> Iterator[dict]:
    """Per suspect, access level and way to read: the mean share of wrong bits, and of images whose code was read; of a keyed
    hash of `side` modules a side that several images were asked for together, the p-value (`codes.chance`), of several tries
    the largest."""
    for values, cases in table.groupby([*PLACE, *HOW], sort=False, dropna=False) if len(table) else ():
        how = dict(zip([*PLACE, *HOW], values, strict=True))
        groups, wrong = cases["group_id"].to_numpy(), cases["bit_error"]
        yield {**how, **metric_row("bit_error", len(cases), *metrics.clustered_mean(wrong.to_numpy(), groups))}
        yield {**how, **metric_row("decoded", len(cases), *metrics.clustered_rate(cases["decoded"].to_numpy(), groups))}
        if how["pooled"] and (p := codes.chance(wrong.max(), side)) is not None:
            yield {**how, **metric_row("chance_p", len(cases), p)}


def _scanned(suite: Suite, study: Study) -> Iterator[dict]:
    """What scanners say of every model, and the rank of a marked one's score among those of models that were never marked."""
    for entry in suite.scanners:
        for clean in (cell for cell in suite.cells() if cell.method == CLEAN):
            scans = {}
            for cell in (cell for cell in suite.cells() if cell[:3] == clean[:3]):
                for place in suite.scanned(cell):
                    file = study.scan(cell, place.role, place.member, entry.label) / SCAN
                    try:
                        scans[cell, place] = scan = read_json(file)
                    except FileNotFoundError:
                        raise UserError(f"{file} is absent: the model has not been scanned") from None
                    if field_of(scan, "status", str, file) == "ok":
                        field_of(scan, "score", (int, float), file)
            nulls = [
                scan["score"]
                for (_, place), scan in scans.items()
                if place.role == NULL and null_kind(place.member) == NEVER_MARKED and scan["status"] == "ok"
            ]
            for (cell, place), scan in scans.items():
                row = {**cell._asdict(), **place._asdict(), "reader": entry.label}
                if scan["status"] != "ok":
                    yield {**row, "status": scan["status"]}
                    continue
                yield {**row, **metric_row("scan_score", 1, scan["score"])}
                if nulls and place.role == STOLEN:
                    yield {**row, **metric_row("scan_p", len(nulls), conformal_p(scan["score"], np.array(nulls)))}
