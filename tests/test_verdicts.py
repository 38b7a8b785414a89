"""Per-query scores -> verdicts, by hand: ranks, the test inside a model, the fewest queries, and how they are counted."""

from types import SimpleNamespace

import pandas as pd
import pytest

from stealthmark.collate import _Evidence, _verdicts
from stealthmark.files import write_json
from stealthmark.layout import CASES, EVIDENCE, Cell, Place, Study, suspect_folder
from stealthmark.metrics import clopper_pearson
from stealthmark.report.situations import Situation, tally

PATIENTS = 8


def scored(role: str, triggered: float, benign: float = 0.0, attack: str = "none", member: str = "") -> pd.DataFrame:
    """A model of which every query of eight patients has the same score; called marked above 0.5."""
    cases = pd.DataFrame({"case_id": [f"c{i}" for i in range(PATIENTS)], "group_id": [f"p{i}" for i in range(PATIENTS)]})
    place = Place(role, member, attack, 0.0, "probabilities")
    return cases.assign(**place._asdict(), score_triggered=triggered, score_benign=benign, threshold=0.5)


def judged(*models: pd.DataFrame, pool: list = (), asks: int = 2) -> pd.Series:
    """(role, member, attack, metric) -> value"""
    level = {"access": "probabilities"}
    claimed = [{"claim": claim, "member": str(i), **level, "score": score} for claim, score, n in pool for i in range(n)]
    cases = pd.concat(models, ignore_index=True)
    rows = pd.DataFrame(_verdicts(cases, pd.DataFrame(claimed) if claimed else None, asks))
    return rows.set_index(["role", "member", "attack", "metric"])["value"].sort_index()


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
