"""Collate: the evidence of a study with a method of every kind becomes rows that say one thing a column."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml

from stealthmark import dataset
from stealthmark import suite as suites
from stealthmark.collate import collate
from stealthmark.errors import UserError
from stealthmark.evidence import conformal_p
from stealthmark.files import sha256_of, write_json
from stealthmark.layout import (
    CARD,
    CASES,
    CLAIMS,
    EVIDENCE,
    POOL,
    PROVENANCE,
    ROLES,
    ROWS,
    SCAN,
    SUITE,
    TRIES,
    Cell,
    Place,
    Study,
    claims_folder,
    job_folder,
    suspect_folder,
)
from stealthmark.plugin import make

JPEG = {"name": "jpeg", "strengths": [20, 60]}
CONTENT = {
    **{"suite": "tiny", "title": "For tests", "seed": 1, "seeds": [0], "size": tiny.SIZE},
    **{"datasets": [tiny.PHANTOM], "architectures": [tiny.NETWORK], "access": ["probabilities", "label"]},
    "methods": ["clean", "badnets", "continued", tiny.FINGERPRINT, tiny.WHITE_BOX],
    "attacks": [
        {"name": "prune", "strengths": [0.2, 0.5]},
        [
            {"name": "prune", "strengths": [0.5]},
            {"name": "finetune", "strengths": [1]},
            {"name": "jpeg", "strengths": [20, 60]},
        ],
    ],
    "scanners": [{"name": "entropy", "pairs": 8}],
    **{"training": {"epochs": 1, "batch": 4}, "marking": {"epochs": 1, "batch": 4}},
    **{"nulls": {"count": 2, "other_keys": 1}, "claims": {"keys": 2, "steps": 2, "images": 4, "climb": 40}},
}
STACK = "prune-finetune-jpeg"
COLUMNS = [
    *("suite", "benchmark_version", "dataset", "architecture", "seed", "method", "role", "member", "attack", "strength"),
    *("access", "query", "reader", "pooled", "queries", "metric", "value", "n", "ci_low", "ci_high", "status"),
]
QUALITY = ["dice", "auc", "vs", "hd95", "threshold_dice", "ece", "brier"]
JUDGED = ["asr", "fnr", "fpr", "auroc", "chi2_p"]


def cell(method: str) -> Cell:
    return Cell("phantom-endoscopy", "small-net", 0, method)


def read(results: Path) -> pd.DataFrame:
    """The rows, with blank texts blank. (What pandas takes for nothing by itself includes the role `null`.)"""
    texts = ["role", "member", "attack", "access", "query", "reader", "status"]
    rows = pd.read_csv(results / ROWS, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(texts, str))
    return rows.fillna(dict.fromkeys(texts, ""))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Path]:
    results = tmp_path_factory.mktemp("collate")
    with tiny.known_plugins():
        collate(tiny.study(CONTENT, results), results)
        yield results


@pytest.fixture
def changed(study, tmp_path) -> Path:
    """A copy of the study, without models, to spoil."""
    results = tmp_path / "changed"
    shutil.copytree(study, results, ignore=shutil.ignore_patterns("*.safetensors", "*.npz"))
    return results


def collated(results: Path) -> pd.DataFrame:
    collate(suites.read(results / SUITE), results)
    return read(results)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_columns_of_a_row(study):
    rows = read(study)
    assert rows.columns.tolist() == COLUMNS
    assert set(rows.role) <= set(ROLES) and set(rows.status) == {"ok"} and rows.value.notna().mean() > 0.9
    assert set(rows.access) == {"probabilities", "label", "weights", ""}
    assert set(rows["query"]) == {"", "benign", "triggered"} and set(rows.reader) == {"", "entropy"}
    assert rows.pooled.isna().all() and rows.queries.isna().all(), "nothing was explained"
    assert set(rows[rows.member != ""].role) == {"null"} and (rows[rows.role == "null"].member != "").all()
    where = [*COLUMNS[2:16]]
    assert not rows.duplicated(where).any(), "a value stands twice"


def test_rows_are_written_alike_every_time(study, changed):
    before = (changed / ROWS).read_bytes()
    collated(changed)
    assert (changed / ROWS).read_bytes() == before


@pytest.mark.parametrize(
    "method, members",
    [
        ("badnets", ["0", "1", "continued", "weight-bits", "key-0"]),
        ("weight-bits", ["0", "1", "badnets", "continued", "key-0"]),
        ("reference-answers", ["0", "1"]),
        ("continued", []),
        ("clean", []),
    ],
)
def test_every_suspect_of_a_cell_has_rows(study, method, members):
    rows = read(study)
    rows = rows[(rows.method == method) & (rows.reader == "")]
    attacked = {("stolen", "", "prune", s) for s in (0.2, 0.5)} | {("stolen", "", STACK, s) for s in (20, 60)}
    alone = method in ("clean", "continued")
    places = {("stolen", "", "none", 0), *(() if alone else attacked | {("independent", "", "none", 0)})}
    places |= {("null", member, "none", 0) for member in members}
    claims = {"badnets": CLAIMS, "reference-answers": ("wrong-key", "search", "climb")}.get(method, ())
    places |= {(claim, "", "none", 0) for claim in claims}
    assert set(rows[["role", "member", "attack", "strength"]].itertuples(index=False, name=None)) == places


@pytest.mark.parametrize(
    "method, queries", [("clean", {"benign"}), ("badnets", {"benign", "triggered"}), ("weight-bits", {"benign"})]
)
def test_quality_says_on_which_images(study, method, queries):
    rows = read(study)
    quality = rows[(rows.method == method) & rows.metric.isin(QUALITY)]
    assert set(quality["query"]) == queries and set(quality.access) == {"probabilities"}
    assert not set(quality.role) - {"stolen", "independent"}
    others = rows[~rows.metric.isin([*quality.metric.unique(), "scan_score", "scan_p"])]
    assert (others["query"] == "").all()


def test_a_row_is_the_mean_of_the_cases_that_it_came_from(study):
    rows = read(study)
    for method, attack, strength in (("badnets", "none", 0), ("badnets", STACK, 60), ("reference-answers", "prune", 0.5)):
        cases = pd.read_parquet(suspect_folder(Study(study).evidence(cell(method)), Place(attack=attack)) / CASES)
        cases = cases[(cases.strength == strength) & (cases.access == "probabilities")]
        of_place = rows[
            (rows.method == method) & (rows.role == "stolen") & (rows.attack == attack) & (rows.strength == strength)
        ]
        of_place = of_place[of_place.access == "probabilities"].set_index(["metric", "query"]).value
        for metric in ("dice", "threshold_dice"):
            assert of_place[metric, "benign"] == pytest.approx(cases[metric].mean(), rel=1e-5)
            if method == "badnets":
                assert of_place[metric, "triggered"] == pytest.approx(cases[f"{metric}_triggered"].mean(), rel=1e-5)
        assert of_place["score", ""] == pytest.approx(cases.score_triggered.mean(), rel=1e-5)
        asr = (cases.score_triggered > cases.threshold)[cases.threshold.notna()].mean()
        assert of_place["asr", ""] == pytest.approx(asr, abs=1e-5)


def test_of_a_control_nothing_is_judged(study):
    rows = read(study)
    control = rows[rows.method == "continued"]
    assert set(control.metric) == {*QUALITY, "empty_masks"} and set(control["query"]) == {"benign", "triggered", ""}


def test_every_model_that_is_asked_has_a_score(study):
    """Null models and claims too: the mean over its triggered queries, with the number of patients."""
    rows = read(study)
    asked = ["method", "role", "member", "attack", "strength", "access"]
    scores, rates = (rows[rows.metric == metric].set_index(asked) for metric in ("score", "asr"))
    assert set(scores.index) == set(rates.index) and {"null", *CLAIMS} <= set(scores.reset_index().role)
    of_images = scores.loc["badnets"]
    assert (of_images.n == 3).all() and (of_images.ci_low <= of_images.value).all()
    assert (of_images.value <= of_images.ci_high).all()
    assert (scores.loc["reference-answers"].n == 12).all(), "its questions belong to no patient"


def test_what_a_threshold_guarantees(study, changed):
    """Of three patients in the calibration share: 1/4. Twelve questions of the method's own: 1/13."""
    rows = read(study)
    rows = rows[rows.metric == "fpr_guaranteed"]
    assert set(rows.role) == {"stolen"} and set(rows.attack) == {"none"}
    rows = rows.set_index(["method", "access"])
    groups = dataset.load(Study(study).data("phantom-endoscopy")).share("calibration").cases.group_id.nunique()
    bits = make("method", tiny.WHITE_BOX).bits
    expected = {("badnets", level): groups for level in ("probabilities", "label")}
    expected |= {("reference-answers", level): 12 for level in ("probabilities", "label")} | {("weight-bits", "weights"): bits}
    assert rows.n.astype(int).to_dict() == expected
    assert rows.value.to_dict() == pytest.approx({how: max(0.025, 1 / (n + 1)) for how, n in expected.items()}, rel=1e-5)
    card = suspect_folder(Study(changed).evidence(cell("badnets")), Place()) / EVIDENCE
    content = {name: value for name, value in json.loads(card.read_text()).items() if name != "seal"}
    write_json(card, {**content, "calibrated_on": {"label": "many"}})
    with pytest.raises(UserError, match="'calibrated_on' has 'many' for 'label'; allowed: a whole number from 1"):
        collated(changed)


