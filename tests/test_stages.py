"""Mark, attack and scan: what each kind of method and of attack leaves on the disk, and what it was made from."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from stealthmark import architecture, dataset
from stealthmark.access import LEVELS
from stealthmark.attack import Wrap, wrapped
from stealthmark.detection import ask
from stealthmark.errors import UserError
from stealthmark.files import write_json
from stealthmark.layout import CARD, INDEX, SCAN, WEIGHTS, Place
from stealthmark.method import Key, digest_of, reference_of
from stealthmark.plugin import make
from stealthmark.plugins import load
from stealthmark.seeds import derive
from stealthmark.settings import Schedule
from stealthmark.stages import attack as attack_stage
from stealthmark.stages import examination, scan, status_of, train
from stealthmark.stages import mark as mark_stage
from stealthmark.suspects.checkpoint import from_model

SCHEDULE = Schedule(epochs=2, batch=4)
ACCESS = ["probabilities", "label"]


@pytest.fixture(scope="module", autouse=True)
def _known_plugins():
    with tiny.known_plugins():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A prepared phantom, a clean model and a second one."""
    place = tmp_path_factory.mktemp("stages")
    tiny.data(place / "data")
    for seed, name in enumerate(("clean", "twin")):
        train.train(place / "data", "owner", tiny.NETWORK, SCHEDULE, seed, place / name, tiny.CPU)
    return place


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_training_ends_in_one_checkpoint_and_no_state(place):
    assert sorted(file.name for file in (place / "clean").iterdir()) == [CARD, WEIGHTS]
    assert not same(weights(place / "clean"), weights(place / "twin"))


def test_a_stage_that_has_not_run_is_named(tmp_path):
    with pytest.raises(UserError, match="card.json is absent: the stage before has not been run"):
        status_of(tmp_path / CARD)
    write_json(tmp_path / CARD, {"status": "failed: no"})
    assert status_of(tmp_path / CARD) == "failed: no"
    write_json(tmp_path / CARD, {"architecture": {}})
    assert status_of(tmp_path / CARD) == "ok"


# --- mark -------------------------------------------------------------------------------------------------------------


def mark(place: Path, out: Path, method: dict, **more) -> Key:
    mark_stage.mark(
        place / "data", place / "clean", method, SCHEDULE, ACCESS, 5, out / "model", out / "key.json", tiny.CPU, **more
    )
    return Key.read(out / "key.json")


def test_an_embedded_mark_is_trained_from_the_clean_model(place, tmp_path):
    key = mark(place, tmp_path, {"name": "badnets"})
    assert list(key.detectors) == ACCESS and key.reference == {} and not reference_of(tmp_path / "key.json").exists()
    assert not same(weights(tmp_path / "model"), weights(place / "clean"))
    assert key.images == digest_of(dataset.load(place / "data").share("test").images)
    again = mark(place, tmp_path / "again", {"name": "badnets"})
    assert again == key and same(weights(tmp_path / "model"), weights(tmp_path / "again/model"))


def test_the_clean_model_stands_for_others_in_the_detector_unless_another_is_given(place, tmp_path):
    method = {"name": "stealthmark", "trigger": "patch"}
    clean, clean_too = (mark(place, tmp_path / str(i), method, null=null) for i, null in enumerate((None, place / "clean")))
    twin = mark(place, tmp_path / "twin", method, null=place / "twin")
    assert clean.detectors == clean_too.detectors
    assert clean.detectors["probabilities"].threshold != twin.detectors["probabilities"].threshold
    assert same(weights(tmp_path / "0/model"), weights(tmp_path / "twin/model")), "the null model has no part in the training"


def test_a_marks_own_number_of_epochs_goes_before_the_suites(place, tmp_path, monkeypatch):
    schedules = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args: schedules.append(args[3]) or fit(*args))
    mark(place, tmp_path, {"name": "badnets", "epochs": 3})
    assert [schedule.epochs_of(1) for schedule in schedules] == [3]


