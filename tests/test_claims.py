"""Claims of others: each is asked as its name says; a forger who tries hard meets the null models, not the suspect alone."""

from functools import partial

import pytest
import tiny
import torch
from torch import nn

from stealthmark import claims
from stealthmark.evidence import conformal_p
from stealthmark.layout import CLAIMS
from stealthmark.method import Detector, Owner
from stealthmark.plugin import make
from stealthmark.seeds import secret
from stealthmark.settings import ClaimPlan
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


PLAN = ClaimPlan(keys=6, steps=10, climb=100)


def made(options: dict, plan: ClaimPlan = PLAN, suspect=predictor):
    method = make("method", options)
    owner = Owner(Bright(), predictor, pictures(seed=1), torch.zeros(8, SIZE, SIZE))
    key = method.make_key(7, (3, SIZE, SIZE), owner).model_copy(
        update={"detectors": {"probabilities": Detector(threshold=0.25, fitted_on={})}}
    )
    images = pictures()
    return method, key, claims.all_claims(method, key, suspect, Bright(), images, torch.zeros(8, SIZE, SIZE), plan, 1)


@pytest.fixture(scope="module")
def badnets():
    return made({"name": "badnets"})


def test_every_claim_is_made_once(badnets):
    assert [claim.name for claim in badnets[2]] == list(CLAIMS)


def test_what_is_asked_is_what_the_name_says(badnets):
    method, key, (wrong_trigger, wrong_key, natural, search, climbed, adversarial) = badnets
    images = pictures(3)
    assert wrong_trigger.key == key and torch.equal(wrong_trigger.trigger(images), Trigger(kind="patch")(images))
    assert wrong_key.key.seed != key.seed and wrong_key.trigger is None
    assert natural.key == key and not torch.equal(natural.trigger(images), images)
    assert torch.equal(natural.trigger(images), natural.trigger(images))
    assert search.key.seed != key.seed and search.malicious
    assert climbed.key == wrong_key.key and climbed.trigger is None
    assert not torch.equal(climbed.key.uniform((2,), "square"), wrong_key.key.uniform((2,), "square"))
    change = adversarial.trigger(images) - images
    assert 0 < change.abs().max() <= 8 / 255 + 1e-6 and adversarial.malicious
    for claim in (wrong_trigger, wrong_key, natural, climbed):
        assert not claim.malicious and claim.threshold(None, "probabilities") == 0.25


def test_a_marks_own_trigger_is_not_taken_for_a_wrong_one():
    for own, wrong in {"patch": "border", "border": "patch", "text": "patch"}.items():
        method, _, (wrong_trigger, *_) = made({"name": "stealthmark", "trigger": own})
        assert method.other_trigger == wrong
        assert torch.equal(wrong_trigger.trigger(pictures(2)), Trigger(kind=wrong)(pictures(2)))


def test_the_search_finds_the_key_that_a_suspect_answers_best():
    """A suspect that answers everything with one square: the square of the key it was made for wins the search."""
    method, key, _ = made({"name": "badnets"})
    candidates = [method.make_key(secret(1, "key", i), key.shape) for i in range(6)]
    for wanted in (candidates[2], candidates[5]):
        square = method.target(torch.zeros(1, SIZE, SIZE), wanted)[0]
        _, _, (_, _, _, search, *_) = made({"name": "badnets"}, suspect=partial(_answer, square))
        assert search.name == "search" and search.key.seed == wanted.seed


def _answer(square, images):
    return square.expand(len(images), -1, -1)


def test_the_perturbation_does_on_the_surrogate_what_it_is_for():
    images, plan = pictures(16), ClaimPlan(epsilon=0.25, steps=40)
    towards_one = claims.universal(Bright(), images, torch.ones(16, SIZE, SIZE), plan, 0)
    towards_zero = claims.universal(Bright(), images, torch.zeros(16, SIZE, SIZE), plan, 0)
    assert (towards_one > 0.2).all() and (towards_zero < -0.2).all()
    assert predictor((images + towards_one).clamp(0, 1)).mean() > 0.6 > predictor(images).mean() + 0.4
    assert torch.equal(towards_one, claims.universal(Bright(), images, torch.ones(16, SIZE, SIZE), plan, 0))


