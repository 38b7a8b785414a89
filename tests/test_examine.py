"""Examine: evidence per suspect, from the key's own thresholds; nothing is fitted, nobody asked twice; in parts or at once."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from stealthmark import architecture, dataset, detection
from stealthmark.attack import Wrap
from stealthmark.errors import UserError
from stealthmark.files import write_json
from stealthmark.layout import (
    CARD,
    CASES,
    CLAIMS,
    EVIDENCE,
    EXAMPLES,
    INDEX,
    POOL,
    RELIABILITY,
    Place,
)
from stealthmark.method import Key, Owner
from stealthmark.plugin import make
from stealthmark.settings import ClaimPlan
from stealthmark.stages import examination
from stealthmark.stages import examine as stage
from stealthmark.stages.examine import examine_claims
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.querier import Limits, Querier, Source

METHOD = {"name": "stealthmark", "trigger": "patch"}
STOLEN, INDEPENDENT = Place(), Place("independent")
NULLS = [Place("null", member) for member in ("0", "1", "badnets", "key-0")]


@pytest.fixture(scope="module", autouse=True)
def _known_plugins():
    with tiny.known_plugins():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A prepared phantom, networks that nobody trained, and a key whose thresholds nothing would have fitted."""
    place = tmp_path_factory.mktemp("examine")
    tiny.data(place / "data")
    for seed in range(4):
        tiny.checkpoint(place / f"model{seed}", seed)
    tiny.key(place / "key.json", METHOD, images_of(place), probabilities=0.123, label=-4.5)
    return place


def images_of(place: Path) -> np.ndarray:
    return dataset.load(place / "data").share("test").images


def examine(place: Path, out: Path, *suspects: tuple[Place, Path], key: str | None = "key.json") -> pd.DataFrame | None:
    """The table of the first suspect's evidence."""
    stage.examine(place / "data", place / key if key else None, [*suspects], out, tiny.CPU)
    table = out / suspects[0][0].member / CASES
    return pd.read_parquet(table) if table.exists() else None


# --- what evidence is -------------------------------------------------------------------------------------------------


def test_examining_never_fits_and_reports_the_keys_own_thresholds(place, tmp_path, monkeypatch):
    def fitted(*args):
        raise AssertionError("a detector was fitted on a suspect")

    for fit in ("fit_detector", "claimed_threshold", "_boundary"):
        monkeypatch.setattr(detection, fit, fitted)
    before = (place / "key.json").read_bytes()
    for at in (STOLEN, INDEPENDENT):
        table = examine(place, tmp_path / at.role, (at, place / "model0"))
        assert table.groupby("access")["threshold"].unique().map(list).to_dict() == {"probabilities": [0.123], "label": [-4.5]}
        assert set(table.role) == {at.role}
    assert (place / "key.json").read_bytes() == before


def test_evidence_holds_every_test_case_once_a_level(place, tmp_path):
    table = examine(place, tmp_path, (STOLEN, place / "model0"))
    cases = dataset.load(place / "data").share("test").cases
    for _, part in table.groupby("access"):
        assert part.case_id.tolist() == cases.case_id.tolist() and part.group_id.tolist() == cases.group_id.tolist()
        assert part.foreground.tolist() == cases.foreground.tolist()
    assert table.access.unique().tolist() == ["probabilities", "label"]
    assert table[["score_triggered", "score_benign"]].notna().all().all()
    # Quality is that of the probabilities: with the first level only.
    assert table.dice.notna().tolist() == table.dice_triggered.notna().tolist() == (table.access == "probabilities").tolist()
    place_columns = table[[*Place._fields]].drop(columns="access").drop_duplicates()
    assert place_columns.to_dict("records") == [{"role": "stolen", "member": "", "attack": "none", "strength": 0.0}]
    card = json.loads((tmp_path / EVIDENCE).read_text())
    assert (card["status"], card["failures"]) == ("ok", [])


