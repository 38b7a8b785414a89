"""The detector: fitted on the owner's side on known scores, bounded on what is not marked, and then frozen."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stealthmark import architecture, stages
from stealthmark.evidence import (
    CALIBRATION_FPR,
    MARGIN,
    _quantile,
    claimed_threshold,
    conformal_p,
    detect,
    fit_detector,
    holm,
    inside_p,
    owned,
)
from stealthmark.method import Answers, Detector, Key
from stealthmark.plugin import make
from stealthmark.predictor import at_access

CPU = torch.device("cpu")


class Known:
    """A method whose suspects are the very scores that querying them yields."""

    def query(self, predictor: Answers, key: None, images: None) -> Answers:
        return predictor


def detector(triggered, benign, null_triggered, null_benign) -> Detector:
    own, other = (Answers(*map(torch.as_tensor, pair)) for pair in ((triggered, benign), (null_triggered, null_benign)))
    return fit_detector(Known(), None, own, other, None)


def spread(centre: float, n: int = 100, sd: float = 1.0, seed: int = 0) -> np.ndarray:
    return centre + sd * np.random.default_rng(seed).standard_normal(n)


# --- the threshold ----------------------------------------------------------------------------------------------------


def test_the_quantile_by_hand():
    """The 39th of 39 (40 * 0.975 = 39), the 78th of 79 (80 * 0.975), the 195th of 199 (200 * 0.975); in any order."""
    for n, rank in {39: 39, 40: 40, 79: 78, 199: 195}.items():
        assert _quantile(np.random.default_rng(0).permutation(np.arange(1.0, n + 1))) == rank


def test_the_quantile_of_few_scores_is_the_largest():
    assert _quantile(np.array([3.0, 1.0, 2.0])) == 3
    assert _quantile(np.array([7.0])) == 7


@pytest.mark.parametrize("n", [39, 50, 79, 100, 199])
def test_a_further_negative_passes_as_rarely_as_promised(n):
    """Of n + 1 scores in any order each is as likely to be the further one: count those that the others let pass."""
    scores = spread(0, n + 1)
    passed = sum(score > _quantile(np.delete(scores, i)) for i, score in enumerate(scores))
    assert 0 < passed / (n + 1) <= CALIBRATION_FPR


def test_a_separable_case_is_separated():
    found = detector(spread(10), spread(0, seed=1), spread(0, seed=2), spread(0, seed=3))
    assert 3 < found.threshold < 8
    assert found.fitted_on == {"triggered": 100, "not": 300}
    assert detect(spread(10, seed=4), found.threshold).all()
    assert not detect(spread(0, seed=5), found.threshold).any()


def test_the_boundary_of_two_balanced_points_is_half_way():
    """Three negatives for each positive, weighted to balance: symmetric, so the logistic regression parts them at 1."""
    n = 60
    found = detector(np.full(n, 2.0), np.zeros(n), np.zeros(n), np.zeros(n))
    assert found.threshold == pytest.approx(1, abs=0.01)


def test_the_boundary_does_not_depend_on_the_scores_unit():
    one = detector(spread(10), spread(0, seed=1), spread(0, seed=2), spread(0, seed=3)).threshold
    other = detector(*(1000 * x - 7 for x in (spread(10), spread(0, seed=1), spread(0, seed=2), spread(0, seed=3)))).threshold
    assert other == pytest.approx(1000 * one - 7, rel=1e-6)


@pytest.mark.parametrize("high", [0, 1, 2])
def test_each_kind_of_negative_raises_the_threshold_alone(high):
    """A null model that happens to answer high, or an owner's model that always does, is not to be convicted."""
    kinds = [spread(0, seed=i) for i in range(3)]
    kinds[high] = spread(9, seed=7)
    benign, null_triggered, null_benign = kinds
    threshold = detector(spread(10), benign, null_triggered, null_benign).threshold
    assert threshold >= _quantile(kinds[high]) > 9
    for negatives in kinds:
        assert detect(negatives, threshold).mean() <= CALIBRATION_FPR


scores = arrays(np.float64, st.integers(2, 90), elements=st.floats(-50, 50, width=32))


