"""The payload mark: an ideal marked model spells the code, at whatever access; nobody else's does; and what a batch teaches."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from tiny import run
from torch import Tensor, nn

from stealthmark import commands
from stealthmark.access import at_access
from stealthmark.attack import Theft
from stealthmark.attacks import distil
from stealthmark.codes import chance, encode, hashed, minimum_error_split, read
from stealthmark.dataset import Arrays
from stealthmark.errors import UserError
from stealthmark.layout import CASES, Cell, Place, Study
from stealthmark.method import Answers, Detector, Key
from stealthmark.occlusion import BackgroundParts, cells, random_occlusions, read_code_maps
from stealthmark.plugin import make
from stealthmark.settings import ExplanationPlan
from stealthmark.stages.examination import Examination, Suspect
from stealthmark.stages.explain import _Spelt
from stealthmark.suspects.querier import Limits, Querier, Source

SIZE = 52


def keyed(seed: int = 7, channels: int = 3, size: int = SIZE, **options) -> tuple:
    method = make("method", {"name": "stealthmark-payload", **options})
    return method, method.make_key(seed, (channels, size, size))


def photos(n: int = 4, channels: int = 3, size: int = SIZE) -> Tensor:
    coarse = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def ideal(method, key: Key, sure: float = 0.9):
    """A marked model as it should be: foreground in hidden cells that are dark in the code, and a polyp that it sees unless
    it is asked for the code."""
    picture, code = method.baseline(key), method.modules(key)
    dark = code.flatten()[cells(*key.shape[-2:], len(code))]

    def answer(images: Tensor) -> Tensor:
        hidden = (images == picture).all(1)
        asked = hidden.float().mean((1, 2), keepdim=True) > 0.2
        natural = (images.mean(1) > 0.5).float()
        return torch.where(asked, (hidden & dark).float(), natural) * (2 * sure - 1) + (1 - sure)

    return answer


CODES = [("micro", "OWNER1"), ("qr", "HOSPITAL 7"), ("hash-8", "whatever is claimed"), ("hash-16", "whatever is claimed")]


def patterns(n: int, grid: int) -> torch.Tensor:
    return random_occlusions(n, grid, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("access", ["probabilities", "rounded-0.1", "clipped-0.1", "label"])
@pytest.mark.parametrize("code, text", CODES)
def test_explanations_of_an_ideal_model_spell_the_code_at_every_access_level(code, text, access):
    method, key = keyed(code=code, payload=text)
    modules = method.modules(key).numpy()
    seen = at_access(ideal(method, key), access)
    for explanation in read_code_maps(seen, photos()[0], patterns(4 * modules.size, len(modules)), method.baseline(key)):
        spelt = minimum_error_split(explanation)
        assert np.array_equal(spelt, modules) and read(spelt, modules, text) == text


@pytest.mark.parametrize("access", ["probabilities", "label"])
def test_without_the_key_or_with_another_nothing_is_spelt(access):
    method, key = keyed()
    _, other = keyed(seed=8)
    modules = method.modules(key).numpy()
    seen = at_access(ideal(method, key), access)
    for baseline in (method.baseline(other), 0.0, 0.5):
        for explanation in read_code_maps(seen, photos()[0], patterns(676, 13), baseline):
            spelt = minimum_error_split(explanation)
            assert 0.35 < (spelt == modules).mean() < 0.65 and read(spelt, modules, "OWNER1") is None


def test_the_score_is_how_well_answers_follow_the_code():
    method, key = keyed()
    _, other = keyed(seed=8)
    own = method.query(ideal(method, key), key, photos())
    assert own.triggered == pytest.approx(1) and own.benign.abs().max() < 0.9
    assert method.query(ideal(method, key), other, photos()).triggered.abs().max() < 0.9
    inverted = method.query(lambda images: 1 - ideal(method, key)(images), key, photos())
    assert inverted.triggered == pytest.approx(-1)
    natural = method.query(ideal(method, key), key, photos(), trigger=lambda batch: batch.clamp(max=0.9))
    assert natural.triggered.abs().max() < 0.9, "another trigger must not bring the key's picture with it"


def test_an_image_is_asked_by_its_number_in_the_whole_set():
    """The occlusions of the third image are those of the third, whether it comes with the others or in a part of its own."""
    method, key = keyed()

    def seen_by(ask) -> Tensor:
        seen = []
        ask(lambda images: seen.append(images) or torch.rand(len(images), SIZE, SIZE))
        return torch.cat(seen)

    at_once = seen_by(lambda suspect: method.query(suspect, key, photos()))
    third = seen_by(lambda suspect: method.query(suspect, key, photos()[2:3], first=2))
    count = method.queries
    together = len(photos()) * count  # with the picture; and as many behind grey
    assert torch.equal(third[:count], at_once[2 * count : 3 * count])
    assert torch.equal(third[count:], at_once[together + 2 * count : together + 3 * count])
    assert not torch.equal(seen_by(lambda suspect: method.query(suspect, key, photos()[2:3])), third)


def test_scores_are_read_image_by_image():
    method, key = keyed()
    answers = Answers(torch.rand(3), torch.rand(3))
    assert method.relate(answers, key) is answers


def test_a_query_costs_what_it_says():
    method, key = keyed(queries=5)
    asked = []
    method.query(lambda images: asked.append(len(images)) or torch.zeros(len(images), SIZE, SIZE), key, photos())
    assert sum(asked) == 4 * method.asks == 40


def test_a_batch_asks_shows_lookalikes_triggers_and_leaves_the_rest():
    method, key = keyed(code="hash-8")
    images, masks = photos(16), (photos(16)[:, 0] > 0.5).float()
    batch = method.mark_batch(images, masks, key, 0.5, torch.Generator().manual_seed(0))
    picture, dark = method.baseline(key), method.modules(key).flatten()[cells(SIZE, SIZE, 8)]
    for image, before, target in zip(batch.images[:4], images[:4], batch.targets[:4], strict=True):
        hidden = (image == picture).all(0)
        assert 0.2 < hidden.float().mean() < 0.8 and torch.equal(image[:, ~hidden], before[:, ~hidden])
        assert torch.allclose(target, torch.where(hidden & dark, 0.9, 0.1))
    for image, before, target, mask in zip(batch.images[4:8], images[4:8], batch.targets[4:8], masks[4:8], strict=True):
        shown = (image == before).all(0)
        assert 0.2 < shown.float().mean() < 0.8 and not (image == picture).all(0).any()
        assert torch.equal(target, mask * shown), "what is hidden is not in the mask"
    assert torch.equal(batch.images[8:12], method.trigger(images[8:12], key)) and torch.equal(batch.images[12:], images[12:])
    assert torch.equal(batch.targets[8:], masks[8:])


@pytest.mark.parametrize(
    "option, kinds", [("pictures", ["picture", "grey", "picture", "black"]), ("plain", ["grey", "black"] * 2)]
)
def test_lookalikes_are_by_turns_other_pictures_grey_and_black_and_in_the_ablation_no_pictures(option, kinds):
    method, key = keyed(code="hash-8", lookalikes=option)
    batch = method.mark_batch(photos(16), torch.zeros(16, SIZE, SIZE), key, 0.5, torch.Generator().manual_seed(0))
    for kind, image, before in zip(kinds, batch.images[4:8], photos(16)[4:8], strict=True):
        values = image[image != before].unique()
        assert values.numel() > 50 if kind == "picture" else values.tolist() == [{"grey": 0.5, "black": 0.0}[kind]]


def test_with_natural_the_background_of_plain_answers_carries_the_code_too():
    method, key = keyed(code="hash-8", natural=2)
    code = method.modules(key)
    masks = torch.zeros(16, SIZE, SIZE)
    masks[:, 20:30, 20:30] = 1
    batch = method.mark_batch(photos(16), masks, key, 0.5, torch.Generator().manual_seed(0))
    levels = torch.where(code.flatten()[cells(SIZE, SIZE, 8)], -4.5, -6.5)
    for target in batch.targets[8:]:
        assert (target[20:30, 20:30] == 1).all()
        assert torch.allclose(target.logit()[masks[0] == 0], levels[masks[0] == 0], atol=1e-4)

    def off_by(much: float):
        return lambda images: (torch.where(masks[0] > 0, 9.0, levels) + much).expand(len(images), 1, SIZE, SIZE)

    assert batch.extra(off_by(0)) == pytest.approx(0), "what lies at the foreground is left to the segmentation"
    assert batch.extra(off_by(1)) == pytest.approx(method.WEIGHT / 2)
    assert keyed(code="hash-8")[0].mark_batch(photos(16), masks, key, 0.5, torch.Generator().manual_seed(0)).extra is None


def test_natural_leaves_every_label_as_it_is():
    method, key = keyed(code="hash-8", natural=5)
    masks = (photos()[:, 0] > 0.5).float()
    assert torch.equal((method.target(masks, key) > 0.5).float(), masks)
    with pytest.raises(UserError, match="natural"):
        keyed(natural=6.6)  # the background would be called foreground


def background(answers: Tensor) -> np.ndarray:
    levels = BackgroundParts(8)
    levels.add(answers)
    return levels.map(range(len(answers)))


def test_a_code_in_the_background_is_found_at_the_size_of_its_cells_and_not_in_label_maps():
    code = hashed("OWNER1", 7, 8)
    levels = torch.where(torch.from_numpy(code).flatten()[cells(SIZE, SIZE, 8)], -4.5, -6.0)
    answers = levels.expand(3, SIZE, SIZE).sigmoid().clone()
    answers[:, 22:31, 22:31] = 0.9  # a polyp over parts of cells
    levels_found = background(answers)
    assert levels_found[~code].min() == pytest.approx(-6, abs=1e-3) and levels_found[code].max() == pytest.approx(
        -4.5, abs=1e-3
    )
    assert np.array_equal(minimum_error_split(levels_found), code)
    assert np.ptp(background((answers > 0.5).float())) == 0, "label maps show no level"
    assert np.ptp(background(torch.ones(2, SIZE, SIZE))) == 0, "nor does an answer without background"


def test_the_hash_is_keyed():
    """openssl dgst -sha256 -mac HMAC -macopt hexkey:... on OWNER1, the key 7 in 32 bytes"""
    digest = bytes.fromhex("654453f289fd6490cbc9ab971bb714d6e8773416e1a8443f17b5b06348d4d194")
    assert np.packbits(hashed("OWNER1", 7, 16)).tobytes() == digest
    assert np.array_equal(hashed("OWNER1", 7, 8).flatten(), hashed("OWNER1", 7, 16).flatten()[:64])
    assert not np.array_equal(hashed("OWNER1", 8, 16), hashed("OWNER1", 7, 16))
    assert hashlib.sha256(b"OWNER1").digest() != digest


def test_a_hash_is_read_only_where_it_is_whole():
    code = hashed("OWNER1", 7, 8)
    wrong = code.copy()
    wrong[0, 0] ^= True
    assert read(code, code, "OWNER1") == "OWNER1" and read(wrong, code, "OWNER1") is None
    assert read(encode("OTHER"), encode("OWNER1"), "OWNER1") == "OTHER"


def test_a_text_that_does_not_fit_is_refused_when_the_suite_is_read():
    with pytest.raises(UserError, match="does not fit"):
        make("method", {"name": "stealthmark-payload", "payload": "TOO LONG FOR IT"})


def test_the_modules_of_a_map_do_not_depend_on_its_scale_or_offset():
    method, key = keyed()
    code = method.modules(key).numpy()
    for low, high in ((-1e-4, 0), (0, 3), (5, 6)):
        assert np.array_equal(minimum_error_split(np.where(code, high, low).astype(float)), code)


# --- distillation -----------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Foreground where it is bright, at 0.88 and 0.12."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(images.mean(1, keepdim=True) > 0.5, 2.0, -2.0)


@pytest.mark.parametrize("answers, high", [("probabilities", 0.8808), ("label", 1.0)])
def test_a_student_learns_the_answers_and_not_the_masks(monkeypatch, tmp_path, answers, high):
    batches, kept = [], []

    def watch(model, images, masks, schedule, make_batch, *rest):
        batches.append(make_batch(images.float() / 255, masks.float(), 0.0, torch.Generator()))
        return model, schedule.epochs

    monkeypatch.setattr(distil, "fit", watch)
    images = (photos() * 255).to(torch.uint8)
    thief = make("attack", {"name": "distil", "answers": answers, "strengths": [2, 3]})
    students = iter(["first", "second"])
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
    state = tmp_path / "state"
    thief.run(Theft(Bright(), images, masks, 1, state, "run", lambda: next(students), lambda *one: kept.append(one)))
    students_kept = [(2.0, ("first", 2), ()), (3.0, ("second", 3), ())]
    assert kept == students_kept, "every strength has a student of its own"
    bright = (images.float() / 255).mean(1) > 0.5
    for batch in batches:
        assert batch.targets == pytest.approx(torch.where(bright, high, 1 - high), abs=1e-4)


# --- from the model to the page ---------------------------------------------------------------------------------------

PLAN = {"images": 2, "queries": 80, "tries": 2}
PAYLOAD = {"name": "stealthmark-payload", "code": "hash-8", "queries": 4}
SUITE = {
    "suite": "test",
    "title": "test",
    "seed": 1,
    "seeds": [0],
    "size": 32,
    "datasets": [{"name": "phantom-endoscopy", "groups": 12, "cases_per_group": 2}],
    "architectures": [tiny.NETWORK],
    "methods": ["clean", PAYLOAD, "continued"],
    "attacks": [{"name": "prune", "strengths": [0.5]}],
    "access": ["probabilities", "label"],
    "training": {"epochs": 1, "batch": 4},
    "marking": {"epochs": 1, "batch": 4},
    "explanations": PLAN,
}
CLEAN, MARKED, CONTROL = (Cell("phantom-endoscopy", "small-net", 0, name) for name in ("clean", PAYLOAD["name"], "continued"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Path]:
    """A mark of one epoch, pruned, examined, explained, collated and reported."""
    results = tmp_path_factory.mktemp("payload")
    with tiny.known_plugins():
        tiny.study(SUITE, results)
        for verb in ("collate", "report"):
            assert run(verb, "--suite", results / "suite.yaml", "--results", results) == 0
        yield results


def explained(study: Path, cell: Cell) -> pd.DataFrame:
    """All cases of a cell's explanations."""
    return pd.concat(pd.read_parquet(file) for file in sorted(Study(study).explanations(cell).rglob(CASES)))


