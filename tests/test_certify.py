"""Certify: one suspect, a key and a pool of null models -> the verdict, its certificate and the exit status."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
import tiny
import torch
from onnx import TensorProto, helper

from stealthmark import cli, commands, dataset
from stealthmark.certificate import Certificate
from stealthmark.layout import WEIGHTS
from stealthmark.method import Key, Owner
from stealthmark.plugin import make
from stealthmark.stages import certify
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.querier import Querier, Source

METHOD = make("method", {"name": "badnets"})


@pytest.fixture(scope="module", autouse=True)
def _known_plugins():
    with tiny.known_plugins():
        yield


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A prepared phantom with 7 test patients, a committed key, 19 null models (the same one) and an innocent suspect."""
    place = tmp_path_factory.mktemp("certify")
    tiny.data(place / "data", groups=28, cases_per_group=1)
    images = dataset.load(place / "data").share("test").images
    tiny.key(place / "key.json", METHOD.options(), images, probabilities=0.5, label=0.5)
    null = tiny.checkpoint(place / "nulls/0", 0)
    for i in range(1, 19):
        shutil.copytree(null, place / f"nulls/{i}")
    tiny.checkpoint(place / "innocent", 1)
    return place


@pytest.fixture
def stolen(place, monkeypatch) -> str:
    """The address of a suspect that answers the owner's trigger with the owner's square."""
    key = Key.read(place / "key.json")

    def ask(images: torch.Tensor):
        seen = (METHOD.trigger(images, key) == images).flatten(1).all(1)
        square = METHOD.target(torch.zeros(len(images), 32, 32), key)
        return torch.where(seen[:, None, None], square, 0.1).numpy()

    def connect(suspect, shape, device, limits, shows, interface):
        return Querier(Source(ask, suspect, shows=shows), limits, shape)

    monkeypatch.setattr(certify, "connect", connect)
    return "https://user:password@suspect.example/predict?token=secret"


def examining(place: Path, out: Path, suspect: object, *more: object) -> list:
    return ["certify", "--data", place / "data", "--key", place / "key.json", "--suspect", suspect, "--out", out, *more]


def read(out: Path) -> Certificate:
    return Certificate.model_validate_json((out / "certificate.json").read_text())


def test_a_stolen_model_is_shown_to_be_owned(place, stolen, tmp_path, capsys):
    argv = examining(place, tmp_path, stolen, "--null", place / "nulls", "--claimant", "A hospital")
    assert run(*argv, "--commitment", place / "key.commitment.json") == 0
    told = read(tmp_path)
    assert (told.verdict, told.p_model) == ("shown", pytest.approx(0.05)) and len(told.nulls) == 19
    assert told.p_inside == pytest.approx(0.55**7)
    assert (told.queries.images, told.queries.patients, told.queries.sent) == (7, 7, 14)
    assert told.commitment.published == "key.commitment.json"
    said = capsys.readouterr().out
    assert said.startswith("Ownership is shown.") and str(tmp_path / "certificate.html") in said


def test_nothing_secret_is_in_the_certificate(place, stolen, tmp_path):
    run(*examining(place, tmp_path, stolen, "--null", place / "nulls"))
    for name in ("certificate.json", "certificate.html"):
        text = (tmp_path / name).read_text()
        assert "password" not in text and "token" not in text and "suspect.example/predict" in text


def test_an_independent_model_is_not_shown_to_be_owned(place, tmp_path, capsys):
    assert run(*examining(place, tmp_path, place / "innocent", "--null", place / "nulls")) == commands.NOT_SHOWN
    assert read(tmp_path).verdict == "not shown"
    assert capsys.readouterr().out.startswith("Ownership is not shown. ")


def test_without_null_models_nothing_is_shown(place, stolen, tmp_path):
    assert run(*examining(place, tmp_path, stolen)) == commands.NOT_SHOWN
    assert read(tmp_path).p_model is None


def test_a_pool_too_small_for_the_level_shows_nothing(place, stolen, tmp_path):
    assert (
        run(*examining(place, tmp_path, stolen, "--null", place / "nulls/0", "--null", place / "nulls/1")) == commands.NOT_SHOWN
    )
    assert read(tmp_path).p_model == pytest.approx(1 / 3)


def test_a_budget_is_kept(place, stolen, tmp_path):
    run(*examining(place, tmp_path, stolen, "--null", place / "nulls", "--limits", "{budget: 9}"))
    assert read(tmp_path).queries.sent == 8


def test_logits_that_look_like_probabilities_are_warned_of(place, stolen, tmp_path, capsys):
    tiny.key(tmp_path / "key.json", METHOD.options(), dataset.load(place / "data").share("test").images, logits=0.5)
    argv = examining(place, tmp_path / "out", stolen, "--key", tmp_path / "key.json", "--access", "logits")
    assert run(*argv) == commands.NOT_SHOWN
    assert "All of its logits lie between -1 and 1" in capsys.readouterr().out
    assert run(*examining(place, tmp_path / "other", stolen)) == commands.NOT_SHOWN
    assert "All of its logits" not in capsys.readouterr().out


def test_a_file_is_examined_as_its_interface_describes_it(place, tmp_path, capsys):
    channels, h, w = Key.read(place / "key.json").shape
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", h, w, channels]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "same", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "seg.onnx")
    argv = examining(place, tmp_path / "out", tmp_path / "seg.onnx")
    assert run(*argv) == 1 and "{layout: nhwc}" in capsys.readouterr().err
    chosen = {} if channels == 1 else {"foreground": [1]}
    assert run(*argv, "--interface", json.dumps({"layout": "nhwc", **chosen})) == commands.NOT_SHOWN
    suspect = read(tmp_path / "out").suspect
    assert suspect.name == "seg.onnx" and suspect.interface["layout"] == "nhwc"
    assert "layout: nhwc" in (tmp_path / "out/certificate.html").read_text()


