"""What is committed as results is what the committed suites and tables say, and names no machine's folders."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from stealthmark.report import facts, results
from stealthmark.suite import read

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted(folder for folder in (ROOT / "results/published").iterdir() if folder.is_dir())
in_each = pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)


def script(name: str) -> ModuleType:
    """A program of the workflow's folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"workflow/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(folder: Path) -> pd.DataFrame:
    text = dict.fromkeys(["role", "member", "attack", "access", "query", "reader", "pooled", "queries", "metric"], str)
    rows = pd.read_csv(folder / "rows.csv", dtype=text, keep_default_na=False, na_values=[""])  # the role null is no gap
    return rows.fillna(dict.fromkeys(text, ""))


def test_what_is_published_are_suites_and_the_default_one_is_among_them():
    published = {folder.name for folder in PUBLISHED}
    assert "quick" in published
    assert published <= {file.stem for file in (ROOT / "benchmarks").glob("*.yaml")}


@in_each
def test_results_are_those_of_the_committed_suite(folder: Path):
    suite = read(ROOT / f"benchmarks/{folder.name}.yaml")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["config_sha256"] == suite.digest()
    cells = set(rows_of(folder)[["dataset", "architecture", "seed", "method"]].itertuples(index=False, name=None))
    assert cells == {tuple(cell) for cell in suite.cells()}


@in_each
def test_rows_are_tidy_and_plug_ins_are_told_of(folder: Path):
    """Every row is one metric of one suspect, asked for in one way; and the report can be made of them."""
    rows = rows_of(folder)
    assert list(rows) == results.COLUMNS
    assert not rows.duplicated([name for name in results.COLUMNS if name not in ("value", "n", "ci_low", "ci_high")]).any()
    provenance = json.loads((folder / "provenance.json").read_text())
    known = facts.read(provenance)
    assert set(known.methods) == set(rows["method"]) and set(known.attacks) == set(rows["attack"]) - {"none"}
    loaded = results.load(folder / "rows.csv", folder / "cases.parquet", provenance["config"], provenance)
    assert loaded.methods[0] == "clean" and set(loaded.accesses) == set(provenance["config"]["access"])


@in_each
def test_rows_can_be_recomputed_from_the_cases(folder: Path):
    """ASR and mean Dice of every marked model as it is, from `cases.parquet` alone."""
    rows, cases = rows_of(folder), pd.read_parquet(folder / "cases.parquet")
    place = ["dataset", "architecture", "seed", "method", *results.PLACE]
    chosen = rows[(rows["metric"] == "asr") | ((rows["metric"] == "dice") & (rows["query"] == "benign"))]
    values = chosen.set_index([*place, "metric"])["value"]
    checked = 0
    for suspect, part in cases.groupby(place):
        if part["score_triggered"].notna().all():
            assert values[(*suspect, "asr")] == pytest.approx((part["score_triggered"] > part["threshold"]).mean(), abs=1e-5)
            checked += 1
        if part["dice"].notna().all():
            assert values[(*suspect, "dice")] == pytest.approx(part["dice"].mean(), abs=1e-5)
    assert checked > 0


@in_each
def test_no_folder_of_a_machine_is_named(folder: Path):
    for file in (*folder.glob("*.json"), *folder.glob("*.yaml"), folder / "report.html"):
        text = re.sub(r'base64,[^"]*"', '"', file.read_text())
        assert not re.search(r"(?<![\w.<:/])(\.\./|/(work|home|root|tmp|Users)/)", text), file