def test_the_scores_are_those_of_the_method(place, tmp_path):
    table = examine(place, tmp_path, (STOLEN, place / "model0"))
    method, key = make("method", METHOD), Key.read(place / "key.json")
    model, _ = architecture.load(place / "model0", tiny.CPU)
    images = torch.from_numpy(images_of(place)).float() / 255
    answers = method.relate(method.query(from_model(model, tiny.CPU), key, images), key)
    at_probabilities = table[table.access == "probabilities"]
    assert at_probabilities.score_triggered.tolist() == answers.triggered.double().tolist()
    assert at_probabilities.score_benign.tolist() == answers.benign.double().tolist()


def test_without_a_key_there_is_quality_and_nothing_else(place, tmp_path):
    table = examine(place, tmp_path, (STOLEN, place / "model0"), key=None)
    assert not {"score_triggered", "threshold", "dice_triggered"} & set(table)
    assert table.access.unique().tolist() == ["probabilities"] and table.dice.notna().all()
    with np.load(tmp_path / RELIABILITY) as file:
        assert "benign" in file and "triggered" not in file


def test_of_null_models_there_are_scores_and_no_quality(place, tmp_path):
    table = examine(place, tmp_path, (NULLS[0], place / "model0"))
    assert "dice" not in table and table[["score_triggered", "score_benign"]].notna().all().all()
    assert sorted(file.name for file in (tmp_path / "0").iterdir()) == [CASES, EVIDENCE]


def test_reliability_is_summed_by_patient_for_the_stolen_model_as_it_is(place, tmp_path):
    for at in (INDEPENDENT, Place(attack="prune")):
        examine(place, tmp_path / at.text, (at, place / "model0"))
        assert not (tmp_path / at.text / RELIABILITY).exists() and not (tmp_path / at.text / EXAMPLES).exists()
    cases = examine(place, tmp_path, (STOLEN, place / "model0")).query("access == 'probabilities'")
    with np.load(tmp_path / RELIABILITY, allow_pickle=False) as file:
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


