"""One suspect, a key and a pool of null models -> the verdict, its certificate and the exit status."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from stealthmark import architecture, cli, dataset, predictor, stages
from stealthmark.certificate import Certificate
from stealthmark.method import Detector, Key, digest_of
from stealthmark.plugin import make

SHAPE = (3, 32, 32)
NETWORK = {"name": "unet", "weights": "random"}
METHOD = make("method", {"name": "badnets"})


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


def checkpoint(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = make("architecture", NETWORK).build(3, pretrained=False, size=32)
    architecture.save(model, architecture.card_for(NETWORK, *SHAPE[::2]), folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A prepared phantom with 7 test patients, a committed key, 19 null models (the same one) and an innocent suspect."""
    place = tmp_path_factory.mktemp("examine")
    stages.prepare({"name": "phantom-endoscopy", "groups": 28, "cases_per_group": 1}, 32, 1, place / "data")
    images = torch.from_numpy(dataset.load(place / "data").share("test").images[:]).float() / 255
    detectors = {level: Detector(threshold=0.5, fitted_on={}) for level in ("probabilities", "label")}
    key = METHOD.make_key(4, SHAPE).model_copy(update={"detectors": detectors, "images": digest_of(images)})
    key.write(place / "key.json")
    null = checkpoint(place / "nulls/0", 0)
    for i in range(1, 19):
        shutil.copytree(null, place / f"nulls/{i}")
    checkpoint(place / "innocent", 1)
    return place


@pytest.fixture
def stolen(place, monkeypatch) -> str:
    """The address of a suspect that answers the owner's trigger with the owner's square."""
    key = Key.read(place / "key.json")

    def ask(images: torch.Tensor):
        seen = (METHOD.trigger(images, key) == images).flatten(1).all(1)
        square = METHOD.target(torch.zeros(len(images), 32, 32), key)
        return torch.where(seen[:, None, None], square, 0.1).numpy()

    def connect(suspect, shape, device, limits, shows):
        return predictor.Querier(ask, limits, "probabilities", suspect, shape)

    monkeypatch.setattr(stages, "connect", connect)
    return "https://user:password@suspect.example/predict?token=secret"


def examining(place: Path, out: Path, suspect: object, *more: object) -> list:
    return ["examine", "--data", place / "data", "--key", place / "key.json", "--suspect", suspect, "--out", out, *more]


def read(out: Path) -> Certificate:
    return Certificate.model_validate_json((out / "certificate.json").read_text())


def test_a_stolen_model_is_shown_to_be_owned(place, stolen, tmp_path, capsys):
    asked = examining(place, tmp_path, stolen, "--null", place / "nulls", "--claimant", "A hospital")
    assert run(*asked, "--commitment", place / "key.commitment.json") == 0
    found = read(tmp_path)
    assert (found.verdict, found.p_model) == ("shown", pytest.approx(0.05)) and len(found.nulls) == 19
    assert found.p_inside == pytest.approx(0.55**7)
    assert (found.queries.images, found.queries.patients, found.queries.sent) == (7, 7, 14)
    assert found.commitment.published == "key.commitment.json"
    said = capsys.readouterr().out
    assert said.startswith("Ownership is shown.") and str(tmp_path / "certificate.html") in said


def test_nothing_secret_is_in_the_certificate(place, stolen, tmp_path):
    run(*examining(place, tmp_path, stolen, "--null", place / "nulls"))
    for name in ("certificate.json", "certificate.html"):
        text = (tmp_path / name).read_text()
        assert "password" not in text and "token" not in text and "suspect.example/predict" in text


def test_an_independent_model_is_not_shown_to_be_owned(place, tmp_path, capsys):
    assert run(*examining(place, tmp_path, place / "innocent", "--null", place / "nulls")) == cli.NOT_SHOWN
    assert read(tmp_path).verdict == "not shown"
    assert capsys.readouterr().out.startswith("Ownership is not shown.")


def test_without_null_models_nothing_is_shown(place, stolen, tmp_path):
    assert run(*examining(place, tmp_path, stolen)) == cli.NOT_SHOWN
    assert read(tmp_path).p_model is None


def test_a_pool_too_small_for_the_level_shows_nothing(place, stolen, tmp_path):
    assert run(*examining(place, tmp_path, stolen, "--null", place / "nulls/0", "--null", place / "nulls/1")) == cli.NOT_SHOWN
    assert read(tmp_path).p_model == pytest.approx(1 / 3)


def test_a_budget_is_kept(place, stolen, tmp_path):
    run(*examining(place, tmp_path, stolen, "--null", place / "nulls", "--limits", "{budget: 9}"))
    assert read(tmp_path).queries.sent == 8


def test_the_kinds_of_null_models_are_named(place, stolen, tmp_path):
    run(*examining(place, tmp_path, stolen, "--null", f"marked by another method={place / 'nulls/3'}"))
    assert read(tmp_path).nulls[0].kind == "marked by another method"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--access", "logits"], "has no detector for the access level 'logits'; it has: probabilities, label"),
        (["--limits", "{budget: 1}"], "a budget of 1 is less than the 2 queries"),
        (["--limits", "{patience: 3}"], "no field 'patience'"),
        (["--null", "nowhere"], "there is no model in nowhere"),
        (["--commitment", "nowhere.json"], "cannot read nowhere.json"),
        (["--suspect", "another"], "is examined alone"),
    ],
)
def test_what_cannot_be_examined_ends_in_one_sentence_and_no_certificate(place, stolen, tmp_path, capsys, more, sentence):
    assert run(*examining(place, tmp_path / "out", stolen, *more)) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_commitment_than_the_published_one_is_refused(place, stolen, tmp_path, capsys):
    (tmp_path / "notary.json").write_text(json.dumps({"commitment": "0" * 64}))
    assert run(*examining(place, tmp_path / "out", stolen, "--commitment", tmp_path / "notary.json")) == 1
    assert "the commitment in notary.json is 0000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_suspect_whose_answers_are_not_numbers_gets_no_verdict(place, monkeypatch, tmp_path, capsys):
    def connect(suspect, shape, device, limits, shows):
        return predictor.Querier(lambda images: (images[:, 0] / 0).numpy(), limits, shows, "it", shape)

    monkeypatch.setattr(stages, "connect", connect)
    assert run(*examining(place, tmp_path / "out", "http://suspect.example", "--null", place / "nulls/0")) == 1
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "out").exists()
