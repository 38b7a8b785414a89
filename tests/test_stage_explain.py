"""Explain: the images are those that the key was committed with; what was asked and how it was read stands in every line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from stealthmark import architecture, codes, dataset
from stealthmark.access import at_access
from stealthmark.errors import UserError
from stealthmark.files import write_json
from stealthmark.layout import CARD, CASES, EXPLANATIONS, INDEX, MAPS, Place
from stealthmark.method import Key, Owner
from stealthmark.occlusion import BackgroundParts, explain_both_ways
from stealthmark.plugin import make
from stealthmark.seeds import derive, secret
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
    tiny.key(place / "shown.json", {"name": "stealthmark-code"}, images, **{"probabilities": 0.5, "8-bit": 0.5, "label": 0.5})
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


# --- a code that answers show -----------------------------------------------------------------------------------------


class Showing:
    """A predictor that sees the owner's trigger, and then answers with the coded floor over what it takes for foreground, a
    square of 4 px somewhere; and else with that alone. Its levels go up and down a little with the image. It keeps what it was
    asked."""

    def __init__(self, key: Key):
        self.method, self.key, self.asked = make("method", key.method), key, []
        self.frame = self.method.trigger(torch.full((1, *key.shape), 0.5), key)[0]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images)
        masks = torch.zeros_like(images[:, 0])
        for mask, image in zip(masks, images, strict=True):
            place = 4 + int(image[:, 8:24, 8:24].sum() * 1000) % 20
            mask[place : place + 4, place : place + 4] = 1
        seen = (images == self.frame).all(1)[:, 0].all(1)[:, None, None]
        answers = torch.where(seen, self.method.target(masks, self.key), masks).clamp(0.01, 0.99)
        return (answers.logit() + (images.mean(1) - 0.5) / 2).sigmoid()


@pytest.fixture
def showing(place, tmp_path, monkeypatch):
    """(what it was asked, what `explain` wrote of it) of a suspect that shows its code, at a place."""

    def explained(at: Place = STOLEN, folder: str = "out") -> tuple[Showing, pd.DataFrame, dict[str, np.ndarray]]:
        suspect = Showing(Key.read(place / "shown.json"))
        monkeypatch.setattr(stage, "_suspects", lambda *args: iter([examination.Suspect(at, suspect, None)]))
        table = explain(place, tmp_path / folder, (at, place / "model0"), key="shown.json")
        with np.load(tmp_path / folder / MAPS, allow_pickle=False) as maps:
            return suspect, table, dict(maps)

    return explained


LEVELS = ("probabilities", "8-bit", "label")


def test_a_code_that_answers_show_is_read_alone_pooled_over_4_and_over_all(showing, monkeypatch):
    """Six test images: six alone, one try of four, and all together; of the stolen model with another key, and without one."""
    suspect, table, _ = showing()
    own = table[table.reader == "level"]
    assert set(own["query"]) == {"trigger", "wrong-key", "natural"} and len(own) == 3 * len(LEVELS) * (6 + 1 + 1)
    for _, part in own.groupby(["access", "query"]):
        alone, pooled = part[~part.pooled], part[part.pooled]
        assert set(alone.queries) == {1} and alone.case_id.nunique() == 6 and alone.group_id.nunique() == 3
        assert list(zip(pooled.case_id, pooled.group_id, pooled.queries, strict=True)) == [
            ("try 1", "try 1", 4),
            ("all", "all", 6),
        ]
    own = own.set_index(["query", "access"])
    for level in ("probabilities", "8-bit"):
        lines = own.loc[("trigger", level)].set_index("queries")
        assert 0 < lines.bit_error[1].mean() < 0.02, "a cell or two are hidden"
        assert lines.bit_error[4] == lines.bit_error[6] == 0 and lines.decoded[6]
    for query, level in [("trigger", "label"), *((query, level) for query in ("wrong-key", "natural") for level in LEVELS)]:
        assert not own.loc[(query, level), "decoded"].any() and own.loc[(query, level), "bit_error"].min() > 0.3
    of_plan = table[table.reader != "level"]
    assert set(of_plan["query"]) == {"trigger"} and set(of_plan.reader) == {"gated-qr", "lime"} and not of_plan.pooled.any()
    # An image is asked once a query and level, whatever is pooled.
    alone = [images for images in suspect.asked if len(images) == 6]
    assert len(alone) == 3 * len(LEVELS)

    monkeypatch.setattr(stage, "ALONE", 4)
    monkeypatch.setattr(stage, "TOGETHER", (2, 3))
    _, fewer, _ = showing(folder="fewer")
    counts = fewer[fewer.reader == "level"].groupby(["query", "access", "queries"]).size().unstack()
    assert counts.to_numpy().tolist() == [[4, 2, 1, 1]] * 9 and counts.columns.tolist() == [1, 2, 3, 6]


def test_the_lines_of_a_shown_code_are_those_of_the_answers(place, showing, monkeypatch):
    """Each line, from the answers that its images give: pooled are every two that follow each other in the shuffled order."""
    monkeypatch.setattr(stage, "TOGETHER", (2,))
    suspect, table, maps = showing()
    arrays = dataset.load(place / "data").share("test")
    images = torch.from_numpy(arrays.images).float() / 255
    order = np.random.default_rng(SEED).permutation(len(images))
    other = suspect.method.make_key(secret(SEED, "wrong-key"), suspect.key.shape)
    asked = {"trigger": suspect.method.trigger(images, suspect.key), "wrong-key": suspect.method.trigger(images, other)}
    code = codes.encode("OWNER1", "micro")
    assert np.array_equal(maps["payload"], code)
    pooled = {"try 1": order[:2], "try 2": order[2:4], "try 3": order[4:], "all": order}
    rows = {**{arrays.cases.case_id[row]: [row] for row in order}, **pooled}
    for query, queries in {**asked, "natural": images}.items():
        for level in LEVELS:
            parts = BackgroundParts(13)
            parts.add(at_access(suspect, level)(queries))
            lines = table[(table.reader == "level") & (table["query"] == query) & (table.access == level)].set_index("case_id")
            assert set(lines.index) == set(rows)
            for case, of_case in rows.items():
                expected = codes.error_rate(codes.minimum_error_split(parts.map(of_case)), code)
                assert lines.loc[case, "bit_error"] == expected
            names = {"trigger": ("level", "level-all"), "wrong-key": ("wrong-key",), "natural": ("natural",)}[query]
            for name, of_map in zip(names, ([order[0]], order), strict=False):
                np.testing.assert_array_equal(maps[f"0/{level}/{name}"], parts.map(of_map))


def test_of_the_first_image_there_is_what_was_asked_what_was_answered_and_where_its_structure_lies(place, showing):
    suspect, _, maps = showing()
    arrays = dataset.load(place / "data").share("test")
    first = np.random.default_rng(SEED).permutation(len(arrays.images))[0]
    triggered = suspect.method.trigger(torch.from_numpy(arrays.images[first : first + 1]).float() / 255, suspect.key)
    assert np.array_equal(maps["asked"], (triggered[0] * 255).round().byte().numpy())
    assert np.array_equal(maps["mask"], arrays.masks[first] > 0) and maps["mask"].any()
    np.testing.assert_allclose(maps["0/answer"], suspect(triggered)[0].numpy(), atol=1e-3)


@pytest.mark.parametrize("at", [Place(attack="some", strength=2.0), Place("independent"), Place("untrained")])
def test_another_suspect_than_the_stolen_one_is_asked_with_the_trigger_alone(showing, at):
    _, table, maps = showing(at)
    own = table[table.reader == "level"]
    assert set(own["query"]) == {"trigger"} and len(own) == len(LEVELS) * (6 + 1 + 1)
    assert ("lime" in set(table.reader)) == (at.attack == "none"), "attacked ones are asked for the mark's own code alone"
    assert f"{at.strength:g}/probabilities/level-all" in maps and not any("wrong-key" in name for name in maps)


def test_a_code_that_answers_show_is_the_same_in_parts_and_at_once(place, showing, monkeypatch):
    tables, maps = [], []
    for chunk in (4, 256):
        monkeypatch.setattr(examination, "CHUNK", chunk)
        _, table, of_map = showing(folder=str(chunk))
        tables.append(table)
        maps.append(of_map)
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name, values in maps[0].items():
        np.testing.assert_allclose(values, maps[1][name], rtol=1e-12, err_msg=name)


def test_an_untrained_network_does_not_show_the_code(place, tmp_path):
    table = explain(place, tmp_path / "out", (STOLEN, place / "model0"), key="shown.json")
    own = table[table.reader == "level"]
    assert not own.decoded.any() and own.bit_error.between(0.3, 0.7).all()


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
