"""What is committed as results is what the committed suites and tables say, and names no machine's folders."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from stealthmark.suite import read

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted(folder for folder in (ROOT / "results/published").iterdir() if folder.is_dir())
every = pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)


def test_what_is_published_are_suites_and_the_default_one_is_among_them():
    published = {folder.name for folder in PUBLISHED}
    assert "quick" in published
    assert published <= {file.stem for file in (ROOT / "benchmarks").glob("*.yaml")}


@every
def test_results_are_those_of_the_committed_suite(folder: Path):
    suite = read(ROOT / f"benchmarks/{folder.name}.yaml")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["config_sha256"] == suite.digest()
    rows = pd.read_csv(folder / "rows.csv")
    cells = set(rows[["dataset", "architecture", "seed", "method"]].itertuples(index=False, name=None))
    assert cells == {tuple(cell) for cell in suite.cells()}


@every
def test_rows_can_be_recomputed_from_the_cases(folder: Path):
    """ASR and mean Dice of every marked model as it is, from `cases.parquet` alone."""
    rows, cases = pd.read_csv(folder / "rows.csv"), pd.read_parquet(folder / "cases.parquet")
    place = ["dataset", "architecture", "seed", "method", "situation", "attack", "strength", "access"]
    told = rows[rows["metric"].isin(["asr", "dice"])].set_index([*place, "metric"])["value"]
    checked = 0
    for values, here in cases.groupby(place):
        if here["score_triggered"].notna().all():
            assert told[(*values, "asr")] == pytest.approx((here["score_triggered"] > here["threshold"]).mean(), abs=1e-5)
            checked += 1
        if here["dice"].notna().all():
            assert told[(*values, "dice")] == pytest.approx(here["dice"].mean(), abs=1e-5)
    assert checked > 0


@every
def test_no_folder_of_a_machine_is_named(folder: Path):
    for file in (*folder.glob("*.json"), *folder.glob("*.yaml"), folder / "report.html"):
        text = re.sub(r'base64,[^"]*"', '"', file.read_text())
        assert not re.search(r"(?<![\w<.:/])(\.\./|/(work|home|root|tmp|Users)/)", text), file


def test_the_readme_shows_the_published_table_of_the_default_suite():
    shown = re.search(r"<!-- main table -->\n(.*?)<!-- end of main table -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown[1].strip() == (ROOT / "results/published/quick/tables/main.md").read_text().strip()