def test_ranks_among_models_that_were_never_marked(study):
    """A control carries no mark, so it counts; what other methods and other owners marked does not."""
    rows = read(study)
    rows = rows[(rows.metric == "p_unmarked") & (rows.access == "probabilities")].set_index(["method", "role", "member"])
    assert (rows.loc["badnets", "stolen", ""].n == 3).all(), "0, 1 and continued"
    assert {member: rows.loc["badnets", "null", member].n for member in ("0", "continued", "weight-bits", "key-0")} == {
        **{"0": 2, "continued": 2},
        **{"weight-bits": 3, "key-0": 3},
    }
    assert (rows.loc["reference-answers", "stolen", ""].n == 2).all()


def test_the_separation_from_null_models_is_that_of_the_cases(study):
    rows, cases = read(study), pd.read_parquet(study / CASES)
    rows = rows[rows.metric == "auroc_null"]
    assert set(rows.role) == {"stolen"} and set(rows.method) == {"badnets", "reference-answers", "weight-bits"}
    assert set(rows.attack) == {"none", "prune", STACK}
    row = rows[(rows.method == "badnets") & (rows.attack == STACK) & (rows.strength == 60) & (rows.access == "label")].iloc[0]
    asked = cases[(cases.method == "badnets") & (cases.access == "label")]
    stolen = asked[(asked.role == "stolen") & (asked.attack == STACK) & (asked.strength == 60)].score_triggered.to_numpy()
    nulls = asked[asked.role == "null"].score_triggered.to_numpy()
    pairs = [(a > b) + 0.5 * (a == b) for a in stolen for b in nulls]
    assert row.value == pytest.approx(np.mean(pairs), rel=1e-5) and row.n == len(stolen) + len(nulls)