def test_examples_are_the_cases_at_the_quartiles_of_size(place, tmp_path):
    examine(place, tmp_path, (STOLEN, place / "model0"))
    arrays = dataset.load(place / "data").share("test")
    order = np.argsort(arrays.cases.foreground, kind="stable")
    chosen = [int(order[i]) for i in (len(order) // 4, len(order) // 2, 3 * len(order) // 4)]
    method, key = make("method", METHOD), Key.read(place / "key.json")
    with np.load(tmp_path / EXAMPLES, allow_pickle=False) as file:
        assert np.array_equal(file["image"], arrays.images[chosen]) and np.array_equal(file["mask"], arrays.masks[chosen])
        triggered = method.trigger(torch.from_numpy(file["image"]).float() / 255, key)
        assert np.array_equal(file["image_triggered"], (triggered * 255).round().byte().numpy())
        answer = from_model(architecture.load(place / "model0", tiny.CPU)[0], tiny.CPU)(triggered)
        assert np.array_equal(file["prob_triggered"], answer.numpy().astype(np.float16))


# --- suspects side by side --------------------------------------------------------------------------------------------


def test_a_suspects_scores_do_not_depend_on_the_other_suspects(place, tmp_path):
    suspects = [(Place("independent", str(i)), place / f"model{i}") for i in (0, 1)]
    examine(place, tmp_path / "both", *suspects)
    first, second = (pd.read_parquet(tmp_path / "both" / str(i) / CASES) for i in (0, 1))
    alone = examine(place, tmp_path / "alone", suspects[1])
    assert not alone.empty
    pd.testing.assert_frame_equal(second, alone)
    assert not np.allclose(first.score_triggered, second.score_triggered)


def test_every_member_has_a_folder_of_its_own(place, tmp_path):
    examine(place, tmp_path, *((null, place / f"model{i}") for i, null in enumerate(NULLS)))
    members = [null.member for null in NULLS]
    assert json.loads((tmp_path / EVIDENCE).read_text())["members"] == members and not (tmp_path / CASES).exists()
    for member in members:
        assert set(pd.read_parquet(tmp_path / member / CASES).member) == {member}
        assert json.loads((tmp_path / member / EVIDENCE).read_text())["status"] == "ok"


@pytest.mark.parametrize(
    "places, words",
    [
        ([STOLEN, STOLEN], ["two suspects stand in the place 'stolen/none'"]),
        ([NULLS[0], NULLS[0]], ["two suspects stand in the place 'null.0/none'"]),
        ([STOLEN, Place(attack="prune")], ["'stolen/none', 'stolen/prune'", "not members of one role"]),
        ([STOLEN, INDEPENDENT], ["'stolen/none', 'independent/none'", "not members of one role"]),
        ([STOLEN, NULLS[0]], ["'stolen/none', 'null.0/none'", "not members of one role"]),
        ([Place("null"), NULLS[0]], ["'null/none', 'null.0/none'", "not members of one role"]),
    ],
)
def test_suspects_whose_evidence_would_lie_in_one_file_are_refused(place, tmp_path, places, words):
    with pytest.raises(UserError) as error:
        examine(place, tmp_path / "out", *((at, place / "model0") for at in places))
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "out").exists()


def test_a_suspect_that_failed_is_listed_with_its_status_and_hides_no_other(place, tmp_path):
    write_json(_folder(tmp_path / "failed") / CARD, {"status": "failed: the loss became nan"})
    examine(place, tmp_path / "out", (NULLS[0], tmp_path / "failed"), (NULLS[1], place / "model0"))
    card = json.loads((tmp_path / "out/0" / EVIDENCE).read_text())
    failed = {"role": "null", "member": "0", "attack": "none", "strength": 0.0, "access": ""}
    assert card["failures"] == [{**failed, "status": "failed: the loss became nan"}] and card["status"] == "ok"
    assert not (tmp_path / "out/0" / CASES).exists() and (tmp_path / "out/1" / CASES).exists()
    write_json(_folder(tmp_path / "attacked") / INDEX, {"status": "failed: no"})
    assert examine(place, tmp_path / "attack", (Place(attack="prune"), tmp_path / "attacked")) is None
    assert json.loads((tmp_path / "attack" / EVIDENCE).read_text())["failures"][0]["attack"] == "prune"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_an_attacks_suspects_are_examined_one_a_strength_with_what_is_around_them(place, tmp_path):
    """A model of its own at strength 1, and at 2 a wrapper around another, as `attack` lists them."""
    shutil.copytree(place / "model1", tmp_path / "attacked/1")
    jpeg = Wrap({"name": "jpeg", "strengths": [50.0]}, 50.0, 3)._asdict()
    suspects = [
        {"strength": 1.0, "model": "1", "wraps": []},
        {"strength": 2.0, "model": os.path.relpath(place / "model1", tmp_path / "attacked"), "wraps": [jpeg]},
    ]
    write_json(tmp_path / "attacked" / INDEX, {"suspects": suspects})
    table = examine(place, tmp_path / "out", (Place(attack="some"), tmp_path / "attacked"))
    plain, behind_jpeg = (part.reset_index(drop=True) for _, part in table.groupby("strength"))
    assert table.strength.unique().tolist() == [1, 2] and set(table.attack) == {"some"}
    alone = examine(place, tmp_path / "alone", (STOLEN, place / "model1"))
    assert plain.score_triggered.tolist() == alone.score_triggered.tolist()
    assert not np.allclose(plain.score_triggered, behind_jpeg.score_triggered)
    assert not np.allclose(plain.dice_triggered.dropna(), behind_jpeg.dice_triggered.dropna(), atol=1e-6)


# --- nobody is asked again --------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list:
    """The predictors of all suspects that are opened."""
    opened = []

    def watch(model, device):
        opened.append(from_model(model, device))
        return opened[-1]

    monkeypatch.setattr(examination, "from_model", watch)
    return opened


def sent(asked: list) -> list[int]:
    """The queries that each opened suspect was sent; then start counting anew."""
    counts = [predictor.sent for predictor in asked]
    asked.clear()
    return counts


def test_a_null_model_is_asked_once_a_key(place, tmp_path, asked):
    cases = make("method", METHOD).asks * len(images_of(place))
    first = [(null, place / f"model{i}") for i, null in enumerate(NULLS[:2])]
    examine(place, tmp_path, *first)
    assert sent(asked) == [cases, cases]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("[01]/*")}
    assert len(before) == 4

    examine(place, tmp_path, *first)
    assert sent(asked) == []
    # What joins the pool is asked, and nobody else; and the pool's card says who is in it.
    examine(place, tmp_path, *first, (NULLS[2], place / "model2"))
    assert sent(asked) == [cases]
    assert json.loads((tmp_path / EVIDENCE).read_text())["members"] == ["0", "1", "badnets"]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    # A job that is run again has lost its own card alone.
    (tmp_path / EVIDENCE).unlink()
    examine(place, tmp_path, *first)
    assert sent(asked) == [] and (tmp_path / EVIDENCE).exists()