@pytest.mark.parametrize("optional", [(), ("pool.parquet",), ("pool.parquet", "explanations.parquet")], ids=len)
def test_what_a_suite_has_is_published(tmp_path, monkeypatch, optional):
    """With the claims' pool and what explanations showed, where there are any; what was published before is gone."""
    publish = script("publish")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    source, target = tmp_path / "results/some", tmp_path / "results/published/some"
    files = ("rows.csv", "cases.parquet", "suite.yaml", "report.html", "tables/main.md", "figures/overview.svg", *optional)
    for name in (*files, "models/model.safetensors", "keys/key.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "provenance.json").write_text(json.dumps({"git_dirty": False, "git_commit": "0" * 40}))
    target.mkdir(parents=True)
    (target / "explanations.parquet").write_text("of an earlier run")
    assert publish.publish("some") == target
    published = {str(file.relative_to(target)): file.read_text() for file in target.rglob("*") if file.is_file()}
    assert published.pop("provenance.json") and published == {name: name for name in files}


def test_the_readme_shows_the_published_table_of_the_default_suite():
    block = re.search(r"<!-- main table -->\n(.*?)<!-- end of main table -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block[1].strip() == (ROOT / "results/published/quick/tables/main.md").read_text().strip()


# --- older results, in the columns of today ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def migrate():
    return script("migrate")


def old_rows(*metrics: str, version: str = "0.4.0", situation: str = "stolen", **fields: str) -> pd.DataFrame:
    place = {"dataset": "d", "architecture": "a", "seed": "0", "method": "m", "attack": "none", "strength": "0"}
    values = {"value": "0.25", "n": "4", "ci_low": "", "ci_high": "", "status": "ok", "access": "label", **fields}
    lines = [{**place, **values, "situation": situation, "benchmark_version": version, "metric": metric} for metric in metrics]
    return pd.DataFrame(lines).assign(suite="s")


SUITE = {"explanations": {"queries": 512}}


@pytest.mark.parametrize(
    "old, query, reader, pooled, queries",
    [
        ("gated-qr", "trigger", "gated-qr", "false", "512"),
        ("lime", "trigger", "lime", "false", "512"),
        ("payload", "key", "in-place", "false", "512"),
        ("payload-lime", "key", "lime", "false", "512"),
        ("payload-16", "key", "in-place", "false", "16"),
        ("payload-lime-16", "key", "lime", "false", "16"),
        ("payload-pooled", "key", "in-place", "true", "512"),
        ("payload-pooled-lime-64", "key", "lime", "true", "64"),
        ("payload-wrong-key", "wrong-key", "in-place", "false", "512"),
        ("payload-no-key-lime", "no-key", "lime", "false", "512"),
        ("payload-natural", "natural", "level", "true", ""),
    ],
)
@pytest.mark.parametrize("metric", ["bit_error", "decoded", "chance_p"])
def test_an_old_way_to_explain_becomes_four_columns(migrate, metric, old, query, reader, pooled, queries):
    (row,) = migrate.migrate_rows(old_rows(f"{metric}_{old}"), SUITE).to_dict("records")
    assert (row["metric"], row["query"], row["reader"], row["pooled"], row["queries"]) == (
        metric,
        query,
        reader,
        pooled,
        queries,
    )
    assert list(row) == results.COLUMNS and row["value"] == "0.25"


def test_before_version_four_a_code_was_read_by_lime_alone(migrate):
    rows = old_rows("bit_error_payload", "bit_error_payload-pooled", "bit_error_payload-natural", version="0.3.0")
    assert migrate.migrate_rows(rows, SUITE)["reader"].tolist() == ["lime", "lime", "level"]


def test_what_was_written_twice_is_there_once(migrate):
    rows = old_rows("bit_error_payload", "bit_error_payload-16", "bit_error_payload-512", "bit_error_payload-pooled-512")
    rows["ci_low"] = ["0.1", "0.2", "0.3", "0.4"]  # of other resamples
    assert migrate.migrate_rows(rows, SUITE)["ci_low"].tolist() == ["0.1", "0.2", "0.4"]
    rows["value"] = ["0.25", "0.25", "0.5", "0.25"]
    with pytest.raises(ValueError, match="written twice and differs: 0.25, 0.5"):
        migrate.migrate_rows(rows, SUITE)


def test_quality_says_on_which_queries_it_is_measured(migrate):
    rows = migrate.migrate_rows(old_rows("dice", "hd95_triggered", "asr", "queries", "empty_masks"), {})
    expected = [("dice", "benign"), ("hd95", "triggered"), ("asr", ""), ("queries_to_verdict", ""), ("empty_masks", "")]
    assert list(rows[["metric", "query"]].itertuples(index=False, name=None)) == expected
    assert (rows[["reader", "pooled", "queries"]] == "").all(axis=None)


@pytest.mark.parametrize(
    "situation, role, member",
    [("null-3", "null", "3"), ("null-key-0", "null", "key-0"), ("null-badnets", "null", "badnets"), ("natural", "natural", "")],
)
def test_a_situation_becomes_a_role_and_a_member(migrate, situation, role, member):
    (row,) = migrate.migrate_rows(old_rows("asr", situation=situation), {}).to_dict("records")
    assert (row["role"], row["member"]) == (role, member)
    cases = pd.DataFrame({"case_id": ["c"], "situation": [situation], "attack": ["none"]})
    assert migrate.migrate_cases(cases).to_dict("list") == {
        "case_id": ["c"],
        "role": [role],
        "member": [member],
        "attack": ["none"],
    }


def test_a_failure_without_a_metric_keeps_its_place(migrate):
    rows = old_rows("", situation="independent", status="failed: no memory", value="", n="")
    (row,) = migrate.migrate_rows(rows, SUITE).to_dict("records")
    assert (row["role"], row["metric"], row["query"], row["status"]) == ("independent", "", "", "failed: no memory")


def test_a_metric_of_no_known_form_is_refused(migrate):
    with pytest.raises(ValueError, match="bit_error_payload-upside-down is no metric"):
        migrate.migrate_rows(old_rows("bit_error_payload-upside-down"), SUITE)


def test_the_pool_names_members(migrate):
    pool = pd.DataFrame({"claim": ["search"], "null": ["null-key-0"], "access": ["label"], "score": [1.0]})
    assert migrate.migrate_pool(pool).to_dict("list") == {
        "claim": ["search"],
        "member": ["key-0"],
        "access": ["label"],
        "score": [1.0],
    }


def test_old_facts_say_what_attacks_and_methods_are(migrate):
    methods = [{"name": "clean", "label": "clean"}, {"name": "stealthmark-payload", "label": "mine"}]
    attacks = [
        {"name": "finetune", "label": "frozen", "batch_norm": "frozen", "strengths": [1]},
        {"name": "prune", "label": "prune"},
    ]
    old = {"config": {"methods": methods, "attacks": attacks}, "methods": {"clean": "", "mine": "this project"}}
    known = facts.read(migrate.migrate_provenance({**old, "attacks": {"frozen": "epochs", "prune": "fraction of weights"}}))
    assert known.method("clean").kind == facts.NONE and known.method("mine").carries_code
    assert known.method("mine").citation == "this project"
    assert known.attack("frozen").title == "fine-tuning (norms frozen)" and known.attack("frozen").strength(1) == "1 epoch"
    assert known.attack("prune").strength(0.3) == "30 %" and known.attack("prune").reported == [0.1, 0.3, 0.5]