def test_the_rows_of_a_fingerprint(study):
    rows = read(study)
    rows = rows[rows.method == "reference-answers"]
    assert set(rows.access) == {"probabilities", "label"}
    judged = rows[rows.metric.isin(JUDGED)]
    asked = judged[["role", "member", "attack", "strength"]].drop_duplicates()
    assert len(asked) == 1 + 4 + 1 + 2 + 3 and len(judged) == 2 * len(JUDGED) * len(asked)
    assert (judged[judged.metric == "asr"].n == 12).all(), "its own questions"
    stolen = rows[(rows.role == "stolen") & (rows.attack == "none")].set_index(["access", "metric"])
    assert stolen.value["probabilities", "asr"] == 1, "the model is the very one that it was taken from"
    assert (
        stolen.value["probabilities", "p_model"] == pytest.approx(1 / 3, rel=1e-5) and stolen.n["probabilities", "p_model"] == 2
    )
    assert {"owned", "tpr_5", "tpr_1", "queries_to_verdict"} <= set(stolen.loc["probabilities"].index)
    clean = read(study)
    dice = clean[(clean.metric == "dice") & (clean.role == "stolen") & (clean.attack == "none") & (clean["query"] == "benign")]
    of = dice.set_index("method").value
    assert of["reference-answers"] == of["clean"], "nothing was trained"


