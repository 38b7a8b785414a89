"""Claims of others: each is asked as its name says; a forger who tries hard meets the null models, not the suspect alone."""

from functools import partial

import pytest
import torch
from torch import nn

from stealthmark import claims
from stealthmark.evidence import conformal_p
from stealthmark.method import Detector
from stealthmark.plugin import make
from stealthmark.triggers import Trigger

SIZE = 32


class Bright(nn.Module):
    """Foreground where the picture is bright: logits 12 (x - 0.5)."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(12.0))

    def forward(self, images):
        return self.gain * (images.mean(1, keepdim=True) - 0.5)


def predictor(images):
    with torch.no_grad():
        return Bright()(images)[:, 0].sigmoid()


def pictures(n: int = 8, seed: int = 0):
    return 0.3 + 0.1 * torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


PLAN = claims.Plan(keys=6, steps=10)


def made(options: dict, plan: claims.Plan = PLAN, suspect=predictor):
    method = make("method", options)
    key = method.make_key(7, (3, SIZE, SIZE)).model_copy(
        update={"detectors": {"probabilities": Detector(threshold=0.25, fitted_on={})}}
    )
    images = pictures()
    return method, key, claims.every(method, key, suspect, Bright(), images, torch.zeros(8, SIZE, SIZE), plan, 1)


@pytest.fixture(scope="module")
def badnets():
    return made({"name": "badnets"})


def test_every_claim_is_made_once(badnets):
    assert [claim.name for claim in badnets[2]] == list(claims.NAMES)


def test_what_is_asked_is_what_the_name_says(badnets):
    method, key, (wrong_trigger, wrong_key, natural, search, adversarial) = badnets
    images = pictures(3)
    assert wrong_trigger.key == key and torch.equal(wrong_trigger.trigger(images), Trigger(kind="patch")(images))
    assert wrong_key.key.seed != key.seed and wrong_key.trigger is None
    assert natural.key == key and not torch.equal(natural.trigger(images), images)
    assert torch.equal(natural.trigger(images), natural.trigger(images))
    assert search.key.seed != key.seed and search.malicious
    change = adversarial.trigger(images) - images
    assert 0 < change.abs().max() <= 8 / 255 + 1e-6 and adversarial.malicious
    for claim in (wrong_trigger, wrong_key, natural):
        assert not claim.malicious and claim.threshold(None, "probabilities") == 0.25


def test_a_marks_own_trigger_is_not_taken_for_a_wrong_one():
    assert claims.unrelated(make("method", {"name": "stealthmark", "trigger": "patch"})).kind == "border"
    assert claims.unrelated(make("method", {"name": "stealthmark", "trigger": "border"})).kind == "patch"


def test_the_search_finds_the_key_that_a_suspect_answers_best():
    """A suspect that answers everything with one square: the square of the key it was made for wins the search."""
    method, key, found = made({"name": "badnets"})
    candidates = [method.make_key(claims.derive(1, "key", i), key.shape) for i in range(6)]
    for wanted in (candidates[2], candidates[5]):
        square = method.target(torch.zeros(1, SIZE, SIZE), wanted)[0]
        _, _, found = made({"name": "badnets"}, suspect=partial(_answer, square))
        assert found[3].key.seed == wanted.seed


def _answer(square, images):
    return square.expand(len(images), -1, -1)


def test_the_perturbation_does_on_the_surrogate_what_it_is_for():
    images, plan = pictures(16), claims.Plan(epsilon=0.25, steps=40)
    towards_one = claims.universal(Bright(), images, torch.ones(16, SIZE, SIZE), plan, 0)
    towards_zero = claims.universal(Bright(), images, torch.zeros(16, SIZE, SIZE), plan, 0)
    assert (towards_one > 0.2).all() and (towards_zero < -0.2).all()
    assert predictor((images + towards_one).clamp(0, 1)).mean() > 0.6 > predictor(images).mean() + 0.4
    assert torch.equal(towards_one, claims.universal(Bright(), images, torch.ones(16, SIZE, SIZE), plan, 0))


def test_adversarial_queries_convict_by_the_suspect_alone_and_not_among_null_models():
    """The suspect is like the claimant's own model, and so is every null: all answer the perturbed queries alike."""
    plan = claims.Plan(epsilon=0.25, steps=40)
    method, key, found = made({"name": "badnets", "wrong": "inverted"}, plan)
    forged, images = found[4], pictures(30, seed=5)
    answers = forged.ask(method, predictor, images)
    assert (answers.triggered.numpy() > forged.threshold(answers, "probabilities")).mean() > 0.9
    pool = [partial(_a_little_brighter, i) for i in range(19)]
    nulls = [float(forged.ask(method, null, images).triggered.mean()) for null in pool]
    assert conformal_p(float(answers.triggered.mean()), torch.tensor(nulls).numpy()) > 0.05


def _a_little_brighter(i, images):
    return predictor(images + 0.001 * i)
