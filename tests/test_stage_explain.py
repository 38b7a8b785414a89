"""Explain: the images are those that the key was committed with; what was asked and how it was read stands in every line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from stealthmark import architecture, codes, dataset
from stealthmark.errors import UserError
from stealthmark.files import write_json
from stealthmark.layout import CARD, CASES, EXPLANATIONS, INDEX, MAPS, Place
from stealthmark.method import Key, Owner
from stealthmark.occlusion import explain_both_ways
from stealthmark.plugin import make
from stealthmark.seeds import derive
from stealthmark.settings import ExplanationPlan
from stealthmark.stages import examination
from stealthmark.stages import explain as stage
from stealthmark.suspects.checkpoint import from_model

PLAN = ExplanationPlan(images=2, queries=40)
STOLEN = Place()
SEED = 3


@pytest.fixture(scope="module", autouse=True)
def _known_plugins():
    with tiny.known_plugins():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A prepared phantom, networks that nobody trained, and keys of a mark with a trigger and of one that carries a code."""
    place = tmp_path_factory.mktemp("explain")
    tiny.data(place / "data")
    for seed in range(2):
        tiny.checkpoint(place / f"model{seed}", seed)
    images = dataset.load(place / "data").share("test").images
    tiny.key(place / "plain.json", {"name": "badnets"}, images, probabilities=0.5, label=0.5)
    code = {"name": "stealthmark-payload", "code": "hash-8", "queries": 4}
    tiny.key(place / "code.json", code, images, probabilities=0.5, label=0.5)
    return place


def explain(place: Path, out: Path, *suspects: tuple[Place, Path], key: str = "plain.json", plan=PLAN) -> pd.DataFrame:
    stage.explain(place / "data", place / key, [*suspects], plan, SEED, out, tiny.CPU)
    return pd.read_parquet(out / CASES)


def test_images_that_the_key_is_not_for_are_refused(place, tmp_path):
    """Shape and digest are checked before anybody is asked."""
    tiny.data(tmp_path / "data", seed=2)
    suspect = [(STOLEN, place / "model0")]
    with pytest.raises(UserError, match="are not those that .*plain.json was committed with"):
        stage.explain(tmp_path / "data", place / "plain.json", suspect, PLAN, SEED, tmp_path / "out", tiny.CPU)
    make("method", {"name": "badnets"}).make_key(4, (1, 32, 32)).write(tmp_path / "grey.json")
    with pytest.raises(UserError, match=r"is for queries of shape \(1, 32, 32\), the images in .* have \(3, 32, 32\)"):
        stage.explain(place / "data", tmp_path / "grey.json", suspect, PLAN, SEED, tmp_path / "out", tiny.CPU)
    assert not (tmp_path / "out").exists()


def test_only_marks_with_a_trigger_are_explained(place, tmp_path):
    images = dataset.load(place / "data").share("test").images
    owner = Owner(tiny.network(0), from_model(tiny.network(0), tiny.CPU), tiny.pictures(), torch.zeros(4, 32, 32))
    for options in (tiny.FINGERPRINT, tiny.WHITE_BOX):
        tiny.key(tmp_path / "key.json", options, images, owner=owner, probabilities=0.5)
        with pytest.raises(UserError, match=f"is a key of {options['name']}, which has no trigger"):
            explain(place, tmp_path / "out", (STOLEN, place / "model0"), key=tmp_path / "key.json")
    assert not (tmp_path / "out").exists()


def test_suspects_whose_maps_would_lie_in_one_file_are_refused(place, tmp_path):
    suspects = [(STOLEN, place / "model0"), (Place("independent"), place / "model1")]
    with pytest.raises(UserError, match="'stolen/none', 'independent/none' are not members of one role"):
        explain(place, tmp_path / "out", *suspects)


def test_a_line_says_what_was_asked_and_how_it_was_read(place, tmp_path):
    table = explain(place, tmp_path, (STOLEN, place / "model0"))
    assert table.columns.tolist() == [
        *("case_id", "group_id", *Place._fields),
        *("query", "reader", "pooled", "queries", "bit_error", "decoded"),
    ]
    assert set(table["query"]) == {"trigger"} and set(table.reader) == {"gated-qr", "lime"}
    assert not table.pooled.any() and set(table.queries) == {PLAN.queries} and set(table.role) == {"stolen"}
    assert table.groupby(["access", "reader"]).size().to_dict() == {
        (level, reader): PLAN.images for level in ("probabilities", "label") for reader in ("gated-qr", "lime")
    }
    summary = json.loads((tmp_path / EXPLANATIONS).read_text())
    assert (summary["status"], summary["failures"]) == ("ok", []) and ExplanationPlan(**summary["plan"]) == PLAN