def test_the_rows_of_a_white_box_mark(study):
    rows = read(study)
    rows = rows[rows.method == "weight-bits"]
    judged = rows[rows.metric.isin([*JUDGED, "p_model", "p_inside", "owned", "tpr_5", "tpr_1", "queries_to_verdict"])]
    assert set(judged.access) == {"weights"} and set(rows[rows.access != "weights"].metric) >= {"dice", "scan_score"}
    assert {"stolen", "independent", "null"} == set(judged.role)
    ranked = rows[(rows.metric == "p_model") & (rows.role == "stolen")]
    assert (ranked.n == 5).all() and ranked.value.between(1 / 6 - 1e-6, 1).all()


def test_verdicts_are_ranks_in_the_pool(study):
    rows = read(study)
    evidence = Study(study).evidence(cell("badnets"))
    means = {}
    for place in suites.read(study / SUITE).line_up(cell("badnets")):
        table = pd.read_parquet(suspect_folder(evidence, place) / CASES)
        for (strength, level), cases in table.groupby(["strength", "access"]):
            means[place.role, place.member, place.attack, strength, level] = cases.score_triggered.mean()
    for level in ("probabilities", "label"):
        pool = np.array([mean for (role, *_, at), mean in means.items() if role == "null" and at == level])
        ranked = rows[(rows.method == "badnets") & (rows.metric == "p_model") & (rows.access == level)]
        for row in ranked[ranked.role.isin(["stolen", "independent"])].itertuples():
            mean = means[row.role, row.member, row.attack, row.strength, level]
            assert row.value == pytest.approx(conformal_p(mean, pool), rel=1e-5) and row.n == 5
        assert (ranked[ranked.role == "null"].n == 4).all() and (ranked[ranked.role.isin(CLAIMS)].n == 5).all()


def test_the_rows_of_a_scanner(study):
    rows = read(study)
    scanned = rows[rows.reader == "entropy"]
    assert set(scanned.metric) == {"scan_score", "scan_p"} and (scanned.access == "").all() and (scanned["query"] == "").all()
    scores = scanned[scanned.metric == "scan_score"]
    assert set(scores[["method", "role", "member"]].itertuples(index=False, name=None)) == {
        *(("clean", "stolen", ""), ("clean", "independent", ""), ("clean", "null", "0"), ("clean", "null", "1")),
        *(("badnets", "stolen", ""), ("weight-bits", "stolen", "")),
    }
    assert (scores.attack == "none").all() and (scores.n == 1).all()
    nulls = scores[scores.role == "null"].value.to_numpy()
    ranks = scanned[scanned.metric == "scan_p"].set_index("method")
    assert set(ranks.index) == {"clean", "badnets", "weight-bits"} and (ranks.n == 2).all() and (ranks.role == "stolen").all()
    for method, row in ranks.iterrows():
        score = scores[(scores.method == method) & (scores.role == "stolen")].value.item()
        assert row.value == pytest.approx(conformal_p(score, nulls), rel=1e-5)


# --- what failed, and what is not there -------------------------------------------------------------------------------


def fail(folder: Path, card: str = EVIDENCE, status: str = "failed: no memory") -> None:
    """As `--record-failure` leaves it."""
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    write_json(folder / card, {"status": status})


