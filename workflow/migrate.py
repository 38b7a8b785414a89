"""Results of benchmark 0.2.0 to 0.4.0 -> the columns of today: rows.csv, cases.parquet, pool.parquet and provenance.json.

python workflow/migrate.py [FOLDER ...]        (all of results/published where no folder is named)

No value, number of cases, interval or order changes. Kept until all published suites are rerun, then deleted.
"""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

ROOT = Path(__file__).parents[1]
NOTE = "rows, cases and facts of plug-ins were turned into the columns of today by workflow/migrate.py; no value changed"
COLUMNS = [
    *("suite", "benchmark_version", "dataset", "architecture", "seed", "method", "role", "member", "attack", "strength"),
    *("access", "query", "reader", "pooled", "queries", "metric", "value", "n", "ci_low", "ci_high", "status"),
]
#: What tells rows apart.
KEYS = [name for name in COLUMNS if name not in ("value", "n", "ci_low", "ci_high")]
QUALITY = ("dice", "auc", "vs", "hd95", "ece", "brier")
NULL = "null-"
STEALTHMARK = [
    {"metric": "asr", "text": "above 95 % (abstract, on SAM)"},
    {"metric": "dice", "text": "drop below 1 % (abstract, on SAM)"},
    {"metric": "auc", "text": "drop below 1 % (abstract, on SAM)"},
]
#: What the methods of these versions are, by the plug-in's name; all others are embedded marks.
METHODS = {
    "clean": {"kind": "none"},
    "continued": {"kind": "control"},
    "stealthmark": {"reported": STEALTHMARK},
    "stealthmark-payload": {"carries_code": True},
}
EPOCHS = {"unit": "epochs", "scale": 1.0, "text": "{:g} epochs"}


class Asked(NamedTuple):
    """What an old way to explain is in columns. `queries`: text, blank where nothing is hidden."""

    query: str = ""
    reader: str = ""
    pooled: str = ""
    queries: str = ""


def migrate_rows(rows: pd.DataFrame, suite: dict) -> pd.DataFrame:
    """Rows of rows.csv in today's columns; new ones are text, blank where a row has no such thing.

    suite: the study as read from its suite.yaml, which says how many queries an explanation took. A code that the mark carries
    was written twice, `payload` and `payload-<the suite's own number>`: the first is kept. ValueError where the two differ, or
    for a metric of no known form.
    """
    explained = (suite.get("explanations") or {}).get("queries", "")
    split = [_split(metric) for metric in _text(rows["metric"])]
    versions = [tuple(map(int, version.split("."))) for version in _text(rows["benchmark_version"])]
    asked = [_asked(*parts, str(explained), version < (0, 4, 0)) for parts, version in zip(split, versions, strict=True)]
    columns = {name: [getattr(row, name) for row in asked] for name in Asked._fields}
    moved = rows.assign(**_place(rows["situation"]), **columns, metric=[metric for metric, _ in split])[COLUMNS]
    again = (moved["query"] == "key") & moved.duplicated(KEYS)
    _check_same(moved, again)
    return moved[~again].reset_index(drop=True)


def _split(metric: str) -> tuple[str, str]:
    """The metric of today, and what its old name said beside it: the queries' kind, or the way to explain."""
    if explained := re.fullmatch(r"(bit_error|decoded|chance_p)_(.+)", metric):
        return explained[1], explained[2]
    if metric.removesuffix("_triggered") in QUALITY:
        return metric.removesuffix("_triggered"), "triggered" if metric.endswith("_triggered") else "benign"
    return ("queries_to_verdict" if metric == "queries" else metric), ""


def _asked(metric: str, way: str, queries: str, lime_alone: bool) -> Asked:
    """What a row was asked with. `queries`: the suite's own number. `lime_alone`: before 0.4.0 a code was read by LIME alone,
    under the name that stood for in place later."""
    if metric in QUALITY or not way:
        return Asked(query=way)
    if way in ("gated-qr", "lime"):
        return Asked("trigger", way, "false", queries)
    if way == "payload-natural":
        return Asked("natural", "level", "true", "")
    named = re.fullmatch(r"payload(?:-(wrong-key|no-key))?(-pooled)?(-lime)?(?:-(\d+))?", way)
    if not named:
        raise ValueError(f"{metric}_{way} is no metric of benchmark 0.2.0 to 0.4.0")
    reader = "lime" if named[3] or lime_alone else "in-place"
    return Asked(named[1] or "key", reader, "true" if named[2] else "false", named[4] or queries)


