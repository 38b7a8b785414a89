"""Evidence: what a detector says of scores, the rank among null models, the test inside a suspect, and the verdict, by hand."""

import subprocess
import sys

import numpy as np
import pytest

from stealthmark.evidence import CALIBRATION_FPR, MARGIN, conformal_p, detect, guaranteed_fpr, holm, inside_p, owned


def spread(centre: float, n: int = 100, sd: float = 1.0, seed: int = 0) -> np.ndarray:
    return centre + sd * np.random.default_rng(seed).standard_normal(n)


def test_detection_is_strictly_above_the_threshold():
    assert detect(np.array([0.9, 1.0, np.nextafter(1, 2), 2]), 1.0).tolist() == [False, False, True, True]


def test_what_a_calibrated_threshold_guarantees_by_hand():
    """The largest of 12 patients' scores is exceeded by a 13th patient's once in 13 times; 39 are needed for 0.025."""
    assert [guaranteed_fpr(groups) for groups in (1, 12, 38, 39, 500)] == [
        1 / 2,
        1 / 13,
        1 / 39,
        CALIBRATION_FPR,
        CALIBRATION_FPR,
    ]
    assert CALIBRATION_FPR == 0.025


def test_evidence_is_statistics_and_needs_no_torch():
    code = "import sys; from stealthmark import evidence; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- the model as the unit --------------------------------------------------------------------------------------------


def test_the_rank_among_null_models_by_hand():
    nulls = np.array([0.0, 1.0, 2.0, 3.0])
    assert [conformal_p(s, nulls) for s in (9.0, 3.0, 2.5, -1.0)] == pytest.approx([1 / 5, 2 / 5, 2 / 5, 1])
    assert conformal_p(1.0, np.arange(19) - 20.0) == pytest.approx(0.05)
    assert conformal_p(0.0, np.array([])) == 1


@pytest.mark.parametrize("nulls", [4, 19, 39])
def test_a_model_that_is_a_null_itself_has_a_uniform_p(nulls):
    """Each of n + 1 exchangeable scores is the suspect's as likely as any other: P(p <= k / (n + 1)) = k / (n + 1)."""
    scores = spread(0, nulls + 1)
    ps = sorted(conformal_p(score, np.delete(scores, i)) for i, score in enumerate(scores))
    assert ps == pytest.approx([k / (nulls + 1) for k in range(1, nulls + 2)])


# --- inside one model -------------------------------------------------------------------------------------------------


def told_apart(patients: int, images: int = 1, always: bool = True) -> float:
    """p inside a suspect whose every triggered query is called marked, and none of its benign ones (or every one)."""
    n = patients * images
    return inside_p(np.ones(n, bool), np.full(n, not always), np.repeat(np.arange(patients), images))


def test_inside_a_model_by_hand():
    """With a difference of 1 in all of n patients the bound is ((1 + margin) / 2) ** n: 0.55 ** n."""
    assert MARGIN == 0.1
    assert [told_apart(n) for n in (1, 5, 6)] == pytest.approx([0.55, 0.55**5, 0.55**6])
    assert told_apart(5) > 0.05 > told_apart(6), "fewer than six patients show nothing"


def test_the_unit_inside_a_model_is_the_patient():
    assert told_apart(3, images=100) == pytest.approx(told_apart(3))


def test_what_answers_alike_with_and_without_the_trigger_is_not_told_apart():
    assert told_apart(50, always=False) == 1
    one_in_ten = np.arange(100) % 10 == 0  # a difference of just the margin
    assert inside_p(one_in_ten, np.zeros(100, bool), np.arange(100)) == 1
    assert inside_p(np.zeros(100, bool), np.ones(100, bool), np.arange(100)) == 1, "the other way round is no mark"


def test_at_the_margin_a_suspect_is_told_apart_as_rarely_as_promised():
    rng = np.random.default_rng(0)
    ps = [inside_p(rng.random(40) < MARGIN, np.zeros(40, bool), np.arange(40)) for _ in range(2000)]
    assert np.mean(np.array(ps) < 1) > 0 and np.mean(np.array(ps) <= 0.05) <= 0.05


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.9, 0.8]) == [1, 1] and holm([0.02]) == [0.02] and holm([]) == []


def test_a_verdict_needs_both_units():
    assert owned(0.05, 0.05)
    assert not owned(0.06, 0.001) and not owned(0.001, 0.06)