@pytest.mark.parametrize("method", ["badnets", "weight-bits"])
def test_a_mark_that_failed_is_one_row(changed, method):
    """Whoever was to look at it, a scanner too; and whether or not other marks were judged before it."""
    study = Study(changed)
    for place in suites.read(changed / SUITE).line_up(cell(method)):
        fail(job_folder(study.evidence(cell(method)), place.role, place.attack))
    if claims_folder(study.evidence(cell(method))).exists():
        fail(claims_folder(study.evidence(cell(method))))
    fail(study.scan(cell(method), "stolen", "", "entropy"), SCAN)
    rows = collated(changed)
    failed = rows[rows.method == method]
    assert failed[["role", "attack", "access", "status"]].values.tolist() == [
        ["stolen", "none", "probabilities", "failed: no memory"]
    ]
    assert failed.metric.isna().all()
    assert (rows[rows.method != method].status == "ok").all()


def test_an_attack_that_failed_is_a_row_and_hides_no_other(changed):
    evidence = Study(changed).evidence(cell("badnets"))
    listed = {**Place(attack="prune")._asdict(), "status": "failed: the loss became nan"}
    fail(evidence / "stolen/prune")
    write_json(evidence / "stolen/prune" / EVIDENCE, {"status": "ok", "failures": [listed]})
    fail(evidence / "stolen" / STACK, status="failed: no memory")
    rows = collated(changed)
    rows = rows[rows.method == "badnets"]
    assert rows[rows.status != "ok"][["role", "attack", "access", "status"]].values.tolist() == [
        ["stolen", "prune", "probabilities", "failed: the loss became nan"],
        ["stolen", STACK, "probabilities", "failed: no memory"],
    ]
    assert set(rows[rows.status == "ok"].attack) == {"none"} and "p_model" in set(rows.metric)


def test_a_pool_without_another_methods_failed_mark_is_one_smaller_and_without_an_own_one_says_so(changed):
    evidence = Study(changed).evidence(cell("badnets"))
    for member in ("weight-bits", "0"):
        folder = evidence / "null/none" / member
        fail(folder)
        listed = {**Place("null", member)._asdict(), "status": "failed: the loss became nan"}
        write_json(folder / EVIDENCE, {"status": "ok", "failures": [listed]})
    rows = collated(changed)
    rows = rows[rows.method == "badnets"]
    failed = rows[rows.status != "ok"]
    assert failed[["role", "member"]].values.tolist() == [["null", "0"]], "the other has a row of its own, in its own cell"
    assert (rows[(rows.metric == "p_model") & (rows.role == "stolen")].n == 3).all()


def test_a_pool_that_failed_as_a_whole_is_a_row_a_member(changed):
    """Whatever an earlier run, with another key perhaps, has left in the members' folders."""
    fail(Study(changed).evidence(cell("badnets")) / "null/none")
    assert len([*Study(changed).evidence(cell("badnets")).glob(f"null/none/*/{EVIDENCE}")]) == 5
    rows = collated(changed)
    failed = rows[rows.status != "ok"]
    assert failed.member.tolist() == ["0", "1", "continued", "weight-bits", "key-0"] and set(failed.role) == {"null"}
    assert set(failed.status) == {"failed: no memory"}
    assert "p_model" not in set(rows[rows.method == "badnets"].metric)


def test_claims_that_failed_are_rows_whatever_an_earlier_run_has_left(changed):
    claims = claims_folder(Study(changed).evidence(cell("badnets")))
    write_json(claims / EVIDENCE, {"status": "failed: no memory"})
    assert (claims / POOL).exists()
    rows = collated(changed)
    rows = rows[(rows.method == "badnets") & rows.role.isin(CLAIMS)]
    assert rows.role.tolist() == list(CLAIMS) and set(rows.status) == {"failed: no memory"}
    assert set(pd.read_parquet(changed / POOL).method) == {"reference-answers"}


