"""Per-query scores -> verdicts, by hand: ranks, the test inside a model, the fewest queries, and how they are counted."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stealthmark.collate import _Evidence
from stealthmark.files import write_json
from stealthmark.layout import CASES, EVIDENCE, Cell, Place, Study, suspect_folder
from stealthmark.metrics import clopper_pearson
from stealthmark.report.situations import Situation, tally
from stealthmark.verdicts import model_score, verdicts

PATIENTS = 8


def scored(role: str, triggered: float, benign: float = 0.0, attack: str = "none", member: str = "") -> pd.DataFrame:
    """A model of which every query of eight patients has the same score; called marked above 0.5."""
    cases = pd.DataFrame({"case_id": [f"c{i}" for i in range(PATIENTS)], "group_id": [f"p{i}" for i in range(PATIENTS)]})
    place = Place(role, member, attack, 0.0, "probabilities")
    return cases.assign(**place._asdict(), score_triggered=triggered, score_benign=benign, threshold=0.5)


def told(*models: pd.DataFrame, pool: list = (), asks: int = 2) -> pd.DataFrame:
    """(role, member, attack, metric) -> value and n. Null models whose member is a number were never marked."""
    level = {"access": "probabilities"}
    claimed = [{"claim": claim, "member": str(i), **level, "score": score} for claim, score, n in pool for i in range(n)]
    cases = pd.concat(models, ignore_index=True)
    unmarked = {member for member in [*cases.member, *(line["member"] for line in claimed)] if member.isdigit()}
    rows = pd.DataFrame(verdicts(cases, pd.DataFrame(claimed) if claimed else None, asks, unmarked))
    return rows.set_index(["role", "member", "attack", "metric"])[["value", "n"]].sort_index()


def judged(*models: pd.DataFrame, **more) -> pd.Series:
    return told(*models, **more)["value"]


NULLS = [scored("null", 0.01 * i, member=str(i)) for i in range(19)]


def test_a_stolen_model_above_nineteen_nulls():
    verdict = judged(scored("stolen", 1.0), *NULLS)["stolen", "", "none"]
    assert verdict["p_model"] == pytest.approx(0.05) and verdict["p_inside"] == pytest.approx(0.55**PATIENTS)
    assert verdict["owned"] == 1 and verdict["tpr_5"] == verdict["tpr_1"] == 1
    assert verdict["queries_to_verdict"] == 12, (
        "six patients, each asked with the trigger and without: 0.55 ** 6 < 0.05 < 0.55 ** 5"
    )


def test_a_mark_that_asks_more_of_an_image_needs_more_queries():
    verdict = judged(scored("stolen", 1.0), *NULLS, asks=32)["stolen", "", "none"]
    assert verdict["queries_to_verdict"] == 6 * 32


def test_eighteen_nulls_are_too_few():
    verdict = judged(scored("stolen", 1.0), *NULLS[:18])["stolen", "", "none"]
    assert verdict["p_model"] == pytest.approx(1 / 19) and verdict["owned"] == 0 and pd.isna(verdict["queries_to_verdict"])


def test_a_model_that_is_always_sure_of_nothing_is_not_owned():
    """It ranks first, but answers benign queries as it does triggered ones."""
    verdict = judged(scored("independent", 1.0, benign=1.0), *NULLS)["independent", "", "none"]
    assert verdict["p_model"] == pytest.approx(0.05) and verdict["p_inside"] == 1 and verdict["owned"] == 0


def test_inside_a_stolen_model_the_attacks_are_adjusted_for():
    """Two questions: the smaller p counts twice (Holm), and so do the fewest queries: 2 * 0.55 ** 7 < 0.05 < 2 * 0.55 ** 6."""
    verdicts = judged(scored("stolen", 1.0), scored("stolen", 1.0, attack="prune"), *NULLS)
    assert verdicts["stolen", "", "prune", "p_inside"] == pytest.approx(2 * 0.55**PATIENTS)
    assert verdicts["stolen", "", "none", "queries_to_verdict"] == 14


def test_a_null_model_is_ranked_among_the_others():
    verdicts = judged(scored("stolen", 1.0), *NULLS)
    assert [verdicts["null", str(i), "none", "p_model"] for i in (18, 17, 0)] == pytest.approx([1 / 19, 2 / 19, 1])


def test_an_innocent_model_with_another_mark_is_judged_like_any_other():
    """Above 19 that were never marked, and answering the trigger: convicted, though the model was never the owner's."""
    rows = told(scored("stolen", 2.0), *NULLS, scored("null", 1.0, member="blended"), scored("null", 0.0, member="key-0"))
    innocent = rows.loc["null", "blended", "none"]
    assert innocent.value["p_model"] == pytest.approx(1 / 21) and innocent.n["p_model"] == 20, "all others, key-0 too"
    assert innocent.value["p_unmarked"] == pytest.approx(1 / 20) and innocent.n["p_unmarked"] == 19
    assert innocent.value["owned"] == 1 and rows.value["null", "key-0", "none", "owned"] == 0