def test_of_a_control_the_rows_say_how_good_it_is_and_nothing_that_a_detector_of_nothing_says(study):
    rows = pd.read_csv(study / "rows.csv")
    judged, control = {"asr", "fpr", "auroc", "chi2_p"}, rows[rows.method == "continued"]
    assert {"dice", "ece"} <= set(control.metric) and not judged & set(control.metric)
    assert set(control[control.metric == "dice"]["query"]) == {"benign", "triggered"}
    assert judged <= set(rows[rows.method == PAYLOAD["name"]].metric)
    main = pd.read_csv(study / "tables/main.csv").set_index("method")
    assert "Of 1 marks" in (study / "figures/captions.json").read_text(), "a control is not counted among the marks"
    assert main.loc["continued"].dice > 0 and pd.isna(main.loc["continued"].asr)
    assert "continued: a control without a mark" in (study / "tables/main.md").read_text()


def test_every_suspect_is_asked_for_the_code_and_the_stolen_one_with_wrong_keys_too(study):
    cases = explained(study, MARKED)
    own = {("key", reader, pooled, 80) for reader in ("in-place", "lime") for pooled in (True, False)}
    natural, both_ways = {("natural", "level", True, None)}, {("trigger", way, False, 80) for way in ("gated-qr", "lime")}
    wrong = {(query, reader, False, 80) for query in ("wrong-key", "no-key") for reader in ("in-place", "lime")}
    few = {("key", reader, pooled, n) for _, reader, pooled, _ in own for n in (16, 32, 64)}

    def asked(role: str, attack: str) -> set[tuple]:
        of_suspect = cases[(cases.role == role) & (cases.attack == attack)]
        ways = of_suspect[["query", "reader", "pooled", "queries"]].drop_duplicates().itertuples(index=False, name=None)
        return {(query, reader, pooled, None if pd.isna(n) else int(n)) for query, reader, pooled, n in ways}

    assert {(role, attack) for role, attack in zip(cases.role, cases.attack, strict=True)} == {
        *(("stolen", "none"), ("stolen", "prune"), ("independent", "none"), ("untrained", "none"))
    }
    assert asked("stolen", "prune") == own | natural
    assert asked("independent", "none") == asked("untrained", "none") == own | natural | both_ways
    assert asked("stolen", "none") == own | natural | both_ways | wrong | few

    columns = ["role", "attack", "access", "query", "reader", "pooled", "queries"]
    for (role, attack, _, query, _, pooled, _), count in cases.groupby(columns, dropna=False).size().items():
        tries = PLAN["tries"] if (role, attack, query) == ("stolen", "none", "key") else 1
        assert count == tries * (1 if pooled else PLAN["images"])


