"""Attacks that make a model: what each does to weights, computed by hand."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stealthmark.architecture import DeepSupervision
from stealthmark.attack import Theft
from stealthmark.attacks._layers import last_layer, weights
from stealthmark.plugin import make


@pytest.fixture(scope="module", autouse=True)
def _known_plugins() -> Iterator[None]:
    with tiny.known_plugins():
        yield


def attacked(options: dict, model: nn.Module, folder: Path, seed: int = 5) -> dict[float, nn.Module]:
    """The models that an attack makes of a copy of `model`, by strength."""
    kept: dict[float, nn.Module] = {}
    images, masks = (tiny.pictures(8) * 255).to(torch.uint8), (tiny.pictures(8)[:, 0] > 0.5).to(torch.uint8)

    def keep(strength: float, made: nn.Module, wraps: tuple) -> None:
        assert wraps == ()
        kept[strength] = copy.deepcopy(made)

    stolen = copy.deepcopy(model)
    make("attack", options).run(Theft(stolen, images, masks, seed, folder / "state", "run", lambda: stolen, keep))
    return kept


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_convolutions_and_linear_layers_each_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 1, 2), shared, nn.LayerNorm(3), shared)
    assert [id(weight) for weight in weights(model)] == [id(model[i].weight) for i in (0, 2, 3)]


def test_quantised_weights_by_hand(tmp_path):
    """Two bits are the levels -1, 0 and 1, three bits -3 to 3, times one step a tensor."""
    model = nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.6, -0.2, 0.35, -0.45, 0.05]]))
        model[1].weight.copy_(torch.tensor([[0.0], [0.0]]))
    made = attacked({"name": "quantise", "strengths": [29, 30]}, model, tmp_path)
    torch.testing.assert_close(made[30][0].weight, torch.tensor([[0.6, 0.0, 0.6, -0.6, 0.0]]))
    torch.testing.assert_close(made[29][0].weight, torch.tensor([[0.6, -0.2, 0.4, -0.4, 0.0]]))
    for one in made.values():
        assert torch.equal(one[0].bias, model[0].bias) and not one[1].weight.any()


def test_a_quantised_network_has_few_levels_and_keeps_its_norms(tmp_path):
    model = tiny.network(0)
    state = model.state_dict()
    for strength, made in attacked({"name": "quantise"}, model, tmp_path).items():
        levels = 2 ** (32 - strength) - 1
        for name, value in made.state_dict().items():
            if value.ndim < 2:
                assert torch.equal(value, state[name])
                continue
            step = 2 * state[name].abs().max() / (levels - 1)
            assert len(value.unique()) <= levels and (value - state[name]).abs().max() <= step / 2 * (1 + 1e-4)
            torch.testing.assert_close(value.abs().max(), state[name].abs().max())


def test_noise_on_weights_has_the_stated_deviation(tmp_path):
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 300), nn.BatchNorm1d(300), nn.Linear(300, 1))
    with torch.no_grad():
        model[1].weight.mul_(50)
        model[3].weight.fill_(0.25)  # no deviation, no noise
    made = attacked({"name": "weight-noise", "strengths": [0.1, 0.3]}, model, tmp_path)
    noise = {strength: [one[i].weight - model[i].weight for i in (0, 1)] for strength, one in made.items()}
    for strength, parts in noise.items():
        for i, part in enumerate(parts):
            assert (part.std() / model[i].weight.std()).item() == pytest.approx(strength, rel=0.02)
            assert abs(part.mean() / part.std()).item() < 0.03
    torch.testing.assert_close(noise[0.3][1], 3 * noise[0.1][1], rtol=1e-3, atol=1e-4)
    for one in made.values():
        assert all(torch.equal(one[i].bias, model[i].bias) for i in (0, 1, 3)) and torch.equal(one[3].weight, model[3].weight)
    again, other = (attacked({"name": "weight-noise", "strengths": [0.1]}, model, tmp_path, seed)[0.1] for seed in (5, 6))
    assert torch.equal(again[0].weight, made[0.1][0].weight) and not torch.equal(other[0].weight, again[0].weight)


# --- fine-tuning ------------------------------------------------------------------------------------------------------


class Reversed(nn.Module):
    """Lists its head first and a layer without a part in the answer last; its trunk answers in between."""

    def __init__(self):
        super().__init__()
        self.head, self.trunk, self.idle = nn.Conv2d(2, 1, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.trunk(images))
        logits = self.head(features)
        self.idle(features)
        return logits


class TwoHeads(DeepSupervision):
    """The coarser head answers last."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)

    def heads(self, images: Tensor) -> list[tuple[float, Tensor]]:
        return [(0.7, self.fine(images)), (0.3, self.coarse(F.avg_pool2d(images, 2)))]


def test_the_last_layer_is_the_last_on_the_way_to_the_answer():
    reverse, two, small = Reversed(), TwoHeads(), tiny.network(0)
    images = tiny.pictures(1)
    assert last_layer(reverse, images) is reverse.head and last_layer(two, images) is two.fine
    assert last_layer(small, images) is small[-1]
    assert not any(module._forward_hooks for module in reverse.modules()), "a hook was left behind"
    assert all(value.grad is None for value in reverse.parameters())


@pytest.mark.parametrize("build", [Reversed, TwoHeads, lambda: tiny.network(0)], ids=["reversed", "two-heads", "small-net"])
def test_fine_tuning_the_last_layer_changes_nothing_else(build, tmp_path):
    model = build()
    last = {id(value) for value in last_layer(model, tiny.pictures(1)).parameters()}
    names = {name for name, value in model.named_parameters() if id(value) in last}
    options = {"name": "finetune", "layers": "last", "strengths": [1, 2], "batch": 4, "lr": 1e-2}
    before, made = model.state_dict(), attacked(options, model, tmp_path)
    for one in made.values():
        changed = {name for name, value in one.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == names and len(names) == 2, "all but its weight and bias stay, the norms' statistics too"
        assert all(value.requires_grad for value in one.parameters()), "whoever goes on with it trains all of it"


def test_what_was_frozen_before_stays_frozen(tmp_path):
    model = Reversed()
    model.trunk.requires_grad_(False)
    (made,) = attacked({"name": "finetune", "layers": "last", "strengths": [1]}, model, tmp_path).values()
    assert {name for name, value in made.named_parameters() if not value.requires_grad} == {"trunk.weight", "trunk.bias"}


def test_after_the_last_layer_a_stack_goes_on_with_all_of_them(tmp_path):
    model = tiny.network(0)
    # At two rates, so that Adam's one step in the second cannot undo that in the first.
    steps = [{"name": "finetune", "layers": "last", "strengths": [1]}, {"name": "finetune", "strengths": [1], "lr": 3e-4}]
    (made,) = attacked({"name": "stack", "steps": steps}, model, tmp_path).values()
    state = model.state_dict()
    assert all(not torch.equal(value, state[name]) for name, value in made.named_parameters())


def test_fine_tuning_says_which_layers():
    texts = [make("attack", {"name": "finetune", "layers": layers}) for layers in ("all", "last")]
    assert [(one.title, one.axis) for one in texts] == [
        ("fine-tuning", "epochs of fine-tuning"),
        ("fine-tuning (last layer)", "epochs of fine-tuning, last layer"),
    ]