def test_marked_null_models_count_in_one_rank_and_not_in_the_other():
    """One of the 20 carries another mark and scores as high as the suspect."""
    stolen = told(scored("stolen", 1.0), *NULLS, scored("null", 1.0, member="wanet")).loc["stolen", "", "none"]
    assert stolen.value["p_model"] == pytest.approx(2 / 21) and stolen.n["p_model"] == 20
    assert stolen.value["p_unmarked"] == pytest.approx(1 / 20) and stolen.n["p_unmarked"] == 19
    assert stolen.value["owned"] == 0, "the verdict is among all"


def test_a_null_model_that_was_never_marked_is_no_peer_of_its_own():
    rows = told(scored("stolen", 1.0), *NULLS, scored("null", 1.0, member="wanet"))
    assert rows.n["null", "3", "none", "p_model"] == 19 and rows.n["null", "3", "none", "p_unmarked"] == 18


def test_without_a_model_that_was_never_marked_there_is_no_rank_among_them():
    rows = told(scored("stolen", 1.0), scored("null", 0.0, member="wanet"))
    assert "p_model" in rows.loc["stolen", "", "none"].index and "p_unmarked" not in rows.index.get_level_values("metric")


def test_the_separation_from_null_models_by_hand():
    """A stolen model at 0.5 among nulls at 0, 0.5 and 1: above one, equal to one, below one. Pruned it is at 2."""
    nulls = [scored("null", value, member=str(i)) for i, value in enumerate((0.0, 0.5, 1.0))]
    rows = told(scored("stolen", 0.5), scored("stolen", 2.0, attack="prune"), scored("independent", 0.5), *nulls)
    assert rows.value["stolen", "", "none", "auroc_null"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert rows.n["stolen", "", "none", "auroc_null"] == 4 * PATIENTS
    assert rows.value["stolen", "", "prune", "auroc_null"] == 1
    assert "auroc_null" not in rows.loc["independent", "", "none"].index


def test_the_score_of_a_model_by_hand():
    """Patients a (1, 1), b (3), c (0, 2, 2): the mean is over queries, and three patients are what it rests on."""
    row = model_score(np.array([1, 1, 3, 0, 2, 2.0]), np.array([*"aabccc"]))
    assert (row["metric"], row["n"], row["value"]) == ("score", 3, 1.5) and row["ci_low"] < 1.5 < row["ci_high"]


def test_of_a_query_a_patient_the_interval_is_students():
    scores = np.arange(10.0)
    low, high = stats.t.interval(0.95, 9, loc=4.5, scale=stats.sem(scores))
    row = model_score(scores, np.arange(10))
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(low), pytest.approx(high))
    twice = model_score(np.repeat(scores, 5), np.repeat(np.arange(10), 5))
    assert (twice["ci_low"], twice["ci_high"]) == (pytest.approx(low), pytest.approx(high)), "queries alike add nothing"


def test_the_interval_of_a_score_covers_the_mean_of_the_patients():
    """Twelve patients of five queries each, alike within a patient: 95 % of the intervals hold the true mean."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(12), 5)
    made = (model_score(rng.normal(size=12)[groups] + 0.5 * rng.normal(size=60), groups) for _ in range(2000))
    assert 0.93 < np.mean([row["ci_low"] < 0 < row["ci_high"] for row in made]) < 0.97


def test_a_claim_is_ranked_among_nulls_that_were_asked_in_the_same_way():
    pool = [("search", 2.0, 19), ("adversarial", 0.0, 19)]
    verdicts = judged(scored("search", 1.0), scored("adversarial", 1.0), *NULLS, pool=pool)
    assert verdicts["search", "", "none", "p_model"] == 1 and verdicts["search", "", "none", "owned"] == 0
    adversarial = verdicts["adversarial", "", "none"]
    assert adversarial["p_model"] == pytest.approx(0.05) and adversarial["owned"] == 1


def test_without_null_models_nobody_is_judged(tmp_path):
    cell, places = Cell("phantom", "unet", 0, "badnets"), [Place(), Place("null", "0")]
    for place in places:
        folder = suspect_folder(Study(tmp_path).evidence(cell), place)
        folder.mkdir(parents=True)
        for card in {folder, suspect_folder(Study(tmp_path).evidence(cell), place._replace(member=""))}:
            write_json(card / EVIDENCE, {"status": "ok", "failures": []})
        scored(place.role, 1.0, member=place.member).to_parquet(folder / CASES)

    def is_judged(line_up: list[Place]) -> bool:
        facts = {"kind": "embedded"}
        suite = SimpleNamespace(
            line_up=lambda cell: line_up, facts=lambda kind, label: facts, claims=None, access=["probabilities"]
        )
        return _Evidence.read(suite, Study(tmp_path), cell).judged

    assert is_judged(places) and not is_judged(places[:1])


def test_verdicts_are_counted_over_the_models_of_a_situation():
    where = {"method": "m", "architecture": "unet", "metric": "owned"}
    lines = [("a", "null", "0", 0.0), ("a", "null", "1", 1.0), ("b", "null", "0", 0.0), ("b", "stolen", "", 1.0)]
    rows = [
        {**where, **Place(role, member, access="probabilities")._asdict(), "dataset": dataset, "value": value}
        for dataset, role, member, value in lines
    ]
    never_marked = Situation("never marked", Place("null"), False, ("0", "1"))
    count = tally(pd.DataFrame(rows), "m", never_marked, "probabilities")
    assert (count.shown, count.n) == (1, 3) and (count.low, count.high) == clopper_pearson(1, 3)