def test_adversarial_queries_convict_by_the_suspect_alone_and_not_among_null_models():
    """The suspect is like the claimant's own model, and so is every null: all answer the perturbed queries alike."""
    plan = ClaimPlan(epsilon=0.25, steps=40)
    method, _, (*_, forged) = made({"name": "badnets"}, plan)
    images = pictures(30, seed=5)
    assert forged.name == "adversarial"

    def asked(suspect):
        return forged.ask(method, {"probabilities": suspect}, images)["probabilities"]

    answers = asked(predictor)
    assert (answers.triggered.numpy() > forged.threshold(answers, "probabilities")).mean() > 0.9
    nulls = [float(asked(partial(_a_little_brighter, i)).triggered.mean()) for i in range(19)]
    assert conformal_p(float(answers.triggered.mean()), torch.tensor(nulls).numpy()) > 0.05


def _a_little_brighter(i, images):
    return predictor(images + 0.001 * i)


def test_a_claim_is_asked_at_every_access_level(badnets):
    method, _, (wrong_trigger, *_) = badnets
    levels = {"probabilities": predictor, "label": lambda images: (predictor(images) > 0.5).float()}
    answers = wrong_trigger.ask(method, levels, pictures(3))
    for level, seen in levels.items():
        alone = method.query(seen, wrong_trigger.key, pictures(3), trigger=wrong_trigger.trigger)
        assert torch.equal(answers[level].triggered, alone.triggered) and torch.equal(answers[level].benign, alone.benign)


@pytest.mark.parametrize("asks_with", ["own", "owner"])
def test_without_a_trigger_only_the_claims_that_need_none_are_made(asks_with):
    """And what a claimant knows of their own comes from the surrogate, never from the suspect's inside or its answers."""
    with tiny.known_plugins():
        method, key, (wrong_key, search, climbed) = made(
            {"name": "reference-answers", "asks_with": asks_with}, suspect=_all_black
        )
        claimant = Owner(Bright(), predictor, pictures(), torch.zeros(8, SIZE, SIZE))
        assert [wrong_key.name, search.name, climbed.name] == ["wrong-key", "search", "climb"]
        assert [wrong_key.malicious, search.malicious, climbed.malicious] == [False, True, False]
        for claim in (wrong_key, search, climbed):
            assert claim.trigger is None and claim.key.detectors == key.detectors and claim.key.seed != key.seed
            own = method.make_key(claim.key.seed, key.shape, claimant)
            assert claim.key.reference.keys() == own.reference.keys() == {"images", "answers"}
            assert all(torch.equal(claim.key.reference[name], tensor) for name, tensor in own.reference.items())
            assert claim.key.reference_sha256 == own.reference_sha256 != key.reference_sha256
        answers = wrong_key.ask(method, {"": predictor}, pictures(5, seed=2))[""]
        assert len(answers.triggered) == (method.count if asks_with == "own" else 5)


def _all_black(images):
    return torch.zeros(len(images), SIZE, SIZE)


def test_a_claimant_climbs_to_what_the_suspect_answers_and_meets_the_owners_threshold():
    """A suspect that answers everything with one square. Its place is drawn by nobody's seed, and found from the answers."""
    square = torch.zeros(SIZE, SIZE)
    square[5:21, 9:25] = 1
    method, key, made_claims = made({"name": "badnets"}, suspect=partial(_answer, square))
    climbed = next(claim for claim in made_claims if claim.name == "climb")
    answers = climbed.ask(method, {"probabilities": partial(_answer, square)}, pictures(20))["probabilities"]
    threshold = climbed.threshold(answers, "probabilities")
    assert threshold == key.detectors["probabilities"].threshold == 0.25 and (answers.triggered > threshold).all()
    assert torch.equal(method.target(torch.zeros(1, SIZE, SIZE), climbed.key)[0], square)