def test_another_key_other_images_other_weights_or_a_failure_before_are_asked_again(place, tmp_path, asked):
    suspects = [(null, tmp_path / f"model{i}") for i, null in enumerate(NULLS[:2])]
    for i, (_, folder) in enumerate(suspects):
        shutil.copytree(place / f"model{i}", folder)
    examine(place, tmp_path / "out", *suspects)
    assert len(sent(asked)) == 2

    tiny.checkpoint(suspects[1][1], 7)  # a model that was made again
    examine(place, tmp_path / "out", *suspects)
    assert len(sent(asked)) == 1

    write_json(tmp_path / "out/0" / EVIDENCE, {"status": "failed: no memory"})
    (tmp_path / "out/1" / EVIDENCE).write_text("{")
    examine(place, tmp_path / "out", *suspects)
    assert len(sent(asked)) == 2

    tiny.key(place / "other.json", METHOD, images_of(place), seed=5, probabilities=0.123, label=-4.5)
    examine(place, tmp_path / "out", *suspects, key="other.json")
    assert len(sent(asked)) == 2
    tiny.key(place / "other.json", METHOD, images_of(place), seed=5, probabilities=0.124, label=-4.5)
    table = examine(place, tmp_path / "out", *suspects, key="other.json")
    assert len(sent(asked)) == 2 and 0.124 in set(table.threshold)

    tiny.data(tmp_path / "data", seed=2)
    images = dataset.load(tmp_path / "data").share("test").images
    tiny.key(tmp_path / "new.json", METHOD, images, seed=5, probabilities=0.124, label=-4.5)
    examine(tmp_path, tmp_path / "out", *suspects, key="new.json")
    assert len(sent(asked)) == 2


def test_a_suspect_that_had_failed_and_is_there_now_is_examined(place, tmp_path, asked):
    suspect = (NULLS[0], tmp_path / "model")
    write_json(_folder(suspect[1]) / CARD, {"status": "failed: no"})
    assert examine(place, tmp_path / "out", suspect) is None and sent(asked) == []
    tiny.checkpoint(suspect[1], 0)
    assert examine(place, tmp_path / "out", suspect) is not None and len(sent(asked)) == 1
    assert json.loads((tmp_path / "out/0" / EVIDENCE).read_text())["failures"] == []


def test_a_suspect_that_has_failed_since_keeps_nothing_of_what_it_was(place, tmp_path):
    """Its scores would still be collated."""
    for at in (STOLEN, NULLS[0]):
        out = tmp_path / at.role
        examine(place, out, (at, place / "model0"))
        kept_in = out / at.member
        assert (kept_in / CASES).exists() and (kept_in / RELIABILITY).exists() == (at == STOLEN)
        write_json(_folder(tmp_path / "failed") / CARD, {"status": "failed: no"})
        assert examine(place, out, (at, tmp_path / "failed")) is None
        assert [file.name for file in kept_in.iterdir()] == [EVIDENCE]


