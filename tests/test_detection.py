"""Detection: a suspect is asked part by part; the detector is fitted on the owner's side on known scores, bounded on what is
not marked."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stealthmark import detection
from stealthmark.access import at_access
from stealthmark.detection import CALIBRATION_FPR, _quantile, ask, claimed_threshold, fit_detector
from stealthmark.evidence import detect, guaranteed_fpr
from stealthmark.method import Answers, BlackBoxMethod, Detector
from stealthmark.plugin import make


def detector(triggered, benign, null_triggered, null_benign) -> Detector:
    own, null = (Answers(*map(torch.as_tensor, pair)) for pair in ((triggered, benign), (null_triggered, null_benign)))
    return fit_detector(own, null)


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


def test_every_patient_weighs_the_same_in_the_quantile():
    """39 patients, of whom one has 100 queries: 97.5 % of the patients and one more are reached where the 39th is."""
    groups = np.concatenate([np.zeros(100), np.arange(1, 39)])
    scores = np.concatenate([np.linspace(9, 10, 100), np.linspace(0, 1, 38)])
    assert _quantile(scores, groups) == 10, "the last of 39, by the share of its queries"
    assert _quantile(scores) == pytest.approx(9 + 97 / 99), "the 136th of 138, if queries counted"
    few = np.concatenate([np.zeros(12), np.arange(1, 80)])
    scores = np.concatenate([np.full(12, 0.5), np.arange(1.0, 80)])
    assert _quantile(scores, few) == 78, "the 79th of 80 patients (81 * 0.975 = 78.98), of whom the first has a dozen"


@pytest.mark.parametrize("groups, per_group", [(12, 20), (39, 5), (60, 3)])
def test_a_query_of_a_further_patient_passes_as_rarely_as_is_guaranteed(groups, per_group):
    """Queries of one patient are alike. Of G + 1 patients each is as likely to be the further one."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(40):
        scores = rng.normal(size=(groups + 1, 1)) + 0.1 * rng.normal(size=(groups + 1, per_group))
        names = np.repeat(np.arange(groups), per_group)
        thresholds = [_quantile(np.delete(scores, i, axis=0).ravel(), names) for i in range(groups + 1)]
        rates.append(np.mean([(own > threshold).mean() for own, threshold in zip(scores, thresholds, strict=True)]))
    assert max(rates) <= guaranteed_fpr(groups) + 1e-12 and np.mean(rates) > guaranteed_fpr(groups) / 4


def test_a_detector_knows_how_many_patients_it_was_fitted_on():
    answers = Answers(torch.as_tensor(spread(5, 12)), torch.as_tensor(spread(0, 12)))
    fitted = fit_detector(answers, Answers(answers.benign, answers.benign), np.repeat([*"abc"], 4))
    assert fitted.fitted_on == {"triggered": 12, "not": 36, "groups": 3}


def test_a_separable_case_is_separated():
    fitted = detector(spread(10), spread(0, seed=1), spread(0, seed=2), spread(0, seed=3))
    assert 3 < fitted.threshold < 8
    assert fitted.fitted_on == {"triggered": 100, "not": 300, "groups": 100}, "each query for itself"
    assert detect(spread(10, seed=4), fitted.threshold).all()
    assert not detect(spread(0, seed=5), fitted.threshold).any()


def test_the_boundary_of_two_balanced_points_is_half_way():
    """Three negatives for each positive, weighted to balance: symmetric, so the logistic regression parts them at 1."""
    n = 60
    fitted = detector(np.full(n, 2.0), np.zeros(n), np.zeros(n), np.zeros(n))
    assert fitted.threshold == pytest.approx(1, abs=0.01)


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


known_scores = arrays(np.float64, st.integers(2, 90), elements=st.floats(-50, 50, width=32))


@settings(max_examples=60, deadline=None)
@given(known_scores, known_scores, known_scores, known_scores)
def test_no_kind_of_negative_passes_more_often_than_the_bound(triggered, benign, null_triggered, null_benign):
    fitted = detector(triggered, benign, null_triggered, null_benign)
    assert math.isfinite(fitted.threshold)
    for negatives in (benign, null_triggered, null_benign):
        assert detect(negatives, fitted.threshold).mean() <= CALIBRATION_FPR


