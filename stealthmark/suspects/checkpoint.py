"""A torch network as a suspect: in memory, or a checkpoint folder of this benchmark."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stealthmark import architecture
from stealthmark.errors import UserError
from stealthmark.layout import WEIGHTS
from stealthmark.plugin import make
from stealthmark.suspects.querier import Ask, Limits, Querier, Source, sha256_of


def from_model(model: nn.Module, device: torch.device, batch: int = 32) -> Querier:
    """A torch network as a predictor: images float (B, C, H, W) in [0, 1] -> probabilities float (B, H, W), on the CPU.

    `model` is on `device` and in eval mode. Raises UserError when an answer is not finite: no evidence can rest on it.
    """
    return Querier(Source(_asking(model, device), kind="network"), Limits(batch=batch))


def source(folder: Path, shape: tuple[int, int, int], device: torch.device) -> Source:
    """The network in a checkpoint folder (safetensors and card.json), for images of `shape` (C, H, W).

    Raises UserError when the folder is no checkpoint, or its network does not take such images.
    """
    model, card = architecture.load(folder, device)
    multiple = make("architecture", card["architecture"]).multiple
    channels, *sides = shape
    if card["channels"] != channels or any(side % multiple for side in sides):
        raise UserError(
            f"the model in {folder} does not take images of shape {shape}; "
            f"allowed: {card['channels']} channels, height and width multiples of {multiple} px"
        )
    return Source(_asking(model, device), str(folder), "checkpoint", sha256=sha256_of(folder / WEIGHTS))


def _asking(model: nn.Module, device: torch.device) -> Ask:
    @torch.inference_mode()
    def ask(images: Tensor) -> np.ndarray:
        on_device = images.to(device).contiguous(memory_format=torch.channels_last)
        return architecture.foreground(model, on_device).sigmoid().cpu().numpy()

    return ask