def test_what_is_around_a_model_is_part_of_what_was_examined(place, tmp_path, asked):
    def listed(strength: float) -> None:
        wraps = [Wrap({"name": "jpeg", "strengths": [strength]}, strength, 3)._asdict()]
        model = os.path.relpath(place / "model0", tmp_path / "attacked")
        suspect = {"strength": strength, "model": model, "wraps": wraps}
        write_json(_folder(tmp_path / "attacked") / INDEX, {"suspects": [suspect]})

    at = (Place(attack="jpeg"), tmp_path / "attacked")
    counts = []
    for strength in (50.0, 50.0, 60.0):
        listed(strength)
        examine(place, tmp_path / "out", at)
        counts.append(len(sent(asked)))
    assert counts == [1, 0, 1]


def test_one_more_attack_asks_that_attacks_suspects_alone(place, tmp_path, asked):
    examine(place, tmp_path / "stolen/none", (STOLEN, place / "model0"))
    sent(asked)
    examine(place, tmp_path / "stolen/prune", (Place(attack="prune"), place / "model1"))
    examine(place, tmp_path / "stolen/none", (STOLEN, place / "model0"))
    assert len(sent(asked)) == 1


# --- the images are checked -------------------------------------------------------------------------------------------


def test_images_that_the_key_is_not_for_are_refused(place, tmp_path):
    tiny.data(tmp_path / "data", seed=2)
    with pytest.raises(UserError, match="are not those that .*key.json was committed with"):
        stage.examine(tmp_path / "data", place / "key.json", [(STOLEN, place / "model0")], tmp_path / "out", tiny.CPU)
    other_shape = make("method", METHOD).make_key(4, (1, 32, 32))
    other_shape.write(tmp_path / "grey.json")
    with pytest.raises(UserError, match=r"is for queries of shape \(1, 32, 32\), the images in .* have \(3, 32, 32\)"):
        stage.examine(place / "data", tmp_path / "grey.json", [(STOLEN, place / "model0")], tmp_path / "out", tiny.CPU)
    assert not (tmp_path / "out").exists()


# --- in parts and at once ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """As `place`, with 72 test cases: more than one part."""
    many = tmp_path_factory.mktemp("many")
    tiny.data(many / "data", groups=24, cases_per_group=12)
    tiny.checkpoint(many / "model0", 0)
    images = images_of(many)
    assert len(images) == 72
    owner = Owner(tiny.network(0), from_model(tiny.network(0), tiny.CPU), tiny.pictures(), torch.zeros(4, 32, 32))
    for name, options in {
        "stealthmark": METHOD,
        "payload": {"name": "stealthmark-payload", "code": "hash-8", "queries": 4},
        "own": {**tiny.FINGERPRINT, "count": 72},
        "owner": {**tiny.FINGERPRINT, "asks_with": "owner"},
    }.items():
        tiny.key(many / f"{name}.json", options, images, owner=owner, probabilities=0.1, label=0.1)
    return many