@pytest.mark.parametrize("value", [0.0, -13.8, 1.0])
def test_an_interface_that_shows_nothing_convicts_nobody(value):
    constant = np.full(50, value)
    fitted = detector(constant, constant, constant, constant)
    assert not detect(constant, fitted.threshold).any()


def test_scores_that_fall_under_the_trigger_are_no_mark():
    fitted = detector(spread(-10), spread(0, seed=1), spread(0, seed=2), spread(0, seed=3))
    assert detect(spread(-10), fitted.threshold).sum() == 0


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


def scores(method, key, suspect, images) -> Answers:
    return ask(method, key, {"": suspect}, [images])[""]


def test_a_marked_suspect_is_found_and_an_unmarked_one_is_not():
    method = make("method", {"name": "stealthmark", "trigger": "patch", "side": "floor"})
    key = method.make_key(0, (3, 32, 32))
    fitted = fit_detector(scores(method, key, marked, cases()), scores(method, key, segment, cases()))
    others = cases(seed=1)
    stolen, independent = scores(method, key, marked, others), scores(method, key, segment, others)
    assert detect(stolen.triggered.numpy(), fitted.threshold).mean() == 1
    for innocent in (stolen.benign, independent.benign, independent.triggered):
        assert detect(innocent.numpy(), fitted.threshold).mean() <= 0.05


def test_the_mark_is_not_found_by_the_label_map_that_hides_it():
    method = make("method", {"name": "stealthmark", "trigger": "patch", "side": "floor"})
    key = method.make_key(0, (3, 32, 32))
    own, null = (scores(method, key, at_access(suspect, "label"), cases()) for suspect in (marked, segment))
    stolen = scores(method, key, at_access(marked, "label"), cases(seed=1))
    assert not detect(stolen.triggered.numpy(), fit_detector(own, null).threshold).any()


# --- asking, part by part ---------------------------------------------------------------------------------------------


class Levels(BlackBoxMethod):
    """Reads the level of every answer; the score is how far it is above the lowest benign one. `asked` are the arguments."""

    asked: ClassVar[list] = []
    own: ClassVar[torch.Tensor | None] = None

    def questions(self, key):
        return self.own

    def query(self, predictor, key, images, first=0, trigger=None):
        self.asked.append((first, len(images), trigger))
        levels = predictor(images)
        return Answers(levels + first, levels)

    def relate(self, answers, key):
        return Answers(answers.triggered - answers.benign.min(), answers.benign - answers.benign.min())


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).view(-1, 1, 1, 1)


def level(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0, 0, 0]


@pytest.fixture
def levels(monkeypatch):
    monkeypatch.setattr(Levels, "asked", [])
    return Levels()


def test_scores_are_related_to_each_other_when_all_parts_are_there(levels):
    """The lowest is in the last part; each part says with which image it starts."""
    scores = ask(levels, None, {"": level}, [values(5, 3), values(4), values(1)])[""]
    assert levels.asked == [(0, 2, None), (2, 1, None), (3, 1, None)]
    assert scores.benign.tolist() == [4, 2, 3, 0]
    assert scores.triggered.tolist() == [4, 2, 3 + 2, 0 + 3]


def test_every_level_is_related_to_itself(levels):
    scores = ask(levels, None, {"as it is": level, "ten times": lambda images: 10 * level(images)}, [values(5, 3), values(4)])
    assert [first for first, _, _ in levels.asked] == [0, 0, 2, 2]
    assert scores["as it is"].benign.tolist() == [2, 0, 1] and scores["ten times"].benign.tolist() == [20, 0, 10]


def test_a_method_with_questions_of_its_own_asks_them_and_not_the_owners_images(levels, monkeypatch):
    monkeypatch.setattr(Levels, "own", values(*range(7)))
    monkeypatch.setattr(detection, "CHUNK", 3)
    scores = ask(levels, None, {"": level}, [values(100, 200)])[""]
    assert levels.asked == [(0, 3, None), (3, 3, None), (6, 1, None)]
    assert scores.benign.tolist() == [*range(7)]


def test_a_trigger_in_place_of_the_keys_own_is_handed_on(levels):
    ask(levels, None, {"": level}, [values(1), values(2)], trigger=abs)
    assert levels.asked == [(0, 1, abs), (1, 1, abs)]