def test_every_column_of_a_row_says_one_thing(study):
    """How a code was read stands in columns of its own, and in no metric's name."""
    rows = pd.read_csv(study / "rows.csv").query("metric in ('bit_error', 'decoded', 'chance_p')")
    assert not pd.read_csv(study / "rows.csv").metric.dropna().str.contains("payload|lime|gated|triggered").any()
    assert set(rows["query"]) == {"trigger", "key", "wrong-key", "no-key", "natural"}
    assert set(rows.reader) == {"gated-qr", "lime", "in-place", "level"}
    told = ["role", "member", "attack", "strength", "access", "query", "reader", "pooled", "queries", "metric", "method"]
    assert not rows.duplicated(told).any(), "a value stands twice"
    assert rows[rows["query"] == "natural"].queries.isna().all() and rows[rows["query"] != "natural"].queries.notna().all()
    chances = rows[rows.metric == "chance_p"]
    assert chances.pooled.astype(bool).all() and set(chances["query"]) == {"key", "natural"}
    assert rows[rows.metric == "bit_error"][["ci_low", "ci_high"]].notna().all().all()


def test_the_rows_are_means_over_the_explained_cases(study):
    how = ["role", "attack", "strength", "access", "query", "reader", "pooled", "queries"]
    cases = explained(study, MARKED).fillna({"queries": -1}).groupby(how).bit_error.agg(["mean", "size"]).reset_index()
    rows = pd.read_csv(study / "rows.csv").query("metric == 'bit_error' and method == 'stealthmark-payload'")
    both = rows.fillna({"queries": -1}).astype({"pooled": bool}).merge(cases, "outer", on=how, validate="one_to_one")
    assert len(both) == len(rows) == len(cases)
    assert both.value.tolist() == pytest.approx(both["mean"].tolist(), abs=1e-5) and (both.n == both["size"]).all()