def test_labels_are_not_examined_as_probabilities(place, stolen, tmp_path, capsys):
    argv = examining(place, tmp_path, stolen, "--interface", "{shows: labels}")
    assert run(*argv) == 1 and "'shows' of the interface has the value 'labels'" in capsys.readouterr().err
    assert run(*argv, "--access", "label") == 1 and "the label 0.1" in capsys.readouterr().err


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
        (["--access", "weights"], "has no detector for the access level 'weights'"),
    ],
)
def test_what_cannot_be_examined_ends_in_one_sentence_and_no_certificate(place, stolen, tmp_path, capsys, more, sentence):
    assert run(*examining(place, tmp_path / "out", stolen, *more)) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_commitment_than_the_published_one_is_refused(place, stolen, tmp_path, capsys):
    (tmp_path / "notary.json").write_text(json.dumps({"commitment": "0" * 64}))
    assert run(*examining(place, tmp_path / "out", stolen, "--commitment", tmp_path / "notary.json")) == 1
    assert "notary.json is 0000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_suspect_whose_answers_are_not_numbers_gets_no_verdict(place, monkeypatch, tmp_path, capsys):
    def connect(suspect, shape, device, limits, shows, interface):
        return Querier(Source(lambda images: (images[:, 0] / 0).numpy(), "it", shows=shows), limits, shape)

    monkeypatch.setattr(certify, "connect", connect)
    assert run(*examining(place, tmp_path / "out", "http://suspect.example", "--null", place / "nulls/0")) == 1
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_images_that_the_key_was_not_committed_with_are_refused(place, stolen, tmp_path, capsys):
    other = tiny.data(tmp_path / "other", seed=2, groups=28, cases_per_group=1)
    argv = examining(place, tmp_path / "out", stolen, "--null", place / "nulls/0")
    argv[argv.index(place / "data")] = other
    assert run(*argv) == 1
    assert "are not those that" in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- keys of other kinds of method ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fingerprint(place) -> Path:
    """A folder with the key of a fingerprint of the owner's model, and that model."""
    folder = place / "fingerprint"
    model = from_model(tiny.network(5), tiny.CPU)
    arrays = dataset.load(place / "data").share("calibration")
    owner = Owner(tiny.network(5), model, torch.from_numpy(arrays.images[:]).float() / 255, torch.from_numpy(arrays.masks[:]))
    tiny.checkpoint(folder / "own", 5)
    images = dataset.load(place / "data").share("test").images
    tiny.key(folder / "key.json", tiny.FINGERPRINT, images, owner=owner, probabilities=-0.001)
    return folder


def test_a_fingerprint_shows_who_owns_a_model_that_nobody_marked(place, fingerprint, tmp_path):
    argv = examining(fingerprint, tmp_path, fingerprint / "own", "--null", place / "nulls")
    argv[argv.index(fingerprint / "data")] = place / "data"
    assert run(*argv) == 0
    told = read(tmp_path)
    assert (told.verdict, told.p_model) == ("shown", pytest.approx(0.05))
    assert (told.method.kind, told.method.name) == ("fingerprint", "reference-answers") and "fingerprint" in told.claim
    # The questions are its own, 12 of them, each for itself; the owner's images are not asked with.
    assert (told.queries.images, told.queries.patients, told.queries.sent) == (12, 12, 12)
    assert told.p_inside == pytest.approx(0.55**12)
    argv[argv.index(fingerprint / "own")] = place / "innocent"
    assert run(*argv) == commands.NOT_SHOWN


def test_a_budget_that_does_not_suffice_for_a_fingerprints_questions_is_refused(place, fingerprint, tmp_path, capsys):
    argv = ["certify", "--data", place / "data", "--key", fingerprint / "key.json", "--suspect", fingerprint / "own"]
    assert run(*argv, "--limits", "{budget: 11}", "--out", tmp_path / "out") == 1
    assert "the budget allows 11" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_changed_reference_gives_no_certificate(place, fingerprint, tmp_path, capsys):
    shutil.copytree(fingerprint, tmp_path / "changed")
    reference = tmp_path / "changed/key.safetensors"
    content = bytearray(reference.read_bytes())
    content[-1] ^= 1
    reference.write_bytes(content)
    argv = ["certify", "--data", place / "data", "--key", tmp_path / "changed/key.json", "--suspect", fingerprint / "own"]
    assert run(*argv, "--out", tmp_path / "out") == 1
    assert "key.safetensors is not the reference that was committed to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mark_that_is_read_from_weights_has_no_certificate(place, tmp_path, capsys):
    images = dataset.load(place / "data").share("test").images
    tiny.key(tmp_path / "key.json", tiny.WHITE_BOX, images, weights=0.0)
    argv = ["certify", "--data", place / "data", "--key", tmp_path / "key.json", "--suspect", place / "innocent"]
    assert run(*argv, "--access", "weights", "--out", tmp_path / "out") == 1
    assert "is a key of weight-bits, which is read from weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_certificate_names_the_file_that_was_asked(place, tmp_path):
    run(*examining(place, tmp_path, place / "innocent", "--null", place / "nulls/0"))
    told = read(tmp_path).suspect
    weights = (place / "innocent" / WEIGHTS).read_bytes()
    assert (told.name, told.kind, told.sha256) == ("innocent", "checkpoint", hashlib.sha256(weights).hexdigest())


def test_a_certificate_is_about_one_suspect(place, stolen, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(*examining(place, tmp_path, stolen, "--suspect", stolen))
    assert "given twice; a certificate is about one suspect" in capsys.readouterr().err
