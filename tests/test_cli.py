"""The command line on bad input: one sentence on standard error, status 1, nothing half-written. And failed cells."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from stealthmark import cli, commands, suite
from stealthmark.files import read_json
from stealthmark.layout import Place, Study, job_folder
from stealthmark.method import Key

DATASET = "{name: phantom-endoscopy, groups: 8, cases_per_group: 2}"
ONE_EPOCH = "{epochs: 1, batch: 4}"
DIVERGING = "{epochs: 1, batch: 2, lr: 1.0e+30}"


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


@pytest.fixture
def refused(capsys):
    """Run a command that must end in one sentence and status 1; the sentence."""

    def refused(*argv: object) -> str:
        assert run(*argv) == 1
        error = capsys.readouterr().err.strip().splitlines()
        sentences = [line for line in error if line.startswith("error: ")]
        assert len(sentences) == 1 and error[-1] == sentences[0], error
        assert not any("Traceback" in line for line in error)
        return sentences[0]

    return refused


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A prepared phantom, an owner's clean model and a marked one with its key. Read only."""
    place = tmp_path_factory.mktemp("cli")
    data = place / "data"
    assert run("prepare", "--dataset", DATASET, "--size", 32, "--seed", 1, "--out", data) == 0
    assert run("train", "--data", data, "--schedule", ONE_EPOCH, "--out", place / "clean") == 0
    marking = ["--data", data, "--clean", place / "clean", "--schedule", ONE_EPOCH, "--out", place / "marked"]
    owned = ["--key", place / "keys/mine.json", "--seed", 0]
    assert run("mark", *marking, "--method", "badnets", "--access", "probabilities", "label", *owned) == 0
    return place


@pytest.fixture
def clean(place, tmp_path) -> Path:
    """A copy of the clean model, to be damaged."""
    return Path(shutil.copytree(place / "clean", tmp_path / "damaged"))


def examining(place: Path, model: Path, out: Path, *more: object) -> list:
    return ["examine", "--data", place / "data", "--suspect", f"stolen/none={model}", "--out", out, *more]


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


# --- what good input leaves -------------------------------------------------------------------------------------------


def test_the_stages_write_their_cards_and_a_note_of_the_run(place):
    assert set(files(place / "clean")) == {"card.json", "model.safetensors", "run.json"}
    assert set(files(place / "marked")) == {"card.json", "model.safetensors", "run.json"}
    assert set(files(place / "keys")) == {"mine.json", "mine.commitment.json"}
    assert (place / "keys/mine.json").stat().st_mode & 0o077 == 0, "others may read the key"
    note = json.loads((place / "marked/run.json").read_text())
    assert note["status"] == "ok" and note["command"].startswith("python -m stealthmark")


def test_a_card_says_nothing_about_the_mark(place):
    clean, marked = (json.loads((place / folder / "card.json").read_text()) for folder in ("clean", "marked"))
    assert clean == marked


def test_the_same_command_gives_the_same_weights_and_key(place, tmp_path):
    marking = ["--data", place / "data", "--clean", place / "clean", "--schedule", ONE_EPOCH, "--out", tmp_path / "marked"]
    torch.manual_seed(123)
    owned = ["--key", tmp_path / "keys/mine.json", "--seed", 0]
    assert run("mark", *marking, "--method", "badnets", "--access", "probabilities", "label", *owned) == 0
    for file in ("marked/model.safetensors", "marked/card.json", "keys/mine.json", "keys/mine.commitment.json"):
        assert (tmp_path / file).read_bytes() == (place / file).read_bytes(), file


def test_a_key_that_nobody_seeded_is_another_every_time(place, tmp_path):
    marking = ["--data", place / "data", "--clean", place / "clean", "--schedule", ONE_EPOCH, "--method", "badnets"]
    for name in "ab":
        assert run("mark", *marking, "--out", tmp_path / f"model-{name}", "--key", tmp_path / f"{name}.json") == 0
    assert Key.read(tmp_path / "a.json").seed != Key.read(tmp_path / "b.json").seed


def test_a_key_does_not_go_into_the_models_folder(place, tmp_path, refused):
    mark = ["mark", "--data", place / "data", "--clean", place / "clean", "--method", "badnets", "--out", tmp_path / "out"]
    assert "lies inside the model's folder" in refused(*mark, "--key", tmp_path / "out/key.json")
    assert not (tmp_path / "out").exists()


