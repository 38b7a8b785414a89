"""Provenance: what a study's tables rest on."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from stealthmark.errors import UserError
from stealthmark.files import field_of, read_json
from stealthmark.layout import MANIFEST, RUN, Study, suspect_folder
from stealthmark.suite import BENCHMARK_VERSION, Suite

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
    "seaborn",
    "captum",
    "segno",
    "zxing-cpp",
]


def provenance(suite: Suite, results: Path) -> dict:
    """Code, configuration, data, packages, machine, time and the command of every suspect; and what the plug-ins say of
    themselves, which is all that tables and figures know of them."""
    study = Study(results)
    datasets = {entry.label: _manifest(study.data(entry.label) / MANIFEST) for entry in suite.datasets}
    # Members of the null pool are examined by one command.
    commands = {
        "/".join(map(str, (*cell, place.text))): _run(suspect_folder(study.evidence(cell), place))
        for cell in suite.cells()
        for place in dict.fromkeys(place._replace(member="") for place in suite.line_up(cell))
    }
    return {
        "suite": suite.suite,
        "benchmark_version": BENCHMARK_VERSION,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "config_sha256": suite.digest(),
        "config": suite.model_dump(mode="json"),
        "datasets": datasets,
        **{
            f"{kind}s": {entry.label: suite.facts(kind, entry.label) for entry in getattr(suite, f"{kind}s")}
            for kind in ("method", "attack", "scanner")
        },
        "packages": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": _hardware(),
        "stages": _stages(results),
        "commands": {name: run.get("command", "") for name, run in commands.items()},
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
    gpus = []
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        gpus = listed.stdout.split("\n")[:-1] if listed.returncode == 0 else []
    return {"cpu": model, "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}


def _manifest(file: Path) -> dict:
    try:
        return read_json(file)
    except FileNotFoundError:
        raise UserError(f"{file} is absent: the dataset has not been prepared") from None


def _stages(results: Path) -> dict[str, dict[str, float]]:
    """Per stage's folder: jobs, seconds in all and the largest job's memory in MB, from the `run.json` files."""
    stages = {}
    for stage in ("data", "models", "suspects", "evidence", "explanations", "scans"):
        folders = [file.parent for file in sorted((results / stage).rglob(RUN))]
        runs = [_run(folder) for folder in folders]
        for folder, run in zip(folders, runs, strict=True):
            for name in ("seconds", "peak_mb"):
                field_of(run, name, (int, float), folder / RUN)
        stages[stage] = {
            "jobs": len(runs),
            "seconds": round(sum(run["seconds"] for run in runs), 1),
            "peak_mb": max((run["peak_mb"] for run in runs), default=0),
        }
    return stages


def _run(folder: Path) -> dict:
    """The note of a run; empty where there is none."""
    try:
        return read_json(folder / RUN)
    except FileNotFoundError:
        return {}
