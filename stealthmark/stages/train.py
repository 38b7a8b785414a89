"""Train: arrays -> model. Marking trains with the same function, on other batches."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stealthmark import architecture as architectures
from stealthmark import dataset
from stealthmark.dataset import Arrays
from stealthmark.errors import UserError
from stealthmark.layout import CLEAN
from stealthmark.method import Batch, Key, Trained
from stealthmark.plugin import make
from stealthmark.seeds import derive
from stealthmark.settings import Schedule
from stealthmark.stages import digest
from stealthmark.training import fit


def train(
    data: Path,
    share: str,
    architecture: dict,
    schedule: Schedule,
    seed: int,
    out: Path,
    device: torch.device,
    fraction: float = 1.0,
) -> None:
    """A clean model of the `architecture`, trained on one share of the prepared dataset `data`.

    Or on a `fraction` of the share's groups, as null models are, so that no two have seen the same patients.
    """
    clean = make("method", {"name": CLEAN})
    model, card = train_with(clean, None, data, share, architecture, schedule, seed, out, device, None, fraction)
    architectures.save(model, card, out)


def train_with(
    method: Trained,
    key: Key | None,
    data: Path,
    share: str,
    architecture: dict,
    schedule: Schedule,
    seed: int,
    out: Path,
    device: torch.device,
    start: Path | None,
    fraction: float = 1.0,
) -> tuple[torch.nn.Module, dict]:
    """A network trained by `method`'s batches on one share, and its card; from the checkpoint `start` or from scratch."""
    arrays = dataset.load(data).share(share).part(fraction, derive(seed, "part"))
    channels, size = arrays.images.shape[1:3]
    network = make("architecture", architecture)
    network.check_size(size)
    if start is None:
        torch.manual_seed(derive(seed, "weights"))
        model = network.build(channels, pretrained=True, size=size).to(device)
    else:
        model, _ = load_network(start, channels, device)
    out.mkdir(parents=True, exist_ok=True)
    run = digest(arrays.manifest["sha256"], share, fraction, architecture, method.options(), schedule.model_dump(), seed)

    def make_batch(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        return method.mark_batch(images, masks, key, progress, rng)

    images, masks = byte_tensors(arrays, device)
    fit(model, images, masks, schedule, make_batch, seed, out / "state", run)
    return model, architectures.card_for(architecture, channels, size)


def load_network(folder: Path, channels: int, device: torch.device) -> tuple[torch.nn.Module, dict]:
    """The network of a checkpoint, which must take images of so many channels, and its card."""
    model, card = architectures.load(folder, device)
    if card["channels"] != channels:
        raise UserError(f"the model in {folder} takes images of {card['channels']} channels, the dataset's have {channels}")
    return model, card


def byte_tensors(arrays: Arrays, device: torch.device) -> tuple[Tensor, Tensor]:
    """images uint8 (N, C, H, W) and masks uint8 (N, H, W) on the device."""
    return torch.from_numpy(np.array(arrays.images)).to(device), torch.from_numpy(np.array(arrays.masks)).to(device)


def float_images(images: np.ndarray) -> Tensor:
    """images uint8 (N, C, H, W) -> float in [0, 1], on the CPU."""
    return torch.from_numpy(np.array(images)).float() / 255


def float_masks(masks: np.ndarray) -> Tensor:
    """masks uint8 (N, H, W) of 0 and 1 -> float, on the CPU."""
    return torch.from_numpy(np.array(masks)).float()