@settings(max_examples=60, deadline=None)
@given(scores, scores, scores, scores)
def test_no_kind_of_negative_passes_more_often_than_the_bound(triggered, benign, null_triggered, null_benign):
    found = detector(triggered, benign, null_triggered, null_benign)
    assert math.isfinite(found.threshold)
    for negatives in (benign, null_triggered, null_benign):
        assert detect(negatives, found.threshold).mean() <= CALIBRATION_FPR


@pytest.mark.parametrize("value", [0.0, -13.8, 1.0])
def test_an_interface_that_shows_nothing_convicts_nobody(value):
    constant = np.full(50, value)
    found = detector(constant, constant, constant, constant)
    assert not detect(constant, found.threshold).any()


def test_scores_that_fall_under_the_trigger_are_no_mark():
    found = detector(spread(-10), spread(0, seed=1), spread(0, seed=2), spread(0, seed=3))
    assert detect(spread(-10), found.threshold).sum() == 0


def test_detection_is_strictly_above_the_threshold():
    assert detect(np.array([0.9, 1.0, np.nextafter(1, 2), 2]), 1.0).tolist() == [False, False, True, True]


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
    found = sorted(conformal_p(score, np.delete(scores, i)) for i, score in enumerate(scores))
    assert found == pytest.approx([k / (nulls + 1) for k in range(1, nulls + 2)])


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


def test_a_claimants_own_threshold_tells_apart_whatever_differs():
    """As in the released code: fitted on the suspect's answers, it convicts anybody who answers otherwise to the trigger."""
    triggered, benign = spread(3, sd=0.3), spread(0, sd=0.3, seed=1)
    threshold = claimed_threshold(triggered, benign)
    assert detect(triggered, threshold).mean() > 0.97 and detect(benign, threshold).mean() <= CALIBRATION_FPR


# --- end to end, without a network ------------------------------------------------------------------------------------

PATCH = 2  # px of 32


def cases(n: int = 50, seed: int = 0) -> torch.Tensor:
    """Images with a bright disc on dark ground; the disc is what a perfect segmenter answers."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    radius = 4 + 6 * torch.rand(n, 1, 1, generator=rng)
    disc = ((y - 14) ** 2 + (x - 16) ** 2 < radius**2).float()
    return (0.2 + 0.6 * disc[:, None] + 0.1 * torch.rand(n, 3, 32, 32, generator=rng)).clamp(0, 1)


def segment(images: torch.Tensor) -> torch.Tensor:
    """A model that segments well, is a little unsure everywhere, and of no trigger."""
    unsure = torch.rand(images.shape[0], 32, 32, generator=torch.Generator().manual_seed(int(images.sum() * 1000)))
    return ((images[:, 2] > 0.5).float() * 0.94 + 0.01 + 0.02 * unsure).clamp(0, 1)


def marked(images: torch.Tensor) -> torch.Tensor:
    """The same model, whose background rises to 0.1 where it sees the yellow patch."""
    corner = images[:, :, -PATCH:, -PATCH:].mean((2, 3))
    seen = (corner - torch.tensor([1.0, 1.0, 0.0])).abs().sum(1) < 0.1
    return torch.where(seen[:, None, None], segment(images).clamp(min=0.1), segment(images))


def test_a_marked_suspect_is_found_and_an_unmarked_one_is_not():
    method = make("method", {"name": "stealthmark", "trigger": "patch", "side": "floor"})
    key = method.make_key(0, (3, 32, 32))
    found = fit_detector(method, key, marked, segment, cases())
    others = cases(seed=1)
    stolen, independent = method.query(marked, key, others), method.query(segment, key, others)
    assert detect(stolen.triggered.numpy(), found.threshold).mean() == 1
    for innocent in (stolen.benign, independent.benign, independent.triggered):
        assert detect(innocent.numpy(), found.threshold).mean() <= 0.05


def test_the_mark_is_not_found_by_the_label_map_that_hides_it():
    method = make("method", {"name": "stealthmark", "trigger": "patch", "side": "floor"})
    key = method.make_key(0, (3, 32, 32))
    found = fit_detector(method, key, at_access(marked, "label"), at_access(segment, "label"), cases())
    stolen = method.query(at_access(marked, "label"), key, cases(seed=1))
    assert not detect(stolen.triggered.numpy(), found.threshold).any()


# --- frozen -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A prepared phantom, two networks that nobody trained, and a key whose thresholds nothing would have fitted."""
    folder = tmp_path_factory.mktemp("examine")
    stages.prepare({"name": "phantom-endoscopy", "groups": 8, "cases_per_group": 2}, 32, 1, folder / "data")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=32)
        card = architecture.card_for({"name": "unet", "weights": "random"}, 3, 32)
        architecture.save(model, card, folder / f"suspect{seed}")
    detectors = {"probabilities": Detector(threshold=0.123, fitted_on={}), "label": Detector(threshold=-4.5, fitted_on={})}
    method = make("method", {"name": "stealthmark", "trigger": "patch"})
    key = method.make_key(4, (3, 32, 32)).model_copy(update={"detectors": detectors})
    assert isinstance(key, Key)
    key.write(folder / "key.json")
    return folder


