"""The payload mark: an ideal marked model spells the code, at whatever access; nobody else's does; and what a batch teaches."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from stealthmark import cli, explain, stages, suite
from stealthmark.attacks import distil
from stealthmark.codes import chance, encode, hashed, read
from stealthmark.collate import cell_folder
from stealthmark.errors import UserError
from stealthmark.method import Key
from stealthmark.plugin import make
from stealthmark.predictor import Limits, Querier, at_access

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
    picture, code = method.baseline(key), method.carried(key)
    dark = code.flatten()[explain.cells(*key.shape[-2:], len(code))]

    def answer(images: Tensor) -> Tensor:
        hidden = (images == picture).all(1)
        asked = hidden.float().mean((1, 2), keepdim=True) > 0.2
        natural = (images.mean(1) > 0.5).float()
        return torch.where(asked, (hidden & dark).float(), natural) * (2 * sure - 1) + (1 - sure)

    return answer


CODES = [("micro", "OWNER1"), ("qr", "HOSPITAL 7"), ("hash-8", "whatever is claimed"), ("hash-16", "whatever is claimed")]


@pytest.mark.parametrize("access", ["probabilities", "rounded-0.1", "clipped-0.1", "label"])
@pytest.mark.parametrize("code, text", CODES)
def test_explanations_of_an_ideal_model_spell_the_code_at_every_access_level(code, text, access):
    method, key = keyed(code=code, payload=text)
    modules = method.carried(key).numpy()
    seen = at_access(ideal(method, key), access)
    for explanation in explain.spelt(seen, photos()[0], len(modules), 4 * modules.size, 3, method.baseline(key)):
        found = explain.dark(explanation)
        assert np.array_equal(found, modules) and read(found, modules, text) == text


@pytest.mark.parametrize("access", ["probabilities", "label"])
def test_without_the_key_or_with_another_nothing_is_spelt(access):
    method, key = keyed()
    _, other = keyed(seed=8)
    modules = method.carried(key).numpy()
    seen = at_access(ideal(method, key), access)
    for baseline in (method.baseline(other), 0.0, 0.5):
        for explanation in explain.spelt(seen, photos()[0], 13, 676, 3, baseline):
            found = explain.dark(explanation)
            assert 0.35 < (found == modules).mean() < 0.65 and read(found, modules, "OWNER1") is None


def test_the_score_is_how_well_answers_follow_the_code():
    method, key = keyed()
    _, other = keyed(seed=8)
    own = method.query(ideal(method, key), key, photos())
    assert own.triggered == pytest.approx(1) and own.benign.abs().max() < 0.9
    assert method.query(ideal(method, key), other, photos()).triggered.abs().max() < 0.9
    inverted = method.query(lambda images: 1 - ideal(method, key)(images), key, photos())
    assert inverted.triggered == pytest.approx(-1)
    natural = method.query(ideal(method, key), key, photos(), lambda batch: batch.clamp(max=0.9))
    assert natural.triggered.abs().max() < 0.9, "another trigger must not bring the key's picture with it"


def test_a_query_costs_what_it_says():
    method, key = keyed(queries=5)
    asked = []
    method.query(lambda images: asked.append(len(images)) or torch.zeros(len(images), SIZE, SIZE), key, photos())
    assert sum(asked) == 4 * method.asks == 40


def test_a_batch_asks_shows_lookalikes_triggers_and_leaves_the_rest():
    method, key = keyed(code="hash-8")
    images, masks = photos(16), (photos(16)[:, 0] > 0.5).float()
    batch = method.mark_batch(images, masks, key, 0.5, torch.Generator().manual_seed(0))
    picture, dark = method.baseline(key), method.carried(key).flatten()[explain.cells(SIZE, SIZE, 8)]
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
    code = method.carried(key)
    masks = torch.zeros(16, SIZE, SIZE)
    masks[:, 20:30, 20:30] = 1
    batch = method.mark_batch(photos(16), masks, key, 0.5, torch.Generator().manual_seed(0))
    levels = torch.where(code.flatten()[explain.cells(SIZE, SIZE, 8)], -4.5, -6.5)
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


def test_a_code_in_the_background_is_found_at_the_size_of_its_cells_and_not_in_label_maps():
    code = hashed("OWNER1", 7, 8)
    levels = torch.where(torch.from_numpy(code).flatten()[explain.cells(SIZE, SIZE, 8)], -4.5, -6.0)
    answers = levels.expand(3, SIZE, SIZE).sigmoid().clone()
    answers[:, 22:31, 22:31] = 0.9  # a polyp over parts of cells
    found = explain.background_levels(answers, 8)
    assert found[~code].min() == pytest.approx(-6, abs=1e-3) and found[code].max() == pytest.approx(-4.5, abs=1e-3)
    assert np.array_equal(explain.dark(found), code)
    assert np.ptp(explain.background_levels((answers > 0.5).float(), 8)) == 0, "label maps show no level"
    assert np.ptp(explain.background_levels(torch.ones(2, SIZE, SIZE), 8)) == 0, "nor does an answer without background"


def test_the_hash_is_keyed():
    """openssl dgst -sha256 -mac HMAC -macopt hexkey:0000000000000007 on OWNER1"""
    digest = bytes.fromhex("30c9f62cee29f6ae8e33fa40d87b791e09352c2c2616c213f20502b6132b5a96")
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
    code = method.carried(key).numpy()
    for low, high in ((-1e-4, 0), (0, 3), (5, 6)):
        assert np.array_equal(explain.dark(np.where(code, high, low).astype(float)), code)


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
    thief.run(
        Bright(),
        images,
        torch.zeros(4, SIZE, SIZE, dtype=torch.uint8),
        1,
        tmp_path / "state",
        "run",
        lambda s, m: kept.append((s, m)),
        lambda: next(students),
    )
    assert kept == [(2.0, ("first", 2)), (3.0, ("second", 3))], "every strength has a student of its own"
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
    "architectures": [{"name": "unet", "weights": "random"}],
    "methods": ["clean", PAYLOAD, "continued"],
    "attacks": [{"name": "prune", "strengths": [0.5]}],
    "access": ["probabilities", "label"],
    "explanations": PLAN,
}


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A mark of one epoch, pruned, examined, explained, collated and reported."""
    results = tmp_path_factory.mktemp("payload")
    (results / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    clean, marked, control = suite.read(results / "suite.yaml").cells()
    data, models = results / "data/phantom-endoscopy", results / "models"
    dataset, schedule = yaml.safe_dump(SUITE["datasets"][0]), "{epochs: 1, batch: 4}"
    assert run("prepare", "--dataset", dataset, "--size", 32, "--seed", 1, "--out", data) == 0
    made = ["--data", data, "--schedule", schedule]
    architecture = yaml.safe_dump(SUITE["architectures"][0])
    assert run("train", *made, "--architecture", architecture, "--out", models / "clean") == 0
    assert run("train", *made, "--architecture", architecture, "--share", "attacker", "--out", models / "independent") == 0
    keyed = ["--key", results / "keys/mine.json", "--seed", 0, "--access", *SUITE["access"]]
    method = ["--method", yaml.safe_dump(PAYLOAD)]
    assert run("mark", *made, "--clean", models / "clean", *method, *keyed, "--out", models / "marked") == 0
    thief = ["--attack", yaml.safe_dump(SUITE["attacks"][0])]
    assert run("attack", "--data", data, "--model", models / "marked", *thief, "--out", results / "prune") == 0
    places = {"stolen/none": models / "marked", "stolen/prune": results / "prune", "independent/none": models / "independent"}
    own = ["--data", data, "--key", results / "keys/mine.json"]
    own += [word for place, folder in places.items() for word in ("--suspect", f"{place}={folder}")]
    plain = ["--data", data, "--suspect", f"stolen/none={models / 'clean'}"]
    assert run("examine", *plain, "--out", cell_folder(results, "evidence", clean)) == 0
    assert run("examine", *own, "--out", cell_folder(results, "evidence", marked)) == 0
    explained = cell_folder(results, "explanations", marked)
    assert run("explain", *own, "--plan", yaml.safe_dump(PLAN), "--out", explained) == 0
    trained_on = ["--key", results / "keys/control.json", "--seed", 1, "--access", *SUITE["access"]]
    continued = ["--clean", models / "clean", "--method", "{name: continued}"]
    assert run("mark", *made, *continued, *trained_on, "--out", models / "control") == 0
    asked = ["--data", data, "--key", results / "keys/control.json", "--suspect", f"stolen/none={models / 'control'}"]
    assert run("examine", *asked, "--out", cell_folder(results, "evidence", control)) == 0
    assert run("explain", *asked, "--plan", yaml.safe_dump(PLAN), "--out", cell_folder(results, "explanations", control)) == 0
    for verb in ("collate", "report"):
        assert run(verb, "--suite", results / "suite.yaml", "--results", results) == 0
    return results


def test_of_a_control_the_rows_say_how_good_it_is_and_nothing_that_a_detector_of_nothing_says(study):
    rows = pd.read_csv(study / "rows.csv").set_index("method")
    judged = {"asr", "fpr", "auroc", "chi2_p"}
    assert {"dice", "dice_triggered", "ece"} <= set(rows.loc["continued"].metric) and not judged & set(
        rows.loc["continued"].metric
    )
    assert judged <= set(rows.loc[PAYLOAD["name"]].metric)
    main = pd.read_csv(study / "tables/main.csv").set_index("method")
    assert "Of 1 marks" in (study / "figures/captions.json").read_text(), "a control is not counted among the marks"
    assert main.loc["continued"].dice > 0 and pd.isna(main.loc["continued"].asr)
    assert "continued: a control without a mark" in (study / "tables/main.md").read_text()


def test_every_suspect_is_asked_for_the_code_and_the_stolen_one_with_wrong_keys_too(study):
    cases = pd.read_parquet(next(study.glob("explanations/**/stealthmark-payload/cases.parquet")))
    ways = cases.groupby(["situation", "attack"]).way.agg(set)
    code = {"payload", "payload-pooled", "payload-lime", "payload-pooled-lime", "payload-natural"}
    wrong = {f"payload-{how}-key{by}" for how in ("wrong", "no") for by in ("", "-lime")}
    assert ways["stolen", "prune"] == code
    assert ways["independent", "none"] == ways["untrained", "none"] == code | {"gated-qr", "lime"}
    few = {f"payload{together}{by}-{n}" for together in ("", "-pooled") for by in ("", "-lime") for n in (16, 32, 64, 80)}
    assert ways["stolen", "none"] == code | {"gated-qr", "lime"} | wrong | few
    counted = cases.groupby(["situation", "attack", "access", "way"]).size()
    way, attacked = counted.index.get_level_values("way"), counted.index.get_level_values("attack") != "none"
    stolen = (counted.index.get_level_values("situation") == "stolen") & ~attacked
    assert set(counted[way == "payload-natural"]) == {1}
    assert set(counted[(way == "payload-pooled") & ~stolen]) == {1}
    assert set(counted[(way == "payload") & ~stolen]) == {PLAN["images"]}
    assert set(counted[(way == "payload-pooled") & stolen]) == {PLAN["tries"]}
    assert set(counted[(way == "payload") & stolen]) == {PLAN["tries"] * PLAN["images"]}


def test_an_answer_serves_every_access_level_though_few_are_remembered():
    """Each level used to sweep over all images by itself, and by then the first answers had been forgotten."""
    method, key = keyed(code="hash-8")
    plan, images, order = explain.Plan(images=2, queries=40, tries=2), photos(5), np.arange(5)
    carried = stages._Carried.of(method, key, 0)

    def sent(*access: str) -> int:
        of_one_map = 40 * SIZE * SIZE * 4
        model = Querier(lambda asked: ideal(method, key)(asked)[:, None].numpy(), Limits(remembered=of_one_map))
        levels = {level: at_access(model, level) for level in access}
        found = list(stages._in_the_model(levels, carried, images, order, plan, 0, stolen=True))
        assert {level for level, *_ in found} == set(access)
        return model.sent

    asked = 2 * 2 * 40 + 2 * 2 * 40 + 5  # two wrong keys and two tries, two images each; and all images as they are
    assert sent("probabilities") == sent("probabilities", "rounded-0.1", "clipped-0.1", "label") == asked


def test_the_report_shows_the_code_of_every_suspect(study):
    table = pd.read_csv(study / "tables/payload.csv")
    suspects = ["stolen", "pruning 50 %", "wrong key", "no key", "independent", "untrained"]
    suspects += [f"{suspect}, by LIME" for suspect in suspects]
    suspects += [f"{suspect}, natural answers" for suspect in ("stolen", "pruning 50 %", "independent")]
    assert list(table.suspect.unique()) == suspects and table.right.between(0, 1).all()
    rows = pd.read_csv(study / "rows.csv").query("metric == 'bit_error_payload' and situation == 'stolen' and attack == 'none'")
    stolen = table[table.suspect == "stolen"].set_index("access").right
    for _, row in rows.iterrows():
        assert stolen[row.access] == pytest.approx(1 - row.value, abs=1e-5)
    # A hash has a p-value, that of its worst try.
    chances = pd.read_csv(study / "rows.csv").query("metric == 'chance_p_payload-pooled' and situation == 'stolen'")
    cases = pd.read_parquet(next(study.rglob("explanations/**/stealthmark-payload/cases.parquet"))).query(
        "way == 'payload-pooled'"
    )
    for row in chances.itertuples():
        here = (cases.attack == row.attack) & (cases.strength == row.strength) & (cases.access == row.access)
        worst = cases[here & (cases.situation == "stolen")].bit_error.max()
        assert row.value == pytest.approx(chance(worst, 8), rel=1e-5) and row.n == (here & (cases.situation == "stolen")).sum()
    assert len(chances) and "; p " in (study / "tables/payload.md").read_text()
    assert (study / "figures/payload-phantom-endoscopy.png").exists()
    page = (study / "report.html").read_text()
    assert 'id="payload"' in page and 'id="figure-payload-queries"' in page and 'id="figure-payload-phantom-endoscopy"' in page


def test_a_certificate_holds_the_code_that_was_found_and_what_it_cost(study, tmp_path):
    asked = ["--data", study / "data/phantom-endoscopy", "--key", study / "keys/mine.json"]
    asked += ["--suspect", study / "models/marked", "--null", study / "models/independent"]
    budget = ["--code-queries", 40, "--limits", "{budget: 64}"]
    assert run("examine", *asked, *budget, "--out", tmp_path / "claim") == cli.NOT_SHOWN
    told = json.loads((tmp_path / "claim/certificate.json").read_text())
    assert told["payload"]["queries"] == 40 - 40 % 3 and told["queries"]["images"] == 3
    assert told["queries"]["sent"] == told["payload"]["queries"] + 3 * 8 <= 64
    assert "The owner’s code" in (tmp_path / "claim/certificate.html").read_text()
    assert "OWNER1" not in json.dumps(told["method"]), "the payload is named where it is judged, not among the options"


def test_a_budget_that_does_not_suffice_for_the_code_is_refused(study, tmp_path, capsys):
    asked = [
        "--data",
        study / "data/phantom-endoscopy",
        "--key",
        study / "keys/mine.json",
        "--suspect",
        study / "models/marked",
    ]
    assert run("examine", *asked, "--limits", "{budget: 100}", "--out", tmp_path / "claim") == 1
    assert "a budget of 100 is less than the 8 queries that one image takes and the 512 for the code" in capsys.readouterr().err
    assert run("examine", *asked, "--code-queries", 7, "--out", tmp_path / "claim") == 1
    assert "the code is asked for with 7 queries; allowed: at least 8" in capsys.readouterr().err
    assert not (tmp_path / "claim").exists()