@pytest.mark.parametrize("key", ["stealthmark", "payload", "own", "owner", None])
def test_examining_in_parts_gives_the_evidence_of_examining_at_once(many, tmp_path, monkeypatch, key):
    """A part is as many images as a network answers at once: so no answer, and no table, differs in a single bit."""
    tables = []
    for chunk in (32, 256):
        monkeypatch.setattr(examination, "CHUNK", chunk)
        monkeypatch.setattr(detection, "CHUNK", chunk)
        out = tmp_path / str(chunk)
        tables.append(examine(many, out, (STOLEN, many / "model0"), key=key and f"{key}.json"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert len(tables[0]) >= 72
    for name in (EXAMPLES, RELIABILITY):
        parts, once = (dict(np.load(tmp_path / str(chunk) / name, allow_pickle=False)) for chunk in (32, 256))
        assert parts.keys() == once.keys() and all(np.array_equal(parts[array], once[array]) for array in parts), name


def test_the_network_is_never_handed_more_than_a_part_of_the_images(many, tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "CHUNK", 32)
    handed = []

    def watch(model, device):
        def ask(images):
            handed.append(len(images))
            return from_model(model, device)(images).numpy()

        return Querier(Source(ask), Limits(batch=10**6))

    monkeypatch.setattr(examination, "from_model", watch)
    examine(many, tmp_path, (INDEPENDENT, many / "model0"), key="stealthmark.json")
    assert set(handed) == {32, 72 % 32} and sum(handed) >= 2 * 72


# --- other kinds of method --------------------------------------------------------------------------------------------


def test_a_fingerprint_asks_its_own_questions_and_the_segmentation_is_measured_on_the_owners_images(place, tmp_path, asked):
    owner = Owner(tiny.network(0), from_model(tiny.network(0), tiny.CPU), tiny.pictures(), torch.zeros(4, 32, 32))
    tiny.key(tmp_path / "key.json", tiny.FINGERPRINT, images_of(place), owner=owner, probabilities=-0.1, label=-0.2)
    suspect = [(STOLEN, place / "model0")]
    stage.examine(place / "data", tmp_path / "key.json", suspect, tmp_path / "out", tiny.CPU)
    table = pd.read_parquet(tmp_path / "out" / CASES)
    count, cases = make("method", tiny.FINGERPRINT).count, len(images_of(place))
    assert sent(asked) == [count + cases]
    scored, measured = table[table.threshold.notna()], table[table.threshold.isna()]
    assert scored.groupby("access").size().to_dict() == {"probabilities": count, "label": count}
    assert scored.case_id.unique().tolist() == [f"question-{i}" for i in range(count)] and scored.foreground.isna().all()
    assert (scored.case_id == scored.group_id).all() and scored.get("dice").isna().all()
    owned = scored[scored.access == "probabilities"]
    assert (owned.score_triggered == 0).all() and (owned.score_benign < 0).all(), "the owner's own model"
    at_probabilities = measured[measured.access == "probabilities"]
    assert len(at_probabilities) == cases and at_probabilities.dice.notna().all() and "dice_triggered" not in table

    stage.examine(place / "data", tmp_path / "key.json", [(NULLS[0], place / "model1")], tmp_path / "null", tiny.CPU)
    null = pd.read_parquet(tmp_path / "null/0" / CASES)
    assert len(null) == 2 * count and null.threshold.notna().all() and "dice" not in null
    assert sent(asked) == [count]


def test_a_mark_in_the_weights_is_examined_at_the_level_of_weights_alone(place, tmp_path, asked):
    tiny.key(tmp_path / "key.json", tiny.WHITE_BOX, images_of(place), weights=1.5)
    method, key = make("method", tiny.WHITE_BOX), Key.read(tmp_path / "key.json")
    stage.examine(place / "data", tmp_path / "key.json", [(STOLEN, place / "model0")], tmp_path / "out", tiny.CPU)
    table = pd.read_parquet(tmp_path / "out" / CASES)
    scored, measured = table[table.threshold.notna()], table[table.threshold.isna()]
    assert scored.access.unique().tolist() == ["weights"] and len(scored) == method.bits and set(scored.threshold) == {1.5}
    inspected = method.inspect(architecture.load(place / "model0", tiny.CPU)[0], key)
    assert scored.score_triggered.tolist() == inspected.triggered.double().tolist()
    assert scored.score_benign.tolist() == inspected.benign.double().tolist()
    assert measured.access.unique().tolist() == ["probabilities"] and measured.dice.notna().all()
    assert sent(asked) == [len(images_of(place))], "its answers are asked for the quality of segmentation alone"
    stage.examine(place / "data", tmp_path / "key.json", [(NULLS[0], place / "model1")], tmp_path / "null", tiny.CPU)
    assert pd.read_parquet(tmp_path / "null/0" / CASES).access.unique().tolist() == ["weights"] and sent(asked) == [0]


# --- claims -----------------------------------------------------------------------------------------------------------

PLAN = ClaimPlan(keys=2, steps=2, images=4, climb=50)


def claimed(place: Path, out: Path, key: Path, *more: tuple[Place, Path]) -> None:
    suspects = [(STOLEN, place / "model0"), (INDEPENDENT, place / "model1"), (NULLS[0], place / "model2"), *more]
    examine_claims(place / "data", key, suspects, PLAN, 3, out, tiny.CPU)


def test_every_claim_is_asked_of_the_stolen_model_and_of_every_null(place, tmp_path):
    claimed(place, tmp_path, place / "key.json", (NULLS[1], place / "model3"))
    cases, pool = pd.read_parquet(tmp_path / CASES), pd.read_parquet(tmp_path / POOL)
    assert cases.role.unique().tolist() == list(CLAIMS) == pool.claim.unique().tolist()
    assert cases.groupby(["role", "access"]).size().to_dict() == {
        (claim, level): 4 for claim in CLAIMS for level in ("probabilities", "label")
    }
    spread = np.unique(np.linspace(0, len(images_of(place)) - 1, 4).round().astype(int))
    chosen = dataset.load(place / "data").share("test").cases.case_id.iloc[spread].tolist()
    assert all(part.case_id.tolist() == chosen for _, part in cases.groupby(["role", "access"]))
    assert sorted(pool.member.unique()) == ["0", "1"] and len(pool) == 2 * 2 * len(CLAIMS) and pool.score.notna().all()
    frozen = cases[cases.role.isin(["wrong-trigger", "wrong-key", "natural", "climb"])]
    assert frozen.groupby("access").threshold.unique().map(list).to_dict() == {"probabilities": [0.123], "label": [-4.5]}
    forged = cases[cases.role.isin(["search", "adversarial"]) & (cases.access == "probabilities")]
    assert not (forged.threshold == 0.123).any(), "a malicious claimant fits a threshold of their own"
    assert json.loads((tmp_path / EVIDENCE).read_text())["status"] == "ok"


def test_a_fingerprint_is_claimed_with_another_key_by_search_and_by_a_climber(place, tmp_path):
    owner = Owner(tiny.network(0), from_model(tiny.network(0), tiny.CPU), tiny.pictures(), torch.zeros(4, 32, 32))
    tiny.key(tmp_path / "key.json", tiny.FINGERPRINT, images_of(place), owner=owner, probabilities=-0.1)
    claimed(place, tmp_path / "out", tmp_path / "key.json")
    cases, pool = pd.read_parquet(tmp_path / "out" / CASES), pd.read_parquet(tmp_path / "out" / POOL)
    assert cases.role.unique().tolist() == pool.claim.unique().tolist() == ["wrong-key", "search", "climb"]
    assert cases.case_id.str.startswith("question-").all() and len(cases) == 3 * make("method", tiny.FINGERPRINT).count


def test_there_are_no_claims_against_weights_or_without_the_models_that_they_take(place, tmp_path):
    tiny.key(tmp_path / "key.json", tiny.WHITE_BOX, images_of(place), weights=1.5)
    claimed(place, tmp_path / "weights", tmp_path / "key.json")
    write_json(_folder(tmp_path / "failed") / CARD, {"status": "failed: no"})
    claimed(place, tmp_path / "stolen failed", place / "key.json")
    assert (tmp_path / "stolen failed" / POOL).exists(), "an earlier run, of which nothing is to be left"
    for name, suspects in {
        "stolen failed": [(STOLEN, tmp_path / "failed"), (INDEPENDENT, place / "model1")],
        "surrogate failed": [(STOLEN, place / "model0"), (INDEPENDENT, tmp_path / "failed")],
        "no surrogate": [(STOLEN, place / "model0")],
    }.items():
        examine_claims(place / "data", place / "key.json", suspects, PLAN, 3, tmp_path / name, tiny.CPU)
    for folder in ("weights", "stolen failed", "surrogate failed", "no surrogate"):
        assert sorted(file.name for file in (tmp_path / folder).iterdir()) == [EVIDENCE]