def test_a_scan_that_failed_is_a_row(changed):
    study = Study(changed)
    fail(study.scan(cell("weight-bits"), "stolen", "", "entropy"), SCAN)
    fail(study.scan(cell("clean"), "null", "0", "entropy"), SCAN)
    rows = collated(changed)
    scanned = rows[rows.reader == "entropy"]
    failed = scanned[scanned.status != "ok"]
    assert sorted(failed[["method", "role", "member"]].values.tolist()) == [
        ["clean", "null", "0"],
        ["weight-bits", "stolen", ""],
    ]
    assert (scanned[scanned.metric == "scan_p"].n == 1).all()


@pytest.mark.parametrize(
    "gone, words",
    [
        ("evidence/{}/stolen/prune", "stolen/prune/evidence.json is absent: the suspect has not been examined"),
        ("evidence/{}/null/none/1", "null/none/1/evidence.json is absent: the suspect has not been examined"),
        ("evidence/{}/claims", "claims/evidence.json is absent: the claims have not been examined"),
        ("scans/{}/stolen/none/entropy", "scan.json is absent: the model has not been scanned"),
    ],
)
def test_what_has_not_been_done_is_named(changed, gone, words):
    shutil.rmtree(changed / gone.format("phantom-endoscopy/small-net/0/badnets"))
    with pytest.raises(UserError, match=words):
        collated(changed)


# --- the other files --------------------------------------------------------------------------------------------------


def test_cases_keep_every_score_with_its_place(study):
    cases = pd.read_parquet(study / CASES)
    assert cases.columns.tolist()[:4] == [*Cell._fields]
    assert {*Place._fields, "case_id", "group_id", "foreground", "dice", "dice_triggered"} <= set(cases)
    assert {"score_triggered", "score_benign", "threshold"} <= set(cases)
    assert cases[cases.method == "continued"].score_triggered.isna().all(), "a control's detector says nothing"
    evidence = Study(study).evidence(cell("badnets"))
    files = [pd.read_parquet(file) for file in evidence.rglob(CASES)]
    assert len(cases[cases.method == "badnets"]) == sum(map(len, files))


def test_the_pool_of_claims_is_kept(study):
    pool = pd.read_parquet(study / POOL)
    assert pool.groupby("method").claim.agg(set).to_dict() == {
        "badnets": set(CLAIMS),
        "reference-answers": {"wrong-key", "search", "climb"},
    }
    assert set(pool[pool.method == "badnets"].member) == {"0", "1", "continued", "weight-bits", "key-0"}


EXPLAINED = Place(), Place("independent"), Place("untrained")


def explain(results: Path) -> pd.DataFrame:
    """As if the mark had been explained: two images of every suspect, and of the model as it was stolen two tries. The table of
    the stolen one."""
    suite = yaml.safe_load((results / SUITE).read_text())
    (results / SUITE).write_text(yaml.safe_dump({**suite, "explanations": {"images": 2, "queries": 16}}))
    tables = []
    for place in EXPLAINED:
        where = {**place._asdict(), "access": "probabilities"}
        seen = {**where, "query": "trigger", "reader": "lime", "pooled": False, "queries": 16, "share_of_dark": 0.5}
        lines = [{**seen, "case_id": f"c{i}", "group_id": f"p{i}", "bit_error": i / 4, "decoded": i == 0} for i in range(2)]
        read_so = {"query": "key", "reader": "in-place", "pooled": True, "queries": None}
        tried = {**where, **read_so, "bit_error": 0.0, "decoded": True}
        if place.as_stolen:
            lines += [{**tried, "case_id": f"try {i}", "group_id": f"try {i}"} for i in (1, 2)]
        folder = suspect_folder(Study(results).explanations(cell("badnets")), place)
        folder.mkdir(parents=True)
        tables.append(pd.DataFrame(lines))
        tables[-1].to_parquet(folder / CASES)
        np.savez(folder / "maps.npz", code=np.zeros((2, 2), bool))
        write_json(folder / "explanations.json", {"status": "ok", "failures": []})
    return tables[0]