# --- commitments ------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(place, tmp_path) -> Path:
    """A copy of the key with its commitment, to be tampered with."""
    return Path(shutil.copytree(place / "keys", tmp_path / "keys"))


def test_a_key_that_was_changed_after_the_commitment_is_refused(place, keys, tmp_path, refused):
    key = json.loads((keys / "mine.json").read_text())
    key["detectors"]["probabilities"]["threshold"] -= 0.1
    (keys / "mine.json").write_text(json.dumps(key))
    sentence = refused(*examining(place, place / "marked", tmp_path / "out", "--key", keys / "mine.json"))
    assert "is not the key that was committed to" in sentence
    assert not (tmp_path / "out").exists()


def test_a_key_without_its_commitment_is_refused(place, keys, tmp_path, refused):
    (keys / "mine.commitment.json").unlink()
    sentence = refused(*examining(place, place / "marked", tmp_path / "out", "--key", keys / "mine.json"))
    assert "mine.commitment.json is absent" in sentence


def test_other_images_than_those_committed_are_refused(place, tmp_path, refused):
    other = tmp_path / "data"
    assert run("prepare", "--dataset", DATASET, "--size", 32, "--seed", 2, "--out", other) == 0
    suspect = ["--suspect", f"stolen/none={place / 'marked'}", "--key", place / "keys/mine.json"]
    sentence = refused("examine", "--data", other, *suspect, "--out", tmp_path / "out")
    assert "are not those that" in sentence and "was committed with" in sentence


# --- names and options ------------------------------------------------------------------------------------------------


