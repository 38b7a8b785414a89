"""Reading `rows.csv` and `cases.parquet`: every value checked before anything is computed from it."""

from pathlib import Path

import numpy as np
import pandas as pd

from stealthmark.access import LEVELS, WEIGHTS
from stealthmark.errors import UserError
from stealthmark.files import FILES, read_table, sha256_of
from stealthmark.layout import LABEL, NO_ATTACK, ROLES, STOLEN, Cell, Place
from stealthmark.metrics import CALIBRATION, SEGMENTATION, THRESHOLD_DICE

PLACE = list(Place._fields)
#: Columns that say how a metric was asked for.
ASKED = ["query", "reader", "pooled", "queries"]
COLUMNS = [
    *("suite", "benchmark_version", *Cell._fields, *PLACE, *ASKED),
    *("metric", "value", "n", "ci_low", "ci_high", "status"),
]
QUALITY = (*SEGMENTATION, *CALIBRATION)
#: The columns that hold numbers; in all others `NA` and `007` are text.
NUMBERS = ("seed", "strength", "queries", "value", "n", "ci_low", "ci_high")
#: The columns of a case that are text, and those that are numbers where they are there.
CASE_TEXT = ("dataset", "architecture", "method", "case_id", "group_id", "role", "attack", "access")
CASE_NUMBERS = (
    *(f"{name}{kind}" for name in (*QUALITY, THRESHOLD_DICE) for kind in ("", "_triggered")),
    *("score_triggered", "score_benign", "threshold"),
)
#: Columns of labels, each of which is part of a folder's name.
LABELS = ("dataset", "architecture", "method", "attack", "metric")
LARGEST = 10**9
REMEDY = "collate again"


def read_rows(file: Path, provenance: dict) -> pd.DataFrame:
    """The rows, with what they leave blank filled in. Raises UserError, one sentence, for a file that is not such a table, or
    is not the one that the provenance file names."""
    _check_sum(file, provenance)
    try:
        rows = pd.read_csv(
            file, keep_default_na=False, na_values=[""], dtype={name: str for name in COLUMNS if name not in NUMBERS}
        )
        if not isinstance(rows.index, pd.RangeIndex):  # how pandas takes a line with more fields than there are columns
            raise ValueError("a line has more fields than there are columns")
    except FileNotFoundError:
        raise UserError(f"{file} is absent: the evidence has not been collated") from None
    except (OSError, ValueError, OverflowError, MemoryError) as error:  # damaged text is a ValueError of pandas
        raise UserError(f"{file} is no table of rows: {next(iter(str(error).splitlines()), '')}; {REMEDY}") from None
    if missing := [name for name in COLUMNS if name not in rows]:
        raise UserError(f"{file} lacks the columns {', '.join(missing)}; it must have {', '.join(COLUMNS)}")
    if rows.empty:
        raise UserError(f"{file} has no rows: nothing was collated")
    _check_values(file, rows)
    return _normalised(rows)


def read_cases(file: Path, provenance: dict) -> pd.DataFrame:
    """The table of cases. Raises UserError, one sentence, as `read_rows` does."""
    _check_sum(file, provenance)
    try:
        cases = read_table(file, Cell._fields)
        if len(cases):
            cases = read_table(file, [*Cell._fields, *CASE_TEXT])
    except FileNotFoundError:
        raise UserError(f"{file} is absent: the evidence has not been collated") from None
    for name in CASE_TEXT:
        if name in cases and not cases[name].map(lambda value: isinstance(value, str)).all():
            raise UserError(f"{file}: the column {name!r} holds what is no text; {REMEDY}")
    for name in (*CASE_NUMBERS, "seed"):
        if name in cases and len(cases) and not (_is_numeric(cases[name]) or cases[name].isna().all()):
            raise UserError(f"{file}: the column {name!r} holds what is no number; {REMEDY}")
    return cases.assign(member=cases["member"].fillna("")) if "member" in cases else cases


def _check_sum(file: Path, provenance: dict) -> None:
    """Raises UserError where the provenance file names another SHA-256; those of older benchmarks name none."""
    listed = provenance.get(FILES)
    if isinstance(listed, dict) and file.name in listed and file.exists() and listed[file.name] != sha256_of(file):
        raise UserError(f"{file} has changed since it was collated: its SHA-256 is not that in the provenance file; {REMEDY}")


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _check_values(file: Path, rows: pd.DataFrame) -> None:
    """Raises UserError for the first value of a column that is none of its kind."""

    def check(name: str, is_right: pd.Series, allowed: str) -> None:
        wrong = rows[name].notna() & ~is_right
        if wrong.any():
            line = int(np.flatnonzero(wrong)[0])
            value = str(rows[name].iloc[line])[:100]
            raise UserError(f"{file}: column {name!r} has the value {value!r} in row {line + 1}; allowed: {allowed}; {REMEDY}")

    def among(name: str, *allowed: str) -> None:
        check(name, rows[name].isin(allowed), ", ".join(allowed))

    for name in NUMBERS:
        numbers = pd.to_numeric(rows[name], errors="coerce")
        check(name, numbers.notna(), "numbers")
        if name in ("seed", "queries"):
            check(
                name,
                (numbers % 1 == 0) & numbers.between(0, LARGEST if name == "queries" else 2**63),
                "whole numbers from 0 on",
            )
        if name in ("strength", "n"):
            check(name, numbers.abs() < np.inf, "finite numbers")
    for name in LABELS:
        check(name, rows[name].str.fullmatch(LABEL if name != "metric" else "[a-z0-9_]+").fillna(False), "labels")
    among("role", *ROLES)
    among("access", *LEVELS, WEIGHTS)
    check("pooled", rows["pooled"].str.lower().isin(["true", "false"]), "true, false")


def _normalised(rows: pd.DataFrame) -> pd.DataFrame:
    """Blank role and attack mean stolen and none (a failure before either); `none` has strength 0, and an attack that failed
    at strength 0 failed before its first strength: NaN. What a metric does not have is blank text, false or 0."""
    blank = {column: rows[column].fillna("") for column in ("member", "access", "query", "reader", "metric")}
    rows = rows.assign(
        **blank,
        role=rows.role.fillna(STOLEN),
        attack=rows.attack.fillna(NO_ATTACK),
        strength=pd.to_numeric(rows.strength),
        pooled=rows.pooled.str.lower() == "true",
        queries=pd.to_numeric(rows.queries).fillna(0).astype(int),
        status=rows.status.fillna("ok"),
    )
    attacked = rows.attack != NO_ATTACK
    before = attacked & (rows.status != "ok") & (rows.strength == 0)
    return rows.assign(strength=rows.strength.where(attacked, 0.0).where(~before))