def test_what_explanations_showed_is_kept_try_by_try(changed):
    written = explain(changed)
    rows = collated(changed)
    kept = pd.read_parquet(changed / TRIES)
    assert kept.columns.tolist()[:4] == [*Cell._fields] and set(kept.method) == {"badnets"}
    assert set(written) <= set(kept), "a column that the stage adds is not lost"
    assert len(kept) == 2 * 3 + 2 and set(kept.role) == {place.role for place in EXPLAINED}
    assert kept[kept["query"] == "key"].case_id.tolist() == ["try 1", "try 2"]
    # The rows can be recomputed from it.
    shown = rows[rows.metric == "bit_error"].set_index(["role", "query"]).value
    means = kept.groupby(["role", "query"]).bit_error.mean()
    assert shown.to_dict() == pytest.approx(means.to_dict()) and shown["stolen", "trigger"] == 0.125
    files = json.loads((changed / PROVENANCE).read_text())["files"]
    assert files == {name: sha256_of(changed / name) for name in (ROWS, CASES, POOL, TRIES)}


def test_what_explanations_showed_goes_when_the_suite_asks_for_none(changed):
    before = (changed / SUITE).read_text()
    explain(changed)
    collated(changed)
    assert (changed / TRIES).exists()
    (changed / SUITE).write_text(before)
    collated(changed)
    assert not (changed / TRIES).exists()
    assert TRIES not in json.loads((changed / PROVENANCE).read_text())["files"]


def test_an_explanation_that_failed_has_a_row_and_no_lines(changed):
    explain(changed)
    folder = suspect_folder(Study(changed).explanations(cell("badnets")), Place("independent"))
    fail(folder, "explanations.json")
    rows = collated(changed)
    assert rows[rows.status != "ok"][["method", "role", "status"]].values.tolist() == [
        ["badnets", "independent", "failed: no memory"]
    ]
    assert set(pd.read_parquet(changed / TRIES).role) == {"stolen", "untrained"}


def test_provenance_says_what_tables_must_know_of_every_plug_in(study):
    provenance = json.loads((study / PROVENANCE).read_text())
    suite = suites.read(study / SUITE)
    for kind in ("method", "attack", "scanner"):
        labels = [entry.label for entry in getattr(suite, f"{kind}s")]
        assert provenance[f"{kind}s"] == {label: suite.facts(kind, label) for label in labels}
    kinds = {label: facts["kind"] for label, facts in provenance["methods"].items()}
    assert kinds == {
        **{"clean": "none", "badnets": "embedded", "continued": "control"},
        **{"reference-answers": "fingerprint", "weight-bits": "white-box"},
    }
    stack = provenance["attacks"][STACK]
    assert stack["kind"] == "stack" and stack["title"] == "pruning, then fine-tuning, then JPEG"
    assert {"name", "title", "axis", "unit", "scale", "text", "reported", "citation"} <= set(stack)
    assert provenance["attacks"]["prune"]["reported"] == [0.1, 0.3, 0.5] and provenance["attacks"]["prune"]["scale"] == 100


def test_provenance_traces_every_suspect_to_its_command(study):
    provenance = json.loads((study / PROVENANCE).read_text())
    commands = provenance["commands"]
    at = "phantom-endoscopy/small-net/0/badnets"
    assert {name for name in commands if name.startswith(at)} == {
        f"{at}/{place}" for place in ("stolen/none", "stolen/prune", f"stolen/{STACK}", "independent/none", "null/none")
    }
    assert all(command.startswith("python -m stealthmark examine") for command in commands.values())
    assert f"--suspect=stolen/{STACK}=" in commands[f"{at}/stolen/{STACK}"]
    stages = provenance["stages"]
    # Five models and a second clean one, an independent one, two nulls, and other owners' of two marks.
    assert stages["models"]["jobs"] == 5 + 1 + 1 + 2 + 2 and stages["data"]["jobs"] == 1
    assert stages["suspects"]["jobs"] == 4 * 2 and stages["scans"]["jobs"] == 6
    assert stages["evidence"]["jobs"] == len(commands) + 3, "and the claims"
    assert (Study(study).model(cell("clean")) / CARD).exists()