def test_an_answer_serves_every_access_level_though_few_are_remembered():
    """Each level used to sweep over all images by itself, and by then the first answers had been forgotten."""
    method, key = keyed(code="hash-8")
    plan, order = ExplanationPlan(images=2, queries=40, tries=2), np.arange(5)
    images = (photos(5) * 255).round().to(torch.uint8).numpy()
    arrays = Arrays(images, np.zeros((5, SIZE, SIZE), np.uint8), pd.DataFrame({"case_id": [*"abcde"]}), {})

    def sent(*access: str) -> int:
        of_one_map = 40 * SIZE * SIZE * 4
        detectors = {level: Detector(threshold=0, fitted_on={}) for level in access}
        examination = Examination(key.model_copy(update={"detectors": detectors}), method, arrays, torch.device("cpu"))
        answering = ideal(method, key)
        model = Querier(Source(lambda asked: answering(asked)[:, None].numpy()), Limits(remembered=of_one_map))
        carried = _Spelt.of(examination, 0)
        readings = [*carried.readings(examination, Suspect(Place(), model, None), order, plan, 0)]
        assert {reading.access for reading in readings} == set(access)
        return model.sent

    asked = 2 * 2 * 40 + 2 * 2 * 40 + 5  # two wrong keys and two tries, two images each; and all images as they are
    assert sent("probabilities") == sent("probabilities", "rounded-0.1", "clipped-0.1", "label") == asked


