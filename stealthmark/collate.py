"""Evidence of all runs -> rows: per-case scores become the tidy table from which every table and figure is made."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stealthmark import codes, metrics
from stealthmark.architecture import write_json
from stealthmark.claims import NAMES
from stealthmark.errors import UserError
from stealthmark.evidence import conformal_p, detect, holm, inside_p, owned
from stealthmark.plugin import make
from stealthmark.plugins import load
from stealthmark.seeds import derive
from stealthmark.stages import CASES, EVIDENCE, EXPLANATIONS, MAPS, NULL, POOL
from stealthmark.suite import BENCHMARK_VERSION, Cell, Suite

QUALITY = (*metrics.SEGMENTATION, *metrics.CALIBRATION)
PLACE = ["situation", "attack", "strength", "access"]
#: What of a case a detector has to do with.
DETECTED = ["score_triggered", "score_benign", "threshold"]
COLUMNS = [
    *("suite", "benchmark_version", "dataset", "architecture", "seed", "method", *PLACE),
    *("metric", "value", "n", "ci_low", "ci_high", "status"),
]
PACKAGES = [
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "snakemake",
    "matplotlib",
    "captum",
    "segno",
    "zxing-cpp",
]


def cell_folder(results: Path, stage: str, cell: Cell) -> Path:
    """Where a stage keeps what belongs to a cell."""
    return results / stage / cell.dataset / cell.architecture / str(cell.seed) / cell.method


def collate(suite: Suite, results: Path) -> None:
    """Write `rows.csv`, `cases.parquet` and `provenance.json` into the suite's folder of results; with claims `pool.parquet`.

    A cell that failed becomes one row with its status. Raises UserError when a cell has not been examined at all.
    """
    rows: list[dict] = []
    tables: list[pd.DataFrame] = []
    pools: list[pd.DataFrame] = []
    others = {f"{NULL}{entry.label}" for entry in suite.methods}
    for cell in suite.cells():
        folder = cell_folder(results, "evidence", cell)
        try:
            summary = json.loads((folder / EVIDENCE).read_text())
        except FileNotFoundError:
            raise UserError(f"{folder / EVIDENCE} is absent: the cell has not been examined") from None
        place = {"situation": "stolen", "attack": "none", "strength": 0.0, "access": suite.access[0]}
        failures = summary.get("failures", [{"status": summary["status"]}])
        # Another method's mark that failed has a row of its own; here the pool is one smaller, and says so.
        failures = [failure for failure in failures if failure.get("situation") not in others]
        rows += [{**cell._asdict(), **place, **failure} for failure in failures]
        if (folder / CASES).exists() and summary["status"] == "ok":
            method = make("method", suite.entry("method", cell.method).options())
            table = pd.read_parquet(folder / CASES).assign(**cell._asdict())
            if not method.marks:  # its detector was fitted where there is nothing to tell apart
                table = table.drop(columns=DETECTED, errors="ignore")
            tables.append(table)
            for values, cases in table.groupby(PLACE, sort=False):
                here = {**cell._asdict(), **dict(zip(PLACE, values, strict=True))}
                rows += [{**here, **row, "status": "ok"} for row in _rows(cases, derive(suite.seed, "bootstrap", *cell))]
            if method.marks:
                judged = _judged(table, folder / POOL, method.asks)
                rows += [{**cell._asdict(), **row, "status": "ok"} for row in judged]
            if suite.claims and (folder / POOL).exists():
                pools.append(pd.read_parquet(folder / POOL).assign(**cell._asdict()))
        if suite.explanations and cell.method != "clean" and summary["status"] == "ok":
            rows += [{**cell._asdict(), **row} for row in _explained(suite, cell_folder(results, "explanations", cell), place)]
    frame = pd.DataFrame(rows).assign(suite=suite.suite, benchmark_version=BENCHMARK_VERSION)
    results.mkdir(parents=True, exist_ok=True)
    frame.reindex(columns=COLUMNS).to_csv(results / "rows.csv", index=False, float_format="%.6g", lineterminator="\n")
    order = list(Cell._fields)
    cases = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=order)
    cases[order + [c for c in cases if c not in order]].to_parquet(results / CASES, index=False)
    if pools:
        pd.concat(pools, ignore_index=True).to_parquet(results / POOL, index=False)
    write_json(results / "provenance.json", provenance(suite, results))


def _rows(cases: pd.DataFrame, seed: int) -> list[dict]:
    """The metrics of one suspect at one access level, from its cases. Groups, not cases, are resampled."""
    groups = cases["group_id"].to_numpy()
    rows = []

    def row(metric: str, value: float, n: int, low: float = np.nan, high: float = np.nan) -> None:
        rows.append({"metric": metric, "value": value, "n": n, "ci_low": low, "ci_high": high})

    for metric in (f"{name}{suffix}" for suffix in ("", "_triggered") for name in QUALITY):
        if metric in cases and cases[metric].notna().any():
            values = cases[metric].to_numpy()
            row(metric, *_reorder(metrics.clustered_mean(values, groups, seed), int(np.isfinite(values).sum())))
    if "dice" in cases and cases["dice"].notna().any():
        row("empty_masks", int((cases["foreground"] == 0).sum()), len(cases))
    if "threshold" in cases and cases["threshold"].notna().any():
        threshold = cases["threshold"].iloc[0]
        triggered, benign = cases["score_triggered"].to_numpy(), cases["score_benign"].to_numpy()
        hit, alarm = detect(triggered, threshold), detect(benign, threshold)
        row("asr", *_reorder(metrics.clustered_rate(hit, groups), len(hit)))
        row("fnr", *_reorder(metrics.clustered_rate(~hit, groups), len(hit)))
        row("fpr", *_reorder(metrics.clustered_rate(alarm, groups), len(alarm)))
        row("auroc", metrics.auroc(triggered, benign), len(hit) + len(alarm))
        confusion = np.array([[hit.sum(), (~hit).sum()], [alarm.sum(), (~alarm).sum()]])
        row("chi2_p", metrics.chi_square(confusion), len(hit) + len(alarm))
    return rows


def _judged(cases: pd.DataFrame, pool_file: Path, asks: int = 2) -> list[dict]:
    """Where there are null models: whose model each suspect is, at each access level, as rows.

    `p_model`: the suspect's rank among the null models (their unit is the model, its score the mean over the triggered
    queries), which were queried as the suspect was. `p_inside`: that the trigger makes the difference (Holm-adjusted over
    the attacks on a stolen model). `owned`: the verdict, 1 or 0; of a null model too, ranked among the others. `queries`: the
    fewest queries that give the verdict on the model as it was stolen, and every larger number too, where an image takes
    `asks`. `tpr_5`, `tpr_1`: the stolen model's triggered queries above the score that 5 % and 1 % of the null models'
    triggered queries exceed.
    """
    null = cases["situation"].str.startswith(NULL)
    if not null.any():
        return []
    claimed = pd.read_parquet(pool_file) if pool_file.exists() else None
    rows = []
    for level, here in cases.groupby("access", sort=False):
        suspects = {place: part for place, part in here.groupby(PLACE, sort=False)}
        nulls = {place: float(part["score_triggered"].mean()) for place, part in suspects.items() if place[0].startswith(NULL)}
        pool = np.array(list(nulls.values()))
        inside = {place: _inside(part) for place, part in suspects.items()}
        stolen = [place for place in suspects if place[0] == "stolen"]
        inside |= dict(zip(stolen, holm([inside[place] for place in stolen]), strict=True))
        for place, part in suspects.items():
            among = pool
            if place in nulls:
                among = np.delete(pool, list(nulls).index(place))
            elif claimed is not None and place[0] in NAMES:
                among = claimed[(claimed["claim"] == place[0]) & (claimed["access"] == level)]["score"].to_numpy()
            p = conformal_p(float(part["score_triggered"].mean()), among)
            told = {"p_model": p, "p_inside": inside[place], "owned": float(owned(p, inside[place]))}
            if place[:2] == ("stolen", "none"):
                told |= _reached(part, here[here["situation"].str.startswith(NULL)], len(stolen), asks)
            rows += [
                {**dict(zip(PLACE, place, strict=True)), "metric": m, "value": v, "n": len(among)} for m, v in told.items()
            ]
    return rows


def _inside(part: pd.DataFrame) -> float:
    hit, alarm = (detect(part[f"score_{kind}"].to_numpy(), part["threshold"].to_numpy()) for kind in ("triggered", "benign"))
    return inside_p(hit, alarm, part["group_id"].to_numpy())


def _reached(part: pd.DataFrame, nulls: pd.DataFrame, family: int, asks: int) -> dict[str, float]:
    """`queries`, `tpr_5` and `tpr_1` of one suspect among null models; `family` p-values inside it are adjusted for, and an
    image takes `asks` queries."""
    told = {}
    for percent in (5, 1):
        threshold = np.quantile(nulls["score_triggered"], 1 - percent / 100, method="higher")
        told[f"tpr_{percent}"] = float((part["score_triggered"] > threshold).mean())
    # One image of every patient first, then the second of each: in the order in which an owner would best ask.
    order = part.groupby("group_id").cumcount().sort_values(kind="stable").index
    own = part.loc[order].reset_index(drop=True)
    others = nulls.pivot(index=PLACE, columns="case_id", values="score_triggered")[own["case_id"]].to_numpy()
    n = np.arange(1, len(own) + 1)
    scores, pools = np.cumsum(own["score_triggered"]) / n, np.cumsum(others, axis=1) / n
    fewest = np.nan
    for k in reversed(n):
        if not owned(conformal_p(scores[k - 1], pools[:, k - 1]), min(1.0, family * _inside(own[:k]))):
            break
        fewest = asks * k
    return told | {"queries": fewest}


def _explained(suite: Suite, folder: Path, place: dict) -> list[dict]:
    """Per suspect, access level and way to explain: the mean share of wrong bits, and of images whose code was read; of a keyed
    hash that several images were asked for together, the p-value (`codes.chance`), of several tries the largest."""
    try:
        summary = json.loads((folder / EXPLANATIONS).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder / EXPLANATIONS} is absent: the cell has not been explained") from None
    if summary["status"] != "ok":
        return [{**place, "status": summary["status"]}]
    rows = [{**place, **failure} for failure in summary["failures"]]
    with np.load(folder / MAPS, allow_pickle=False) as maps:
        side = len(maps["payload"]) if "payload" in maps else 0
    for values, cases in pd.read_parquet(folder / CASES).groupby([*PLACE, "way"], sort=False):
        *here, way = values
        groups = cases["group_id"].to_numpy()
        error = metrics.clustered_mean(cases["bit_error"].to_numpy(), groups, derive(suite.seed, "bootstrap", way))
        decoded = metrics.clustered_rate(cases["decoded"].to_numpy(), groups)
        found = {f"bit_error_{way}": error, f"decoded_{way}": decoded}
        together = way.startswith(("payload-pooled", "payload-natural"))
        if together and (p := codes.chance(cases["bit_error"].max(), side)) is not None:
            found[f"chance_p_{way}"] = (p, np.nan, np.nan)
        for metric, (value, low, high) in found.items():
            told = {"metric": metric, "value": value, "n": len(cases), "ci_low": low, "ci_high": high, "status": "ok"}
            rows.append({**dict(zip(PLACE, here, strict=True)), **told})
    return rows


def _reorder(estimate: tuple[float, float, float], n: int) -> tuple[float, int, float, float]:
    value, low, high = estimate
    return value, n, low, high


def provenance(suite: Suite, results: Path) -> dict:
    """What the tables rest on: code, configuration, data, packages, machine, time and the command of every cell."""
    datasets = {
        entry.label: json.loads((results / "data" / entry.label / "manifest.json").read_text()) for entry in suite.datasets
    }
    return {
        "suite": suite.suite,
        "benchmark_version": BENCHMARK_VERSION,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "config_sha256": suite.digest(),
        "config": suite.model_dump(mode="json"),
        "datasets": datasets,
        "methods": {entry.label: load("method", entry.name).citation for entry in suite.methods},
        "attacks": {entry.label: load("attack", entry.name).unit for entry in suite.attacks},
        "packages": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": _hardware(),
        "stages": _stages(results),
        "commands": {
            "/".join(map(str, cell)): _run(cell_folder(results, "evidence", cell)).get("command", "") for cell in suite.cells()
        },
    }


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _hardware() -> dict:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}


def _stages(results: Path) -> dict[str, dict[str, float]]:
    """Per stage's folder: jobs, seconds in all and the largest job's memory in MB, from the `run.json` files."""
    stages = {}
    for stage in ("data", "models", "suspects", "evidence", "explanations"):
        runs = [_run(file.parent) for file in sorted((results / stage).rglob("run.json"))]
        stages[stage] = {
            "jobs": len(runs),
            "seconds": round(sum(run["seconds"] for run in runs), 1),
            "peak_mb": max((run["peak_mb"] for run in runs), default=0),
        }
    return stages


def _run(folder: Path) -> dict:
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.exists() else {}
