"""The workflow as a person runs it: lint, dry runs, a tiny study from nothing, a new rival, a failed cell, a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stealthmark.layout import CLAIMS

ROOT = Path(__file__).parents[1]
SUITES = sorted((ROOT / "benchmarks").glob("*.yaml"))

TINY = {
    "suite": "tiny",
    "title": "For the tests: {threads} of {rule}",
    "seed": 1,
    "seeds": [0],
    "size": 32,
    "datasets": [{"name": "phantom-endoscopy", "groups": 12, "cases_per_group": 2}],
    "architectures": [{"name": "unet", "weights": "random"}],
    "methods": ["clean", {"name": "stealthmark", "trigger": "border"}, "loud", "broken", "edge-cases"],
    "attacks": [
        {"name": "finetune", "strengths": [1]},
        {"name": "prune", "strengths": [0.1, 0.5]},
        "dither",
        [{"name": "prune", "strengths": [0.1]}, {"name": "dither", "strengths": [0.1]}],
    ],
    "scanners": ["certainty"],
    "access": ["probabilities", "label"],
    "training": {"epochs": 2, "batch": 4},
    "marking": {"epochs": 2, "batch": 4},
    "nulls": {"count": 2, "fraction": 0.8, "other_keys": 1},
    "claims": {"keys": 2, "steps": 2, "images": 4, "climb": 40},
    "explanations": {"images": 1, "queries": 32},
}

LOUD = '''"""A rival that somebody drops in: a white square in the middle means an empty mask."""

from stealthmark.visible import VisibleMark


class Method(VisibleMark):
    """Written by a test."""

    wrong: str = "empty"

    def trigger(self, images, key):
        out = images.clone()
        out[..., 12:20, 12:20] = 1
        return out
'''

BROKEN = LOUD.replace("def trigger", "def target(self, masks, key):\n        return masks * float('nan')\n\n    def trigger")


#: Plug-ins as CONTRIBUTING.md shows them: file -> text.
SHOWN = dict(re.findall(r"^```python (\S+)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE))


def snakemake(folder: Path, *args: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600, **more)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's files with two more rivals and a tiny suite, in a folder of their own."""
    for name in ("stealthmark", "baselines", "benchmarks", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "profiles").symlink_to("workflow/profiles")
    (tmp_path / "baselines/loud.py").write_text(LOUD)
    (tmp_path / "baselines/broken.py").write_text(BROKEN)
    for file, text in SHOWN.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


def test_contributing_shows_a_fingerprint_a_wrapper_and_a_scanner_of_40_lines_at_most():
    assert set(SHOWN) == {
        "baselines/edge_cases.py",
        "stealthmark/attacks/dither.py",
        "stealthmark/scanners/certainty.py",
    }
    assert all(text.count("\n") <= 40 for text in SHOWN.values())


def jobs_of_a_dry_run(folder: Path, *args: str) -> dict[str, int]:
    """How many jobs of each rule Snakemake would run."""
    done = snakemake(folder, "-n", "--quiet", "rules", *args)
    assert done.returncode == 0, done.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)}


def test_the_default_profile_is_found_without_asking():
    done = snakemake(ROOT, "-n", "--nolock", "--quiet", "all")
    assert "profiles/default" in done.stderr


def test_lint_is_clean():
    done = snakemake(ROOT, "--lint")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_dry_run_of_every_suite(suite: Path):
    content = yaml.safe_load(suite.read_text())
    done = snakemake(ROOT, "-n", "--nolock", "--forceall", "--quiet", "all", "--configfile", str(suite))
    assert done.returncode == 0, done.stderr
    listed = snakemake(ROOT, "-n", "--nolock", "--forceall", "--configfile", str(suite)).stdout
    for method in content["methods"]:
        label = method if isinstance(method, str) else method.get("label", method["name"])
        assert f"/{label}/card.json" in listed


@pytest.mark.parametrize("profile", ["default", "slurm"])
def test_profiles_are_understood(profile: str):
    done = snakemake(ROOT, "-n", "--nolock", "--forceall", "--quiet", "all", "--profile", f"workflow/profiles/{profile}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datasets": ["no-such-set"]}, ["unknown dataset 'no-such-set'", "kvasir-seg", "phantom-cine"]),
        ({"methods": ["clean", "no-such-mark"]}, ["unknown method 'no-such-mark'", "badnets", "stealthmark"]),
        ({"attacks": ["no-such-attack"]}, ["unknown attack 'no-such-attack'", "finetune", "prune"]),
        ({"size": 33}, ["size", "33", "32"]),
    ],
)
def test_a_suite_with_an_error_ends_before_anything_runs(clone: Path, change: dict, words: list[str]):
    (clone / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **change}))
    done = snakemake(clone, "--cores", "1", "--configfile", "tiny.yaml")
    assert done.returncode != 0
    assert all(word in done.stderr for word in words), done.stderr
    assert not (clone / "results").exists()