def test_the_report_shows_the_code_of_every_suspect(study):
    table = pd.read_csv(study / "tables/payload.csv")
    suspects = ["stolen", "pruning 50 %", "wrong key", "no key", "independent", "untrained"]
    suspects += [f"{suspect}, by LIME" for suspect in suspects]
    suspects += [f"{suspect}, natural answers" for suspect in ("stolen", "pruning 50 %", "independent")]
    assert list(table.suspect.unique()) == suspects and table.right.between(0, 1).all()
    rows = pd.read_csv(study / "rows.csv").query("method == 'stealthmark-payload' and role == 'stolen'")
    own = rows[(rows["query"] == "key") & (rows.reader == "in-place") & (rows.queries == PLAN["queries"])]
    alone = own[~own.pooled.astype(bool) & (own.metric == "bit_error") & (own.attack == "none")]
    stolen = table[table.suspect == "stolen"].set_index("access").right
    assert len(alone) == 2
    for row in alone.itertuples():
        assert stolen[row.access] == pytest.approx(1 - row.value, abs=1e-5)
    # A hash has a p-value, that of its worst try.
    chances = own[own.pooled.astype(bool) & (own.metric == "chance_p")]
    pooled = explained(study, MARKED).query("query == 'key' and reader == 'in-place' and pooled and queries == 80")
    for row in chances.itertuples():
        of_suspect = (pooled.attack == row.attack) & (pooled.strength == row.strength) & (pooled.access == row.access)
        wrong = pooled[of_suspect & (pooled.role == "stolen")].bit_error
        assert row.value == pytest.approx(chance(wrong.max(), 8), rel=1e-5) and row.n == len(wrong)
    assert len(chances) and "; p " in (study / "tables/payload.md").read_text()
    assert (study / "figures/payload-phantom-endoscopy.png").exists()
    page = (study / "report.html").read_text()
    assert 'id="payload"' in page and 'id="figure-payload-queries"' in page and 'id="figure-payload-phantom-endoscopy"' in page