def _check_same(rows: pd.DataFrame, again: pd.Series) -> None:
    """Rows that are there again must say the same; their intervals are of other resamples."""
    first = rows[~again].set_index(KEYS)[["value", "n"]]
    for row in rows[again].to_dict("records"):
        said = first.loc[tuple(row[name] for name in KEYS)]
        if (said["value"], said["n"]) != (row["value"], row["n"]):
            raise ValueError(
                f"{row['metric']} of {row['method']} is written twice and differs: {said['value']}, {row['value']}"
            )


def _place(situations: pd.Series) -> dict[str, list[str]]:
    """`null-key-0` -> role null, member key-0; any other situation is the role."""
    names = _text(situations)
    return {
        "role": ["null" if name.startswith(NULL) else name for name in names],
        "member": [name.removeprefix(NULL) if name.startswith(NULL) else "" for name in names],
    }


def _text(column: pd.Series) -> list[str]:
    return column.fillna("").astype(str).tolist()


def migrate_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """Per-case scores with `role` and `member` where `situation` was."""
    order = [part for name in cases for part in (("role", "member") if name == "situation" else (name,))]
    return cases.assign(**_place(cases["situation"]))[order]


def migrate_pool(pool: pd.DataFrame) -> pd.DataFrame:
    """Scores of null models under claims, with their `member` where `null` was."""
    return pool.assign(null=pool["null"].str.removeprefix(NULL)).rename(columns={"null": "member"})


def migrate_provenance(provenance: dict) -> dict:
    """With facts of methods and attacks as plug-ins tell them today, and a note."""
    config = provenance["config"]
    methods = {entry["label"]: _method(entry, provenance["methods"][entry["label"]]) for entry in config["methods"]}
    attacks = {entry["label"]: _attack(entry) for entry in config["attacks"]}
    return {**provenance, "methods": methods, "attacks": attacks, "scanners": {}, "migrated": NOTE}


def _method(entry: dict, citation: str) -> dict:
    usual = {"name": entry["name"], "kind": "embedded", "carries_code": False, "citation": citation, "reported": []}
    return usual | METHODS.get(entry["name"], {})


def _attack(entry: dict) -> dict:
    name = entry["name"]
    frozen, labels = entry.get("batch_norm") == "frozen", entry.get("answers") == "label"
    told = {
        "finetune": {
            "title": "fine-tuning" + " (norms frozen)" * frozen,
            "axis": "epochs of fine-tuning" + ", batch norm frozen" * frozen,
            "citation": "Adi et al., Turning your weakness into a strength, USENIX Security 2018 (FTAL)",
            **EPOCHS,
        },
        "distil": {
            "title": "distillation" + " (label maps)" * labels,
            "axis": "epochs of distillation" + " from label maps" * labels,
            "citation": "Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv 1503.02531",
            **EPOCHS,
        },
        "prune": {
            "title": "pruning",
            "axis": "weights pruned (%)",
            "citation": "Han et al., Learning both weights and connections, NeurIPS 2015",
            **{"unit": "fraction of weights", "scale": 100.0, "text": "{:g} %", "reported": [0.1, 0.3, 0.5]},
        },
    }[name]
    return {"name": name, "kind": "model", "reported": [], "strengths": entry.get("strengths", []), **told}


def migrate(folder: Path) -> None:
    """Rewrite the files of one folder of results."""
    suite = json.loads((folder / "provenance.json").read_text())["config"]
    rows = pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)
    migrate_rows(rows, suite).to_csv(folder / "rows.csv", index=False, lineterminator="\n")
    migrate_cases(pd.read_parquet(folder / "cases.parquet")).to_parquet(folder / "cases.parquet", index=False)
    if (folder / "pool.parquet").exists():
        migrate_pool(pd.read_parquet(folder / "pool.parquet")).to_parquet(folder / "pool.parquet", index=False)
    provenance = migrate_provenance(json.loads((folder / "provenance.json").read_text()))
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    published = sorted(path for path in (ROOT / "results/published").iterdir() if path.is_dir())
    for results in map(Path, sys.argv[1:] or published):
        if "situation" in pd.read_csv(results / "rows.csv", nrows=0):
            migrate(results)
            print(results)
