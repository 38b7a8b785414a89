"""Per-query scores -> verdicts, by hand: ranks, the test inside a model, the fewest queries, and how they are counted."""

from types import SimpleNamespace

import pandas as pd
import pytest

from stealthmark.collate import _judged
from stealthmark.metrics import clopper_pearson
from stealthmark.report.situations import Place, tally

PATIENTS = 8


def scored(situation: str, triggered: float, benign: float = 0.0, attack: str = "none") -> pd.DataFrame:
    """A model of which every query of eight patients has the same score; called marked above 0.5."""
    cases = pd.DataFrame({"case_id": [f"c{i}" for i in range(PATIENTS)], "group_id": [f"p{i}" for i in range(PATIENTS)]})
    place = {"situation": situation, "attack": attack, "strength": 0.0, "access": "probabilities"}
    return cases.assign(**place, score_triggered=triggered, score_benign=benign, threshold=0.5)


def judged(tmp_path, *models: pd.DataFrame, pool: list | None = None, asks: int = 2) -> pd.Series:
    """(situation, attack, metric) -> value"""
    file = tmp_path / "pool.parquet"
    if pool:
        lines = [{"claim": c, "null": f"null-{i}", "access": "probabilities", "score": s} for c, s, n in pool for i in range(n)]
        pd.DataFrame(lines).to_parquet(file)
    rows = pd.DataFrame(_judged(pd.concat(models, ignore_index=True), file, asks))
    return rows.set_index(["situation", "attack", "metric"])["value"].sort_index()


NULLS = [scored(f"null-{i}", 0.01 * i) for i in range(19)]


def test_a_stolen_model_above_nineteen_nulls(tmp_path):
    found = judged(tmp_path, scored("stolen", 1.0), *NULLS)["stolen", "none"]
    assert found["p_model"] == pytest.approx(0.05) and found["p_inside"] == pytest.approx(0.55**PATIENTS)
    assert found["owned"] == 1 and found["tpr_5"] == found["tpr_1"] == 1
    assert found["queries"] == 12, "six patients, each asked with the trigger and without: 0.55 ** 6 < 0.05 < 0.55 ** 5"


def test_a_mark_that_asks_more_of_an_image_needs_more_queries(tmp_path):
    found = judged(tmp_path, scored("stolen", 1.0), *NULLS, asks=32)["stolen", "none"]
    assert found["queries"] == 6 * 32


def test_eighteen_nulls_are_too_few(tmp_path):
    found = judged(tmp_path, scored("stolen", 1.0), *NULLS[:18])["stolen", "none"]
    assert found["p_model"] == pytest.approx(1 / 19) and found["owned"] == 0 and pd.isna(found["queries"])


def test_a_model_that_is_always_sure_of_nothing_is_not_owned(tmp_path):
    """It ranks first, but answers benign queries as it does triggered ones."""
    found = judged(tmp_path, scored("independent", 1.0, benign=1.0), *NULLS)["independent", "none"]
    assert found["p_model"] == pytest.approx(0.05) and found["p_inside"] == 1 and found["owned"] == 0


def test_inside_a_stolen_model_the_attacks_are_adjusted_for(tmp_path):
    """Two questions: the smaller p counts twice (Holm), and so do the fewest queries: 2 * 0.55 ** 7 < 0.05 < 2 * 0.55 ** 6."""
    found = judged(tmp_path, scored("stolen", 1.0), scored("stolen", 1.0, attack="prune"), *NULLS)
    assert found["stolen", "prune", "p_inside"] == pytest.approx(2 * 0.55**PATIENTS)
    assert found["stolen", "none", "queries"] == 14


def test_a_null_model_is_ranked_among_the_others(tmp_path):
    found = judged(tmp_path, scored("stolen", 1.0), *NULLS)
    assert [found[f"null-{i}", "none", "p_model"] for i in (18, 17, 0)] == pytest.approx([1 / 19, 2 / 19, 1])


def test_a_claim_is_ranked_among_nulls_that_were_asked_in_the_same_way(tmp_path):
    pool = [("search", 2.0, 19), ("adversarial", 0.0, 19)]
    found = judged(tmp_path, scored("search", 1.0), scored("adversarial", 1.0), *NULLS, pool=pool)
    assert found["search", "none", "p_model"] == 1 and found["search", "none", "owned"] == 0
    assert found["adversarial", "none", "p_model"] == pytest.approx(0.05) and found["adversarial", "none", "owned"] == 1


def test_without_null_models_nobody_is_judged(tmp_path):
    assert _judged(scored("stolen", 1.0), tmp_path / "pool.parquet") == []


def test_verdicts_are_counted_over_the_models_of_a_situation():
    place = {"method": "m", "access": "probabilities", "attack": "none", "strength": 0.0, "architecture": "unet"}
    lines = [("a", "null-0", 0.0), ("a", "null-1", 1.0), ("b", "null-0", 0.0), ("b", "stolen", 1.0)]
    rows = pd.DataFrame([{**place, "dataset": d, "situation": s, "value": v, "metric": "owned"} for d, s, v in lines])
    found = tally(
        SimpleNamespace(rows=rows), "m", Place("never marked", ("null-0", "null-1"), "none", 0.0, False), "probabilities"
    )
    assert (found.shown, found.n) == (1, 3) and (found.low, found.high) == clopper_pearson(1, 3)