@pytest.mark.parametrize("asks_with", ["own", "owner"])
def test_a_fingerprint_takes_no_training_step_and_leaves_the_model_as_it_is(place, tmp_path, monkeypatch, asks_with):
    def fit(*args, **more):
        raise AssertionError("a fingerprint was trained")

    monkeypatch.setattr(train, "fit", fit)
    key = mark(place, tmp_path, {**tiny.FINGERPRINT, "asks_with": asks_with}, null=place / "twin")
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == (place / "clean" / WEIGHTS).read_bytes()
    assert architecture.load(tmp_path / "model", tiny.CPU)[1] == architecture.load(place / "clean", tiny.CPU)[1]
    assert list(key.detectors) == ACCESS and set(key.reference) == {"images", "answers"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key.commitment.json", "key.json", "key.safetensors", "model"]
    count = make("method", tiny.FINGERPRINT).count if asks_with == "own" else len(_calibration(place).images)
    groups = count if asks_with == "own" else _calibration(place).cases.group_id.nunique()
    assert key.detectors["probabilities"].fitted_on == {"triggered": count, "not": 3 * count, "groups": groups}
    # The owner's model, which is the very same network, is told from the twin.
    method, threshold = make("method", key.method), key.detectors["probabilities"].threshold
    images = torch.from_numpy(_calibration(place).images[:]).float() / 255
    rates = []
    for folder in (tmp_path / "model", place / "twin"):
        predictor = from_model(architecture.load(folder, tiny.CPU)[0], tiny.CPU)
        answers = ask(method, key, {"": predictor}, [images])[""]
        rates.append((answers.triggered > threshold).double().mean().item())
    assert rates == [1, 0] if asks_with == "own" else rates[0] > rates[1]


def _calibration(place: Path):
    return dataset.load(place / "data").share("calibration")


def test_what_an_owner_has_when_a_key_is_made(place, tmp_path, monkeypatch):
    """The clean model, its answers, and calibration images with their masks: none that the model was trained on."""
    owners = []
    method = load("method", tiny.FINGERPRINT["name"])
    make_key = method.make_key
    monkeypatch.setattr(method, "make_key", lambda self, *args: owners.append(args[2]) or make_key(self, *args))
    mark(place, tmp_path, tiny.FINGERPRINT, null=place / "twin")
    (owner,) = owners
    calibration = _calibration(place)
    assert torch.equal(owner.images, torch.from_numpy(calibration.images[:]).float() / 255)
    assert torch.equal(owner.masks, torch.from_numpy(calibration.masks[:]).float())
    assert same(owner.model.state_dict(), weights(place / "clean")) and not owner.model.training
    with torch.no_grad():
        torch.testing.assert_close(owner.predictor(owner.images), owner.model(owner.images)[:, 0].sigmoid())
    shares = dataset.load(place / "data").cases.groupby("share").group_id.agg(set)
    assert not shares["calibration"] & shares["owner"]


def test_a_white_box_mark_is_trained_and_gets_a_detector_for_weights_alone(place, tmp_path):
    key = mark(place, tmp_path, tiny.WHITE_BOX)
    method = make("method", tiny.WHITE_BOX)
    assert list(key.detectors) == ["weights"] and "weights" not in LEVELS
    count = method.bits
    assert key.detectors["weights"].fitted_on == {"triggered": count, "not": 3 * count, "groups": count}
    assert not same(weights(tmp_path / "model"), weights(place / "clean"))
    marked, clean = (method.inspect(architecture.load(f, tiny.CPU)[0], key) for f in (tmp_path / "model", place / "clean"))
    assert marked.triggered.mean() > clean.triggered.mean(), "its loss had a part in the training"


def test_a_key_and_its_reference_are_for_the_owners_eyes(place, tmp_path):
    mark(place, tmp_path, tiny.FINGERPRINT, null=place / "twin")
    for name in ("key.json", "key.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert "noise" not in (tmp_path / "key.commitment.json").read_text()


# --- attack -----------------------------------------------------------------------------------------------------------

PRUNE, FINETUNE = {"name": "prune", "strengths": [0.6]}, {"name": "finetune", "strengths": [2], "lr": 1e-3, "batch": 2}
JPEG, MIRRORED = {"name": "jpeg", "strengths": [20, 60]}, {"name": "mirrored", "strengths": [4]}


def attack(place: Path, out: Path, what: dict | list, model: str | Path = "clean", seed: int = 9) -> list[dict]:
    """The suspects that an attack lists."""
    attack_stage.attack(place / "data", place / model, what, seed, out, tiny.CPU)
    index = json.loads((out / INDEX).read_text())
    files = {INDEX, *(suspect["model"] for suspect in index["suspects"] if not suspect["model"].startswith(".."))}
    assert {file.name for file in out.iterdir()} == files, "an attack leaves its suspects and nothing else"
    return index["suspects"]


def zeros(folder: Path) -> torch.Tensor:
    return torch.cat([(value == 0).flatten() for value in weights(folder).values() if value.ndim > 1])


def test_a_model_attack_keeps_a_checkpoint_a_strength(place, tmp_path):
    suspects = attack(place, tmp_path, {"name": "prune", "strengths": [0.2, 0.5]})
    assert suspects == [{"strength": 0.2, "model": "0.2", "wraps": []}, {"strength": 0.5, "model": "0.5", "wraps": []}]
    for suspect in suspects:
        assert zeros(tmp_path / suspect["model"]).float().mean().item() == pytest.approx(suspect["strength"], abs=0.01)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["attack"]["name"] == "prune" and index["unit"] == "fraction of weights"


def test_a_wrapper_leaves_the_stolen_model_where_it_is(place, tmp_path):
    suspects = attack(place, tmp_path, JPEG)
    assert [suspect["strength"] for suspect in suspects] == [20, 60]
    for suspect in suspects:
        assert (tmp_path / suspect["model"]).resolve() == (place / "clean").resolve()
        (wrap,) = suspect["wraps"]
        assert make("attack", wrap["attack"]) == make("attack", JPEG)
        assert (wrap["strength"], wrap["seed"]) == (suspect["strength"], 9)


def test_a_study_can_be_moved(place, tmp_path):
    """What a wrapper is around is named from the attack's own folder."""
    shutil.copytree(place, tmp_path / "here/study")
    attack(tmp_path / "here/study", tmp_path / "here/study/jpeg", JPEG)
    (tmp_path / "here").rename(tmp_path / "there")
    listed = examination.listed_in(tmp_path / "there/study/jpeg", Place(attack="jpeg"))
    assert [one.folder for one in listed] == [(tmp_path / "there/study/clean").resolve()] * 2


def test_a_stack_of_prune_finetune_and_jpeg_is_a_suspect_a_strength_of_jpeg(place, tmp_path):
    suspects = attack(place, tmp_path / "stack", [PRUNE, FINETUNE, JPEG])
    assert [(suspect["strength"], suspect["model"]) for suspect in suspects] == [(20, "20"), (60, "60")]
    assert [[wrap["strength"] for wrap in suspect["wraps"]] for suspect in suspects] == [[20], [60]]
    tuned = weights(tmp_path / "stack/20")
    assert same(tuned, weights(tmp_path / "stack/60")), "the same model behind both wrappers"

    # What is inside is what fine-tuning alone makes of what pruning alone leaves, to the last bit.
    attack(place, tmp_path / "pruned", PRUNE)
    attack(place, tmp_path / "tuned", FINETUNE, tmp_path / "pruned/0.6", derive(9, "step", 1))
    assert same(tuned, weights(tmp_path / "tuned/2"))
    # And it really is both: pruned weights have moved, and are still near zero; the stolen model's were not.
    pruned = zeros(tmp_path / "pruned/0.6")
    assert pruned.float().mean().item() == pytest.approx(0.6, abs=0.01)
    stolen, after = (torch.cat([v.flatten() for v in of.values() if v.ndim > 1]) for of in (weights(place / "clean"), tuned))
    assert (after[pruned] != 0).any() and after[pruned].abs().mean() < 0.5 * stolen[pruned].abs().mean()
    assert not same(tuned, weights(place / "clean"))


def test_a_stack_that_ends_in_a_model_attack_is_a_model_a_strength(place, tmp_path):
    suspects = attack(place, tmp_path, [PRUNE, {**FINETUNE, "strengths": [1, 2]}])
    assert [(suspect["strength"], suspect["model"], suspect["wraps"]) for suspect in suspects] == [(1, "1", []), (2, "2", [])]
    assert not same(weights(tmp_path / "1"), weights(tmp_path / "2"))


def test_a_stack_of_wrappers_copies_no_model_and_wraps_from_the_inside(place, tmp_path):
    suspects = attack(place, tmp_path, [MIRRORED, JPEG])
    assert all((tmp_path / suspect["model"]).resolve() == (place / "clean").resolve() for suspect in suspects)
    assert [[wrap["attack"]["name"] for wrap in suspect["wraps"]] for suspect in suspects] == [["mirrored", "jpeg"]] * 2
    # Opened: JPEG is what the owner's images meet first, and each mirrored copy is of what JPEG made of them.
    arrays = dataset.load(place / "data").lazy_share("test")
    opened = examination.Examination(None, None, arrays, tiny.CPU)
    model = from_model(architecture.load(place / "clean", tiny.CPU)[0], tiny.CPU)
    images = opened.images(np.arange(3))
    for listed in examination.listed_in(tmp_path, Place(attack="both")):
        mirrored = wrapped(model, listed.wraps[0])
        by_hand = wrapped(mirrored, listed.wraps[1])(images)
        assert torch.equal(opened.suspect(listed).predictor(images), by_hand)
        assert not torch.equal(by_hand, mirrored(images)) and not torch.equal(by_hand, model(images))
    strengths = {listed.place.strength for listed in examination.listed_in(tmp_path, Place(attack="both"))}
    assert strengths == {20, 60}


def test_a_wrapped_suspect_answers_alike_however_it_is_asked(place):
    """In whatever batch, and again: what a wrapper draws depends on its seed and the images, and answers are remembered."""
    arrays = dataset.load(place / "data").lazy_share("test")
    opened = examination.Examination(None, None, arrays, tiny.CPU)
    wraps = (Wrap({"name": "jpeg", "strengths": [50]}, 50.0, 3),)
    suspect = opened.suspect(examination.Listed(Place(attack="jpeg"), place / "clean", wraps, "ok"))
    images = opened.images(np.arange(len(arrays.cases)))
    together = suspect.predictor(images)
    assert torch.equal(torch.cat([suspect.predictor(image[None]) for image in images]), together)
    assert suspect.predictor.sent == len(images)


def test_an_attack_that_was_run_again_lists_the_same_suspects(place, tmp_path):
    once, again = (attack(place, tmp_path / name, [PRUNE, FINETUNE, JPEG]) for name in ("once", "again"))
    assert once == again and same(weights(tmp_path / "once/20"), weights(tmp_path / "again/20"))


def test_a_checkpoint_of_other_channels_is_refused(place, tmp_path):
    model = make("architecture", tiny.NETWORK).build(1, False, 32)
    architecture.save(model, architecture.card_for(tiny.NETWORK, 1, 32), tmp_path / "grey")
    with pytest.raises(UserError, match="takes images of 1 channels, the dataset's have 3"):
        attack(place, tmp_path / "out", PRUNE, tmp_path / "grey")


# --- scan -------------------------------------------------------------------------------------------------------------


def test_a_scan_is_one_number_that_the_same_seed_gives_again(place, tmp_path, monkeypatch):
    def scanned(name: str, seed: int) -> dict:
        scan.scan(place / "data", place / "clean", {"name": "entropy"}, seed, tmp_path / name, tiny.CPU)
        return json.loads((tmp_path / name / SCAN).read_text())

    first = scanned("first", 1)
    assert first == scanned("again", 1) and first["status"] == "ok" and isinstance(first["score"], float)
    assert first["scanner"] == make("scanner", {"name": "entropy"}).options()
    assert scanned("other", 2)["score"] != first["score"]

    handed = []
    scanner = load("scanner", "entropy")
    monkeypatch.setattr(scanner, "score", lambda self, *args: handed.append(args) or 0.0)
    monkeypatch.setattr(scan, "IMAGES", 2)
    scanned("watched", 3)
    ((model, images, masks, seed),) = handed
    attacker = dataset.load(place / "data").share("attacker")
    assert torch.equal(images, torch.from_numpy(attacker.images[:2]).float() / 255) and seed == 3
    assert torch.equal(masks, torch.from_numpy(attacker.masks[:2]).float()) and not model.training


def test_a_key_is_never_written_over_unless_that_is_asked_for(place, tmp_path):
    """Without its key a model can never be claimed."""
    method = {"name": "reference-answers"}
    mark(place, tmp_path, method)
    kept = ("key.json", "key.commitment.json", "key.safetensors")
    before = [(tmp_path / name).read_bytes() for name in kept]
    with pytest.raises(UserError, match=r"there is a key at .*key\.json, .* give another name"):
        mark_stage.mark(
            place / "data", place / "clean", method, SCHEDULE, ACCESS, 6, tmp_path / "model", tmp_path / "key.json", tiny.CPU
        )
    assert [(tmp_path / name).read_bytes() for name in kept] == before
    mark(place, tmp_path, {"name": "stealthmark"}, replace_key=True)
    assert (tmp_path / "key.json").read_bytes() != before[0]


def test_the_key_is_written_last_when_the_model_is_there(place, tmp_path, monkeypatch):
    """A kill between any two files leaves no key without its model, reference and commitment."""
    written = []
    replace = os.replace

    def noting(source, target):
        if Path(target).is_relative_to(tmp_path):
            written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    mark(place, tmp_path, {"name": "reference-answers"})
    assert written == [WEIGHTS, CARD, "key.safetensors", "key.commitment.json", "key.json"]