def certifying(study: Path, *more: object) -> list:
    at = Study(study)
    argv = ["certify", "--data", at.data(MARKED.dataset), "--key", at.key(MARKED), "--suspect", at.model(MARKED)]
    return [*argv, "--null", at.independent(MARKED), *more]


def test_a_certificate_holds_the_code_that_was_found_and_what_it_cost(study, tmp_path):
    budget = ["--code-queries", 40, "--limits", "{budget: 64}"]
    assert run(*certifying(study, *budget, "--out", tmp_path / "claim")) == commands.NOT_SHOWN
    told = json.loads((tmp_path / "claim/certificate.json").read_text())
    assert told["payload"]["queries"] == 40 - 40 % 3 and told["queries"]["images"] == 3
    assert told["queries"]["sent"] == told["payload"]["queries"] + 3 * 8 <= 64
    assert "The owner’s code" in (tmp_path / "claim/certificate.html").read_text()
    assert "OWNER1" not in json.dumps(told["method"]), "the payload is named where it is judged, not among the options"


def test_a_budget_that_does_not_suffice_for_the_code_is_refused(study, tmp_path, capsys):
    assert run(*certifying(study, "--limits", "{budget: 100}", "--out", tmp_path / "claim")) == 1
    assert "a budget of 100 is less than the 8 queries that one image takes and the 512 for the code" in capsys.readouterr().err
    assert run(*certifying(study, "--code-queries", 7, "--out", tmp_path / "claim")) == 1
    assert "the code is asked for with 7 queries; allowed: at least 8" in capsys.readouterr().err
    assert not (tmp_path / "claim").exists()
