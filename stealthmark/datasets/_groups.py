"""Which images belong to one patient: the file `groups.csv`."""

import csv
from collections.abc import Iterable
from pathlib import Path

from stealthmark.errors import UserError


def read_groups(file: Path, cases: Iterable[str]) -> dict[str, str]:
    """case_id -> group_id from a CSV with exactly these columns; both are text, whatever they look like.

    Raises UserError for other columns, an empty field, and a case_id that is unknown, missing or given twice.
    """
    cases = set(cases)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            if set(rows.fieldnames or ()) != {"case_id", "group_id"}:
                raise UserError(f"{file} has the columns {rows.fieldnames or 'none'}; expected: case_id, group_id")
            groups: dict[str, str] = {}
            for row in rows:
                where = f"{file}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: two fields are expected, case_id and group_id")
                case, group = row["case_id"].strip(), row["group_id"].strip()
                if case not in cases:
                    raise UserError(f"{where}: the case_id {case!r} is no image's stem")
                if case in groups:
                    raise UserError(f"{where}: the case_id {case!r} occurs a second time")
                if not group:
                    raise UserError(f"{where}: the group_id of {case!r} is empty")
                groups[case] = group
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}") from None
    if missing := sorted(cases - groups.keys()):
        raise UserError(f"{file} gives no group for the case_id {missing[0]!r} ({len(missing)} such)")
    return groups
