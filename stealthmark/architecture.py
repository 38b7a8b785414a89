"""Architectures: the contract of a network plug-in, what its logits say of the structure under study, and a network's life on
disk (safetensors and a JSON card)."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stealthmark import plugin_code
from stealthmark.errors import UserError
from stealthmark.files import check, read_json, whole, write_json
from stealthmark.layout import CARD, WEIGHTS
from stealthmark.plugin import Plugin, describe_error, make


class Cost(NamedTuple):
    """parameters: numbers that are trained; flops: of the forward pass of one image, a multiply-add counted as two."""

    parameters: int
    flops: int


class ArchitectureContract(Plugin):
    """A segmentation network by name. Height and width must be multiples of `multiple`, and `smallest` px or more."""

    multiple: ClassVar[int] = 32
    smallest: ClassVar[int] = 32

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        """The network for square images of `size` px: images float (B, channels, size, size) in [0, 1] -> logits
        (B, 1, size, size). Some networks take other sizes too; one that has an embedding for every place does not.

        Normalisation of intensities is part of the network, so that a suspect takes plain images. With `pretrained`
        the initial weights that the options ask for are loaded; without, whatever the initialiser gives (a checkpoint
        is about to replace them). Random weights are drawn from torch's global generator.

        Raises UserError when those weights cannot be had, or when the network cannot be built for this size.
        """
        raise NotImplementedError

    def check_size(self, size: int) -> None:
        """Raises UserError when the network cannot take images of `size` px."""
        if size % self.multiple or size < self.smallest:
            least = f" from {self.smallest} on" if self.smallest > self.multiple else ""
            raise UserError(f"{self.name} allows multiples of {self.multiple} px{least}, found {size}")

    def cost(self, channels: int, size: int) -> Cost:
        """What the network costs on images of `size` px. Convolutions, matrix products and attention are counted;
        normalisation, activation and resampling, which are a few percent, are not."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.random.fork_rng(devices=[]):
            model = self.build(channels, pretrained=False, size=size).eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, channels, size, size))
        return Cost(sum(p.numel() for p in model.parameters() if p.requires_grad), counter.get_total_flops())


def code_of(name: str) -> list[Path]:
    """The files that hold an architecture's code: its own and the ones beside it that it imports. To be had without torch as
    `plugin_code.code_of("architecture", name)`."""
    return plugin_code.code_of("architecture", name)


class Normalised(nn.Module):
    """A network behind the fixed normalisation (x - mean) / std of its input. With `size`: it takes images of that many
    px alone, and raises UserError for others."""

    def __init__(self, network: nn.Module, mean: float, std: float, size: int | None = None):
        super().__init__()
        self.network, self.mean, self.std, self.size = network, mean, std, size

    def forward(self, images: Tensor) -> Tensor:
        if self.size and images.shape[-2:] != (self.size, self.size):
            height, width = images.shape[-2:]
            raise UserError(f"this network takes images of {self.size} x {self.size} px, found {height} x {width}")
        return self.network((images - self.mean) / self.std)


class DeepSupervision(nn.Module):
    """A network that is trained at several resolutions at once; `forward` answers with the finest."""

    def heads(self, images: Tensor) -> list[tuple[float, Tensor]]:
        """(weight in the loss, logits float (B, K, h, w)) at every resolution that training looks at, full size first."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(images)[0][1]


def structure_log_odds(logits: Tensor, classes: Iterable[int] = ()) -> Tensor:
    """The log-odds of the structure under study, float (B, H, W), from a network's logits (B, K, H, W).

    A single logit (K = 1) is that already. Of K >= 2 classes that exclude each other, `classes` are the structure (default:
    all but 0): the log of the sum of their exponentials less that of the others', in float32 or finer.

    Raises UserError for a class that is not among the K, and where no class is left on either side.
    """
    count, structure = logits.shape[1], sorted(set(classes))
    if count == 1:
        if structure:
            raise UserError(f"field 'classes' has the value {structure}: the network has one logit, so none is allowed")
        return logits[:, 0]
    structure = structure or list(range(1, count))
    others = [number for number in range(count) if number not in structure]
    if not 0 <= structure[0] <= structure[-1] < count or not others:
        raise UserError(f"field 'classes' has the value {structure}; allowed: some of 0 to {count - 1}, but not all of them")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits[:, structure].logsumexp(1) - logits[:, others].logsumexp(1)


def foreground(model: Callable[[Tensor], Tensor], images: Tensor, classes: Iterable[int] = ()) -> Tensor:
    """The log-odds of the structure under study that a network answers with, float (B, H, W), for images float (B, C, H, W) in
    [0, 1]; see `structure_log_odds`."""
    return structure_log_odds(model(images), classes)


#: More pixels a side than any network here is trained at; some networks grow with it.
LARGEST = 4096


class Card(BaseModel):
    """What a checkpoint says of itself: enough to rebuild the network, nothing about a mark."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    architecture: dict
    channels: Literal[1, 3]
    size: int = Field(ge=1, le=LARGEST, strict=True)


def card_for(architecture: dict, channels: int, size: int) -> dict:
    """A checkpoint's card, as it is written."""
    return Card(architecture=architecture, channels=channels, size=size).model_dump()


def save(model: nn.Module, card: dict, folder: Path) -> None:
    """Write `model.safetensors`, then `card.json`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(folder / WEIGHTS, state)
    write_json(folder / CARD, card)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all. Raises UserError where it cannot be written."""
    with whole(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from None


def load(folder: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """The network of a checkpoint folder, in eval mode, and its card.

    Raises UserError when a file is absent or malformed, or when the weights are those of another architecture.
    """
    try:
        card = Card(**read_json(folder / CARD)).model_dump()
        state = load_file(folder / WEIGHTS)
    except ValidationError as error:
        raise UserError(f"{folder / CARD} is not the card of a checkpoint: {describe_error(error, Card)}") from None
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a checkpoint: {Path(error.filename or WEIGHTS).name} is absent") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} is not a checkpoint: {error}") from None
    model = make("architecture", card["architecture"]).build(card["channels"], pretrained=False, size=card["size"])
    if others := other_tensors(model.state_dict(), state):
        raise UserError(
            f"the weights in {folder} are not those of the architecture {card['architecture']['name']!r} that the card "
            f"names: {len(others)} tensors differ, {others[0]} the first"
        )
    check(folder / WEIGHTS)  # last: what is wrong with the file itself says more
    model.load_state_dict(state)
    return model.to(device).eval(), card


def other_tensors(own: dict[str, Tensor], stored: dict[str, Tensor]) -> list[str]:
    """The names of tensors that one of both lacks; where neither lacks any, of those whose shapes differ. Sorted."""
    return sorted(own.keys() ^ stored.keys()) or sorted(name for name in own if own[name].shape != stored[name].shape)