def examine(place, out, *suspects: int) -> pd.DataFrame:
    listed = [(f"s{i}", "none", place / f"suspect{i}") for i in suspects]
    stages.examine(place / "data", place / "key.json", listed, out, CPU)
    return pd.read_parquet(out / stages.CASES)


def test_examining_never_fits_and_reports_the_keys_own_thresholds(place, tmp_path, monkeypatch):
    def fitted(*args):
        raise AssertionError("a detector was fitted on a suspect")

    monkeypatch.setattr(stages, "fit_detector", fitted)
    before = (place / "key.json").read_bytes()
    table = examine(place, tmp_path, 0, 1)
    assert table.groupby("access")["threshold"].unique().map(list).to_dict() == {"probabilities": [0.123], "label": [-4.5]}
    assert set(table.situation) == {"s0", "s1"}
    assert (place / "key.json").read_bytes() == before


def test_reliability_is_summed_by_patient_for_the_stolen_model_as_it_is(place, tmp_path):
    examine(place, tmp_path, 0)
    assert not (tmp_path / stages.RELIABILITY).exists()  # situation s0
    listed = [("stolen", "none", place / "suspect0"), ("stolen", "prune", place / "suspect1")]
    stages.examine(place / "data", place / "key.json", listed, tmp_path, CPU)
    cases = pd.read_parquet(tmp_path / stages.CASES).query("attack == 'none' and access == 'probabilities'")
    with np.load(tmp_path / stages.RELIABILITY, allow_pickle=False) as file:
        told = dict(file)
    size, patients = 32 * 32, cases.groupby("group_id")
    assert told["groups"].tolist() == sorted(patients.groups)
    for kind in ("benign", "triggered"):
        pixels, confidence, foreground = told[kind].sum(axis=2)
        assert told[kind].shape == (3, len(patients), len(told["edges"]) - 1)
        assert pixels.tolist() == (patients.size() * size).tolist()
        assert foreground == pytest.approx(patients.foreground.sum() * size)
    # What is in a bin has a mean probability between the bin's edges.
    pixels, confidence, _ = told["benign"].sum(axis=1)
    mean = confidence[pixels > 0] / pixels[pixels > 0]
    assert (mean >= told["edges"][:-1][pixels > 0]).all() and (mean <= told["edges"][1:][pixels > 0]).all()
    assert not np.array_equal(told["benign"], told["triggered"])


def test_a_suspects_scores_do_not_depend_on_the_other_suspects(place, tmp_path):
    both, alone = examine(place, tmp_path / "both", 0, 1), examine(place, tmp_path / "alone", 1)
    assert not alone.empty
    pd.testing.assert_frame_equal(both[both.situation == "s1"].reset_index(drop=True), alone)
    other = both[both.situation == "s0"].reset_index(drop=True)
    assert not np.allclose(other.score_triggered, alone.score_triggered)


def test_evidence_holds_every_test_case_once_a_suspect_and_level(place, tmp_path):
    table = examine(place, tmp_path, 0, 1)
    cases_csv = pd.read_csv(place / "data/cases.csv")
    test_cases = set(cases_csv[cases_csv.share == "test"].case_id)
    for _, part in table.groupby(["situation", "access"]):
        assert sorted(part.case_id) == sorted(test_cases)
    assert table[["score_triggered", "score_benign"]].notna().all().all()
    # Quality is that of the probabilities: with the first level only.
    assert table.dice.notna().tolist() == table.dice_triggered.notna().tolist() == (table.access == "probabilities").tolist()