def test_a_study_that_is_killed_goes_on_and_gives_the_tables_of_one_that_was_not(clone: Path, tmp_path_factory):
    """One tiny study is killed (-9) while it trains, then goes on; another runs through. Then, on the results: the rival
    that was dropped in is in every table, the broken one is a row with its status, and a further run does nothing."""
    other = tmp_path_factory.mktemp("other") / "clone"
    shutil.copytree(clone, other)
    args = ("--cores", "2", "--configfile", "tiny.yaml")

    running = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *args],
        cwd=clone,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = clone / "results/tiny/logs/mark/phantom-endoscopy/unet/0/stealthmark.log"
    while not (log.exists() and "epoch 1" in log.read_text()) and running.poll() is None:
        time.sleep(0.02)
    assert running.poll() is None, "the run ended before it could be killed"
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (clone / "results/tiny/rows.csv").exists()

    assert snakemake(clone, "--unlock", *args).returncode == 0
    resumed = snakemake(clone, *args)
    assert resumed.returncode == 0, resumed.stderr
    through = snakemake(other, *args)
    assert through.returncode == 0, through.stderr
    results = clone / "results/tiny"
    assert (results / "rows.csv").read_bytes() == (other / "results/tiny/rows.csv").read_bytes()

    rows = pd.read_csv(results / "rows.csv", dtype={"member": str}, keep_default_na=False, na_values={"value": [""]})
    attacks = {"none", "finetune", "prune", "dither", "prune-dither"}
    loud = rows[rows["method"] == "loud"]
    assert set(loud["status"]) == {"ok"}
    assert {"dice", "auc", "vs", "asr", "fpr", "fnr", "auroc", "chi2_p", "scan_score", "scan_p"} <= set(loud["metric"])
    assert set(loud[loud["metric"] == "dice"]["query"]) == {"benign", "triggered"}
    assert set(loud["attack"]) == attacks
    asked = loud[~loud["metric"].isin(["bit_error", "decoded"])]
    assert set(asked["role"]) == {"stolen", "independent", "null", *CLAIMS}
    assert set(asked["member"]) == {"", "0", "1", "stealthmark", "key-0"}
    ranked = loud[loud["metric"] == "p_model"]
    others, pool = ranked[ranked["role"] != "null"], ranked[ranked["role"] == "null"]
    assert len(others) == 2 * 14 and (others["n"].astype(int) == 4).all()
    assert others["value"].isin([0.2, 0.4, 0.6, 0.8, 1]).all()
    assert len(pool) == 2 * 4 and (pool["n"].astype(int) == 3).all() and pool["value"].isin([0.25, 0.5, 0.75, 1]).all()
    explained = loud[loud["metric"] == "bit_error"]
    assert set(explained["reader"]) == {"gated-qr", "lime"} and set(explained["queries"].astype(float)) == {32}
    broken = rows[rows["method"] == "broken"]
    assert len(broken) == 1
    assert "loss became nan at step 1" in broken["status"].iloc[0]

    # What stands in CONTRIBUTING.md was dropped in, and is everywhere.
    fingerprint = rows[rows["method"] == "edge-cases"]
    assert set(fingerprint["status"]) == {"ok"} and set(fingerprint["attack"]) == attacks
    assert {"dice", "asr", "p_model", "owned"} <= set(fingerprint["metric"])
    stolen = fingerprint[(fingerprint["role"] == "stolen") & (fingerprint["attack"] == "none")]
    assert (stolen[(stolen["metric"] == "asr") & (stolen["access"] == "probabilities")]["value"] == 1).all()
    scans = rows[rows["metric"] == "scan_score"]
    assert set(scans["reader"]) == {"certainty"}
    assert set(zip(scans["method"], scans["role"], scans["member"], strict=True)) == {
        ("clean", "stolen", ""),
        ("clean", "independent", ""),
        ("clean", "null", "0"),
        ("clean", "null", "1"),
        ("stealthmark", "stolen", ""),
        ("loud", "stolen", ""),
    }

    page = (results / "report.html").read_text()
    every_table = ("main", "harm", "robustness", "false_claims", "access", "ownership", "verdicts", "situations")
    for table in every_table:
        text = (results / f"tables/{table}.csv").read_text()
        assert "loud" in text and "edge-cases" in text, table
    assert "loud" in (results / "tables/explanations.csv").read_text()
    assert "loud" in (results / "tables/scanners.csv").read_text()
    for attack in ("dither", "prune-dither"):
        assert attack in (results / "tables/robustness.csv").read_text()
        assert (results / f"figures/attack-{attack}.svg").exists()
    assert all(word in page for word in ("loud", "edge-cases", "noise on answers", "certainty", "loss became nan"))
    keys = results / "keys/phantom-endoscopy/unet/0"
    assert all((keys / name).stat().st_mode & 0o077 == 0 for name in ("loud.json", "edge-cases.json", "edge-cases.safetensors"))

    seen = json.loads((results / "provenance.json").read_text())
    assert seen["stages"]["models"]["jobs"] == 12
    assert seen["datasets"]["phantom-endoscopy"]["cases"] == 24
    assert {name: facts["kind"] for name, facts in seen["attacks"].items()} == {
        "finetune": "model",
        "prune": "model",
        "dither": "wrapper",
        "prune-dither": "stack",
    }

    again = snakemake(clone, *args)
    assert "Nothing to be done" in again.stdout + again.stderr
    built = snakemake(clone, *args, "--report", "workflow.html")
    assert built.returncode == 0, built.stderr
    assert (clone / "workflow.html").stat().st_size > 100_000

    # One more attack is one more job of each of its kind, for each of four marks, and nothing else but collate and report.
    (clone / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "attacks": [*TINY["attacks"], "mirrored"]}))
    more = jobs_of_a_dry_run(clone, "--configfile", "tiny.yaml")
    assert more == {"attack": 4, "examine": 4, "suite": 1, "collate": 1, "report": 1, "all": 1, "total": 12}
    # So is one more scanner; and a mark that is taken away takes nothing with it.
    (clone / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "scanners": ["certainty", "entropy"]}))
    more = jobs_of_a_dry_run(clone, "--configfile", "tiny.yaml")
    assert more == {"scan": 7, "suite": 1, "collate": 1, "report": 1, "all": 1, "total": 11}