def test_unknown_names_and_options(place, tmp_path, refused):
    out = ["--data", place / "data", "--out", tmp_path / "out"]
    mark = ["mark", *out, "--clean", place / "clean", "--key", tmp_path / "key.json"]
    assert "unknown method 'watermark'; known: badnets, blended, clean" in refused(*mark, "--method", "watermark")
    assert "no field 'size'" in refused(*mark, "--method", "{name: badnets, size: 3}")
    assert "'name' has the value None" in refused(*mark, "--method", "{wrong: empty}")
    assert "'epochs' has the value 0" in refused(*mark, "--method", "badnets", "--schedule", "{epochs: 0}")
    assert "unknown architecture 'vgg'" in refused("train", *out, "--architecture", "vgg")
    assert "unknown attack 'melt'" in refused("attack", *out, "--model", place / "marked", "--attack", "melt")
    assert "unknown dataset 'polyps'" in refused("prepare", "--dataset", "polyps", "--size", 32, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_access_level(place, tmp_path, refused):
    marking = ["--data", place / "data", "--clean", place / "clean", "--schedule", ONE_EPOCH, "--out", tmp_path / "out"]
    marking += ["--key", tmp_path / "key.json"]
    assert "unknown access level 'gradients'; allowed: logits, probabilities" in refused(
        "mark", *marking, "--method", "badnets", "--access", "gradients"
    )
    assert not (tmp_path / "out").exists(), "found only after the training"


@pytest.mark.parametrize("option", ["{name: badnets", "[badnets]", "3"])
def test_an_option_that_is_no_mapping_is_a_usage_error(place, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as end:
        marking = ["--data", place / "data", "--clean", place / "clean", "--out", tmp_path / "out", "--key", tmp_path / "key"]
        run("mark", *marking, "--method", option)
    assert end.value.code == 2
    assert f"argument --method: {option!r} is not" in capsys.readouterr().err


def test_a_suspect_in_another_form_is_a_usage_error(place, tmp_path, capsys):
    for text, said in (
        (place / "clean", "ROLE[.MEMBER]/ATTACK=FOLDER"),
        ("found/none=x", "the role one of stolen, independent"),
    ):
        with pytest.raises(SystemExit) as end:
            suspect = ["--key", place / "keys/mine.json", "--suspect", text]
            run("explain", "--data", place / "data", "--out", tmp_path / "out", *suspect)
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_attacks_are_a_name_a_mapping_or_a_list_of_both():
    parse = cli._parser().parse_args
    given = ["attack", "--data", "d", "--model", "m", "--out", "o", "--attack"]
    assert parse([*given, "prune"]).attack == {"name": "prune"}
    assert parse([*given, "{name: prune, strengths: [0.5]}"]).attack == {"name": "prune", "strengths": [0.5]}
    assert parse([*given, "[{name: prune, strengths: [0.5]}, jpeg]"]).attack == [
        {"name": "prune", "strengths": [0.5]},
        {"name": "jpeg"},
    ]


@pytest.mark.parametrize("option", ["[]", "[prune, 3]", "7"])
def test_a_list_of_attacks_that_is_none_is_a_usage_error(option, capsys):
    with pytest.raises(SystemExit) as end:
        run("attack", "--data", "d", "--model", "m", "--out", "o", "--attack", option)
    assert end.value.code == 2 and f"argument --attack: {option!r} is not" in capsys.readouterr().err


def test_claims_need_a_key(place, tmp_path, refused):
    assert "--claims needs --key" in refused(*examining(place, place / "clean", tmp_path / "out", "--claims", "{keys: 2}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(place, tmp_path, refused):
    assert "'cuda' was asked for" in refused("train", "--data", place / "data", "--out", tmp_path / "out", "--device", "cuda")
    assert not (tmp_path / "out").exists()


def test_the_examples_in_the_help_are_valid(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    option = text[text.index("'{name: badnets") + 1 : text.index("}'") + 1]
    from stealthmark.plugin import make

    assert make("method", yaml.safe_load(option)).options() != make("method", {"name": "badnets"}).options()


# --- files ------------------------------------------------------------------------------------------------------------


def test_data_that_are_not_there(place, tmp_path, refused):
    nowhere = ["--data", tmp_path / "nowhere", "--out", tmp_path / "out"]
    for argv in (
        ["train", *nowhere],
        ["mark", *nowhere, "--clean", place / "clean", "--method", "badnets", "--key", tmp_path / "key.json"],
        ["attack", *nowhere, "--model", place / "marked", "--attack", "prune"],
        ["examine", *nowhere, "--suspect", f"stolen/none={place / 'clean'}"],
    ):
        assert "nowhere is not a prepared dataset: manifest.json is absent" in refused(*argv)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(place, tmp_path, refused):
    out = ["--data", place / "data", "--out", tmp_path / "out"]
    assert "card.json is absent" in refused(
        "mark", *out, "--clean", tmp_path, "--method", "badnets", "--key", tmp_path / "key.json"
    )
    assert "card.json is absent" in refused("attack", *out, "--model", tmp_path, "--attack", "prune")
    assert "card.json is absent" in refused(*examining(place, tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_not_there(place, tmp_path, refused):
    sentence = refused(*examining(place, place / "marked", tmp_path / "out", "--key", tmp_path / "key.json"))
    assert "there is no key at" in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, expected",
    {
        b"{": "is not a key",
        b"\x80\x04\x95": "is not a key",
        b"[]": "is not a key",
        b'{"method": {"name": "badnets"}, "seed": 1}': "the field 'shape' is missing",
        b'{"method": {"name": "badnets"}, "seed": -1, "shape": [3, 32, 32]}': "'seed' has the value -1",
        b'{"method": {"name": "nothing"}, "seed": 1, "shape": [3, 32, 32]}': "unknown method 'nothing'",
        b'{"method": {}, "seed": 1, "shape": [3, 32, 32]}': "'name' has the value None",
    }.items(),
)
def test_a_file_that_is_no_key(place, tmp_path, refused, text, expected):
    with suppress(ValueError):
        Key.model_validate_json(text).write(tmp_path / "key.json")  # what is committed to may still be of no use
    (tmp_path / "key.json").write_bytes(text)
    assert expected in refused(*examining(place, place / "marked", tmp_path / "out", "--key", tmp_path / "key.json"))
    assert not (tmp_path / "out").exists()


def test_a_key_for_queries_of_another_shape(place, tmp_path, refused):
    Key.read(place / "keys/mine.json").model_copy(update={"shape": (3, 64, 64)}).write(tmp_path / "key.json")
    sentence = refused(*examining(place, place / "marked", tmp_path / "out", "--key", tmp_path / "key.json"))
    assert "(3, 64, 64)" in sentence and "(3, 32, 32)" in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "card, expected",
    {
        "{": "is not JSON",
        "[1]": "is not a mapping",
        "{}": "the field 'architecture' is missing",
        '{"architecture": {"name": "unet"}, "channels": 7, "size": 32}': "'channels' has the value 7",
        '{"architecture": {"name": "vgg"}, "channels": 3, "size": 32}': "unknown architecture 'vgg'",
        '{"architecture": {"name": "unet", "depth": 9}, "channels": 3, "size": 32}': "no field 'depth'",
        '{"format": 2, "architecture": {"name": "unet"}, "channels": 3, "size": 32}': "'format' has the value 2",
    }.items(),
)
def test_a_card_that_is_none(place, clean, tmp_path, refused, card, expected):
    (clean / "card.json").write_text(card)
    assert expected in refused(*examining(place, clean, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture(place, clean, tmp_path, refused):
    save_file({"conv.weight": torch.zeros(3, 3)}, clean / "model.safetensors")
    sentence = refused(*examining(place, clean, tmp_path / "out"))
    assert "are not those of the architecture 'unet'" in sentence and not (tmp_path / "out").exists()


def test_weights_of_another_shape(place, clean, tmp_path, refused):
    tensors = load_file(clean / "model.safetensors")
    first = next(name for name in tensors if name.endswith("conv_stem.weight"))
    save_file(tensors | {first: tensors[first][:, :1].contiguous()}, clean / "model.safetensors")
    sentence = refused(*examining(place, clean, tmp_path / "out"))
    assert f"1 tensors differ, {first} the first" in sentence


def test_a_model_for_images_of_other_channels(place, tmp_path, refused):
    assert run("prepare", "--dataset", DATASET.replace("endoscopy", "cine"), "--size", 32, "--out", tmp_path / "grey") == 0
    grey = ["--data", tmp_path / "grey", "--out", tmp_path / "out"]
    for argv in (
        ["mark", *grey, "--clean", place / "clean", "--method", "badnets", "--key", tmp_path / "key.json"],
        ["attack", *grey, "--model", place / "marked", "--attack", "prune"],
        ["examine", *grey, "--suspect", f"stolen/none={place / 'clean'}"],
    ):
        assert "takes images of 3 channels, the dataset's have 1" in refused(*argv)
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_of_weights(place, clean, tmp_path, refused):
    whole = (clean / "model.safetensors").read_bytes()
    for length in (0, 4, 1000, len(whole) - 1):
        (clean / "model.safetensors").write_bytes(whole[:length])
        assert "is not a checkpoint" in refused(*examining(place, clean, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_the_place_of_weights_is_never_loaded(place, clean, tmp_path, refused, zipped):
    torch.save(Trap(tmp_path / "sprung"), clean / "model.safetensors", _use_new_zipfile_serialization=zipped)
    assert "is not a checkpoint" in refused(*examining(place, clean, tmp_path / "out"))
    assert "is not a checkpoint" in refused(
        "attack", "--data", place / "data", "--model", clean, "--attack", "prune", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_yield_no_verdict(place, clean, tmp_path, refused):
    tensors = load_file(clean / "model.safetensors")
    last = [name for name in tensors if name.endswith("segmentation_head.0.bias")][0]
    save_file(tensors | {last: torch.full_like(tensors[last], torch.nan)}, clean / "model.safetensors")
    assert "has changed since it was written" in refused(*examining(place, clean, tmp_path / "out"))
    (clean / "run.json").unlink()
    assert "not finite" in refused(*examining(place, clean, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- a full disk ------------------------------------------------------------------------------------------------------


def no_space(tensors, path: Path, *args) -> None:
    Path(path).write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("record", [[], ["--record-failure"]])
def test_a_full_disk_while_training(place, tmp_path, refused, monkeypatch, record):
    """Not a failed cell either: it is for a person to mend, and to run again."""
    monkeypatch.setattr("stealthmark.architecture.save_file", no_space)
    argv = ["train", "--data", place / "data", "--schedule", ONE_EPOCH, "--out", tmp_path / "out", *record]
    sentence = refused(*argv)
    assert "cannot write" in sentence and "No space left on device" in sentence
    assert files(tmp_path) == []


def test_a_full_disk_while_attacking_leaves_no_index(place, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("stealthmark.architecture.save_file", no_space)
    argv = ["attack", "--data", place / "data", "--model", place / "marked", "--attack", "prune", "--out", tmp_path / "out"]
    assert "No space left on device" in refused(*argv)
    assert files(tmp_path) == []


def test_a_full_disk_while_preparing(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("stealthmark.dataset.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert "no disk space" in refused("prepare", "--dataset", DATASET, "--size", 32, "--out", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


# --- a suite ----------------------------------------------------------------------------------------------------------

SUITE = {
    "suite": "tiny",
    "title": "For tests",
    "seed": 1,
    "seeds": [0],
    "size": 32,
    "datasets": [{"name": "phantom-endoscopy", "groups": 8, "cases_per_group": 2}],
    "architectures": ["unet"],
    "methods": ["clean", "badnets"],
    "attacks": [{"name": "prune", "strengths": [0.5]}],
    "access": ["probabilities"],
}


def test_a_suite_that_is_wrong_or_absent(tmp_path, refused):
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE | {"size": 33}))
    for argv in (
        ["check"],
        ["collate", "--results", tmp_path / "r", "--suite"],
        ["report", "--results", tmp_path / "r", "--suite"],
    ):
        assert "'size' has the value 33" in refused(*argv, tmp_path / "suite.yaml")
        assert "there is no suite at" in refused(*argv, tmp_path / "nothing.yaml")
    assert not (tmp_path / "r").exists()


def test_collating_what_was_not_examined(tmp_path, refused):
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    sentence = refused("collate", "--suite", tmp_path / "suite.yaml", "--results", tmp_path / "results")
    assert "stolen/none/evidence.json is absent: the suspect has not been examined" in sentence
    assert files(tmp_path) == ["suite.yaml"]


def test_check_says_how_many_cells_there_are(tmp_path, capsys):
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    assert run("check", tmp_path / "suite.yaml") == 0
    assert json.loads(capsys.readouterr().out) == {"suite": "tiny", "cells": 2}


# --- null models ------------------------------------------------------------------------------------------------------


def test_a_fraction_of_the_groups_is_another_model_and_its_seed_another_fraction(place, tmp_path):
    def weights(name: str, *more: object) -> dict:
        assert run("train", "--data", place / "data", "--schedule", ONE_EPOCH, "--out", tmp_path / name, *more) == 0
        return load_file(tmp_path / name / "model.safetensors")

    whole, part, again = weights("whole"), weights("part", "--fraction", 0.5), weights("again", "--fraction", "0.5")
    assert all(torch.equal(part[key], again[key]) for key in part)
    assert not all(torch.equal(part[key], whole[key]) for key in part)


@pytest.mark.parametrize("fraction", ["0", "1.5", "half", "nan"])
def test_what_is_no_fraction_is_refused(place, tmp_path, fraction, capsys):
    with pytest.raises(SystemExit):
        run("train", "--data", place / "data", "--out", tmp_path / "o", "--fraction", fraction)
    assert "is not a fraction: above 0, at most 1" in capsys.readouterr().err


# --- explanations -----------------------------------------------------------------------------------------------------

PLAN = {"code": "OWNER1", "images": 2, "queries": 300}


@pytest.fixture(scope="module")
def explained(place, tmp_path_factory) -> Path:
    """The study of one mark, with explanations, collated and reported."""
    results = tmp_path_factory.mktemp("explained")
    content = {**SUITE, "attacks": [], "access": ["probabilities", "label"], "explanations": PLAN}
    (results / "suite.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(place / "data", results / "data/phantom-endoscopy")
    study = Study(results)
    asked = suite.read(results / "suite.yaml")
    clean, marked = asked.cells()
    models = {"stolen": place / "marked", "independent": place / "clean", "untrained": place / "marked"}
    data, key = ["--data", place / "data"], ["--key", place / "keys/mine.json"]
    out = job_folder(study.evidence(clean), "stolen", "none")
    assert run("examine", *data, "--suspect", f"stolen/none={place / 'clean'}", "--out", out) == 0
    for verb, places, folder in (
        ("examine", asked.line_up(marked), study.evidence(marked)),
        ("explain", asked.explained(marked), study.explanations(marked)),
    ):
        for at in places:
            suspect = ["--suspect", f"{at.text}={models[at.role]}"]
            plan = ["--plan", yaml.safe_dump(PLAN)] if verb == "explain" else []
            assert run(verb, *data, *key, *suspect, *plan, "--out", job_folder(folder, at.role, at.attack)) == 0
    for verb in ("collate", "report"):
        assert run(verb, "--suite", results / "suite.yaml", "--results", results) == 0
    return results


def test_the_released_step_finds_the_code_in_every_model_and_lime_in_none(explained):
    rows = pd.read_csv(explained / "rows.csv")
    rows = rows[(rows.access == "probabilities") & rows.metric.isin(["bit_error", "decoded"])]
    assert set(rows.role) == {"stolen", "independent", "untrained"} and (rows.n == PLAN["images"]).all()
    assert set(rows["query"]) == {"trigger"} and (rows.queries == PLAN["queries"]).all() and not rows.pooled.astype(bool).any()
    values = rows.pivot_table(index=["metric", "reader"], columns="role", values="value")
    assert (values.loc["bit_error", "gated-qr"] == 0).all() and (values.loc["decoded", "gated-qr"] == 1).all()
    assert values.loc["bit_error", "lime"].between(0.3, 0.7).all() and (values.loc["decoded", "lime"] == 0).all()


def test_calibration_goes_from_the_examined_cases_to_the_page(explained):
    rows = pd.read_csv(explained / "rows.csv").query("role == 'stolen' and metric == metric")
    metrics = rows.groupby(["method", "query"]).metric.agg(set)
    assert {"ece", "brier"} <= metrics["clean", "benign"] and ("clean", "triggered") not in metrics
    assert {"ece", "brier"} <= metrics["badnets", "triggered"]
    cases = pd.read_parquet(explained / "cases.parquet").query("method == 'badnets' and access == 'probabilities'")
    (value,) = rows[(rows.method == "badnets") & (rows.metric == "brier") & (rows["query"] == "triggered")].value
    assert value == pytest.approx(cases[cases.role == "stolen"].brier_triggered.mean(), rel=1e-5)
    assert "calibration.csv" in files(explained / "tables") and "reliability.svg" in files(explained / "figures")
    assert 'id="figure-reliability"' in (explained / "report.html").read_text()


def test_an_interface_that_shows_nothing_of_the_change_shows_no_code(explained):
    """The label maps of a model trained for one epoch hardly change with what is hidden: no bit may appear from nothing."""
    tables = [pd.read_parquet(file) for file in sorted(explained.rglob("explanations/**/cases.parquet"))]
    assert len(tables) == 3, "one a suspect"
    for cases in tables:
        assert set(cases.access) == {"probabilities", "label"} and cases.role.nunique() == 1
        assert cases.groupby(["access", "query", "reader"]).size().eq(PLAN["images"]).all()


def test_the_report_shows_the_explanations_side_by_side(explained):
    assert "never trained" in (explained / "figures/explanations-phantom-endoscopy.svg").read_text()
    table = (explained / "tables/explanations.md").read_text()
    assert "gated-qr: untrained" in table and "LIME, random occlusion: stolen" in table and "failed" not in table
    assert "Whose models show" in (explained / "report.html").read_text()


@pytest.mark.parametrize(
    "plan, expected",
    [
        ({"code": "TOOLONG"}, "does not fit"),
        ({"queries": 1}, "greater than or equal to 2"),
        ({"cod": "A"}, "fields: code, kind"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(place, refused, tmp_path, plan, expected):
    suspect = ["--key", place / "keys/mine.json", "--suspect", f"stolen/none={place / 'marked'}"]
    assert expected in refused(
        "explain", "--data", place / "data", *suspect, "--plan", yaml.safe_dump(plan), "--out", tmp_path / "o"
    )
    assert files(tmp_path) == []


# --- failed cells -----------------------------------------------------------------------------------------------------


def study(place: Path, results: Path, training: str, marking: str) -> pd.DataFrame:
    """The whole suite by the commands that the workflow gives; its rows."""
    (results / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    at = Study(results)
    shutil.copytree(place / "data", at.data("phantom-endoscopy"))
    clean, marked = suite.read(results / "suite.yaml").cells()

    def stage(verb: str, folder: Path, *argv: object) -> None:
        data = at.data("phantom-endoscopy")
        assert run(verb, "--data", data, "--record-failure", "--out", folder, *argv) == 0

    def examine(cell, where: Place, suspect: Path, *argv: object) -> None:
        out = job_folder(at.evidence(cell), where.role, where.attack)
        stage("examine", out, "--suspect", f"{where.text}={suspect}", *argv)

    stage("train", at.model(clean), "--schedule", training)
    stage("train", at.independent(clean), "--schedule", ONE_EPOCH, "--share", "attacker")
    key = ["--key", at.key(marked)]
    stage("mark", at.model(marked), "--clean", at.model(clean), "--method", "badnets", "--schedule", marking, *key)
    pruned = at.attacked(marked, "prune")
    stage("attack", pruned, "--model", at.model(marked), "--attack", "{name: prune, strengths: [0.5]}")
    examine(clean, Place(), at.model(clean))
    key += ["--marked", at.model(marked)]
    examine(marked, Place(), at.model(marked), *key)
    examine(marked, Place(attack="prune"), pruned, *key)
    examine(marked, Place("independent"), at.independent(clean), *key)
    assert run("collate", "--suite", results / "suite.yaml", "--results", results) == 0
    return pd.read_csv(results / "rows.csv")


@pytest.fixture
def lost_mark(place, tmp_path) -> pd.DataFrame:
    return study(place, tmp_path, ONE_EPOCH, DIVERGING)


def test_a_lost_mark_is_one_row_with_its_status_and_hides_nothing_else(lost_mark, tmp_path):
    status = r"failed: the loss became (nan|inf) at step \d+ \(epoch 1\)"
    card = read_json(tmp_path / "models/phantom-endoscopy/unet/0/badnets/card.json")
    assert list(card) == ["status"]
    failed, fine = lost_mark[lost_mark.method == "badnets"], lost_mark[lost_mark.method == "clean"]
    assert len(failed) == 1 and failed.status.str.fullmatch(status).all() and failed.value.isna().all()
    assert failed.status.item() == card["status"]
    assert (fine.status == "ok").all() and {"dice", "auc", "vs"} <= set(fine.metric)
    evidence = [f"evidence/{of}/evidence.json" for of in ("stolen/none", "stolen/prune", "independent/none")]
    for name in ("suspects/prune/index.json", *evidence):
        kind, _, file = name.partition("/")
        handed_on = read_json(tmp_path / kind / "phantom-endoscopy/unet/0/badnets" / file)
        assert handed_on == card, name
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("state"))
    run_note = json.loads((tmp_path / "models/phantom-endoscopy/unet/0/badnets/run.json").read_text())
    assert run_note["status"] == card["status"]


def test_what_an_earlier_run_left_is_not_taken_for_a_failed_cells(lost_mark, tmp_path):
    evidence = tmp_path / "evidence/phantom-endoscopy/unet/0"
    shutil.copy(evidence / "clean/stolen/none/cases.parquet", evidence / "badnets/stolen/none")
    assert run("collate", "--suite", tmp_path / "suite.yaml", "--results", tmp_path) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rows.csv"), lost_mark)


def test_a_lost_clean_model_is_one_row_for_each_cell_that_needs_it(place, tmp_path):
    rows = study(place, tmp_path, DIVERGING, ONE_EPOCH)
    assert rows.method.tolist() == ["clean", "badnets"]
    assert rows.status.str.startswith("failed: the loss became").all() and rows.status.nunique() == 1


def test_a_study_without_failures_has_rows_for_every_cell_and_attack(place, tmp_path):
    rows = study(place, tmp_path, ONE_EPOCH, ONE_EPOCH)
    assert (rows.status == "ok").all()
    places = rows[["method", "role", "attack", "strength"]].drop_duplicates().values.tolist()
    of_the_mark = [["stolen", "none", 0], ["stolen", "prune", 0.5], ["independent", "none", 0]]
    assert places == [["clean", "stolen", "none", 0], *(["badnets", *place] for place in of_the_mark)]
    marked, clean = rows[rows.method == "badnets"], rows[rows.method == "clean"]
    assert {"asr", "fpr", "auroc", "dice"} <= set(marked.metric) and "triggered" in set(marked["query"])
    assert not {"asr", "auroc"} & set(clean.metric) and "triggered" not in set(clean["query"])


def test_without_record_failure_a_lost_loss_is_an_error_with_its_trace(place, tmp_path):
    from stealthmark.errors import CellFailure

    with pytest.raises(CellFailure, match="the loss became"):
        run("train", "--data", place / "data", "--schedule", DIVERGING, "--out", tmp_path / "out")
    assert files(tmp_path) == []


# --- starting, and being asked from elsewhere -------------------------------------------------------------------------


def test_the_note_of_a_run_says_what_was_typed(tmp_path):
    argv = ["prepare", "--dataset", DATASET, "--size", "32", "--out", tmp_path / "a b"]
    assert run(*argv) == 0
    note = json.loads((tmp_path / "a b/run.json").read_text())
    assert note["command"] == shlex.join(["python", "-m", "stealthmark", *map(str, argv)])


def test_a_scanners_score_and_a_failure_of_its_model(place, tmp_path):
    scanning = ["--data", place / "data", "--scanner", "entropy", "--record-failure"]
    for folder in ("one", "again"):
        assert run("scan", *scanning, "--model", place / "marked", "--out", tmp_path / folder) == 0
    one, again = (json.loads((tmp_path / folder / "scan.json").read_text()) for folder in ("one", "again"))
    assert one == again and isinstance(one["score"], float) and one["scanner"]["name"] == "entropy"
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost/card.json").write_text('{"status": "failed: the loss became nan"}')
    assert run("scan", *scanning, "--model", tmp_path / "lost", "--out", tmp_path / "none") == 0
    assert read_json(tmp_path / "none/scan.json") == {"status": "failed: the loss became nan"}


def test_another_null_model_gives_another_detector_of_the_same_model(place, tmp_path):
    marking = [
        "--data",
        place / "data",
        "--clean",
        place / "clean",
        "--schedule",
        ONE_EPOCH,
        "--method",
        "badnets",
        "--seed",
        0,
    ]
    new = ["--null", place / "marked", "--out", tmp_path / "model", "--key", tmp_path / "key.json"]
    assert run("mark", *marking, *new) == 0
    own, other = Key.read(place / "keys/mine.json"), Key.read(tmp_path / "key.json")
    assert other.detectors["probabilities"] != own.detectors["probabilities"]
    weights = "model.safetensors"
    assert (tmp_path / "model" / weights).read_bytes() == (place / "marked" / weights).read_bytes()


def test_a_null_model_that_failed_fails_the_mark(place, tmp_path):
    (tmp_path / "card.json").write_text('{"status": "failed: it was"}')
    marking = ["--data", place / "data", "--clean", place / "clean", "--method", "badnets", "--record-failure"]
    assert run("mark", *marking, "--null", tmp_path, "--out", tmp_path / "none", "--key", tmp_path / "none.json") == 0
    assert read_json(tmp_path / "none/card.json") == {"status": "failed: it was"}


def test_a_certificate_is_a_command_of_its_own(place, tmp_path, refused, capsys):
    """No null model: no p, so ownership is not shown, which the exit status says."""
    argv = ["certify", "--data", place / "data", "--key", place / "keys/mine.json", "--out", tmp_path / "claim"]
    assert run(*argv, "--suspect", place / "marked") == commands.NOT_SHOWN
    assert "Ownership is not shown" in capsys.readouterr().out
    beside = {"scores.parquet", "queries.parquet", "answers.npz", "commitment.json"}
    assert set(files(tmp_path / "claim")) == {"certificate.html", "certificate.json"} | beside
    assert "there is no model in" in refused(*argv, "--suspect", place / "marked", "--null", tmp_path)
    assert "cannot read" in refused(*argv, "--suspect", place / "marked", "--commitment", tmp_path / "nothing.json")
    assert "there is no suspect at" in refused(*argv, "--suspect", tmp_path / "nothing.onnx")
    with pytest.raises(SystemExit) as end:
        run("examine", "--data", place / "data", "--suspect", place / "marked", "--out", tmp_path / "out")
    assert end.value.code == 2, "examine does not guess what it was meant to be"


def test_what_computes_nothing_starts_without_torch():
    for argv in (["--help"], ["collate", "--help"]):
        command = [sys.executable, "-X", "importtime", "-m", "stealthmark", *argv]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        assert done.returncode == 0 and not re.search(r"\| +torch$", done.stderr, re.MULTILINE), argv