def test_the_lines_are_those_of_the_suspects_answers_to_triggered_images(place, tmp_path):
    table = explain(place, tmp_path, (STOLEN, place / "model0"))
    arrays = dataset.load(place / "data").share("test")
    rows = np.random.default_rng(SEED).permutation(len(arrays.cases))[: PLAN.images]
    method, key = make("method", {"name": "badnets"}), Key.read(place / "plain.json")
    triggered = method.trigger(torch.from_numpy(arrays.images[rows]).float() / 255, key)
    predictor = from_model(architecture.load(place / "model0", tiny.CPU)[0], tiny.CPU)
    code = codes.encode(PLAN.code, PLAN.kind)
    at_probabilities = table[table.access == "probabilities"].set_index(["case_id", "reader"])
    for row, image in zip(rows, triggered, strict=True):
        both = explain_both_ways(predictor, image, PLAN, derive(SEED, "occlusions", int(row)))
        for reader, (_, bits) in both.items():
            line = at_probabilities.loc[arrays.cases.case_id[row], reader]
            assert line.bit_error == codes.error_rate(bits, code) and line.decoded == (codes.decode(bits) == PLAN.code)
    with np.load(tmp_path / MAPS, allow_pickle=False) as maps:
        assert np.array_equal(maps["code"], code)
        assert np.array_equal(maps["image"], (triggered[0] * 255).round().byte().numpy())
        first = explain_both_ways(predictor, triggered[0], PLAN, derive(SEED, "occlusions", int(rows[0])))
        assert np.array_equal(maps["0/probabilities/lime"], first["lime"][0])
        assert np.array_equal(maps["0/probabilities/gated-qr"], first["gated-qr"][0])


def test_an_untrained_suspect_is_the_architecture_of_the_card_with_weights_of_its_own(place, tmp_path):
    """The folder's weights have no part in it: it may be anybody's model of that architecture."""
    tables = [explain(place, tmp_path / str(i), (Place("untrained"), place / f"model{i}")) for i in (0, 1)]
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0].role) == {"untrained"}
    stolen = explain(place, tmp_path / "stolen", (STOLEN, place / "model0"))
    with np.load(tmp_path / "0" / MAPS) as untrained, np.load(tmp_path / "stolen" / MAPS) as of_stolen:
        assert not np.array_equal(untrained["0/probabilities/lime"], of_stolen["0/probabilities/lime"])
    assert stolen.case_id.tolist() == tables[0].case_id.tolist()


def test_an_attacks_suspects_are_asked_for_the_marks_own_code_alone(place, tmp_path):
    suspects = [{"strength": float(i), "model": str(place / f"model{i}"), "wraps": []} for i in (0, 1)]
    (tmp_path / "attacked").mkdir()
    write_json(tmp_path / "attacked" / INDEX, {"suspects": suspects})
    table = explain(place, tmp_path / "out", (Place(attack="some"), tmp_path / "attacked"), key="code.json")
    assert table.strength.unique().tolist() == [0, 1] and set(table.attack) == {"some"}
    assert set(table["query"]) == {"key", "natural"} and set(table.reader) == {"in-place", "lime", "level"}
    ways = {f"{level}/{way}" for level in ("probabilities", "label") for way in ("key", "key-lime", "natural")}
    with np.load(tmp_path / "out" / MAPS) as maps:
        names = {f"{strength}/{name}" for strength in "01" for name in {"answer", *ways}}
        assert set(maps) == {"code", "image", "payload", "asked", *names}
        assert maps["payload"].shape == (8, 8) and maps["asked"].shape == (3, 32, 32)


def test_a_suspect_that_failed_is_listed_with_its_status(place, tmp_path):
    (tmp_path / "failed").mkdir()
    write_json(tmp_path / "failed" / CARD, {"status": "failed: no"})
    table = explain(place, tmp_path / "out", (Place("independent"), tmp_path / "failed"))
    assert table.empty
    (failed,) = json.loads((tmp_path / "out" / EXPLANATIONS).read_text())["failures"]
    assert (failed["role"], failed["status"]) == ("independent", "failed: no")


def test_the_code_in_natural_answers_is_the_same_in_parts_and_at_once(tmp_path, monkeypatch):
    tiny.data(tmp_path / "data", groups=24, cases_per_group=12)
    tiny.checkpoint(tmp_path / "model0", 0)
    images = dataset.load(tmp_path / "data").share("test").images
    assert len(images) == 72
    code = {"name": "stealthmark-payload", "code": "hash-8", "queries": 4}
    tiny.key(tmp_path / "code.json", code, images, probabilities=0.5)
    tables, maps = [], []
    for chunk in (32, 256):
        monkeypatch.setattr(examination, "CHUNK", chunk)
        out = tmp_path / str(chunk)
        tables.append(explain(tmp_path, out, (STOLEN, tmp_path / "model0"), key="code.json"))
        maps.append(dict(np.load(out / MAPS)))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name, values in maps[0].items():
        np.testing.assert_allclose(values, maps[1][name], rtol=1e-12, err_msg=name)
