"""The predictor: a suspect as the black box that an owner can query, at a given access level."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stealthmark.errors import UserError
from stealthmark.method import Predictor

#: What an interface shows of the probabilities, float (B, H, W) in [0, 1]. Of logits, the owner takes the sigmoid.
ACCESS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda p: p,
    "probabilities": lambda p: p,
    "rounded-0.01": lambda p: (p * 100).round() / 100,
    "rounded-0.1": lambda p: (p * 10).round() / 10,
    "8-bit": lambda p: (p * 255).round() / 255,
    "clipped-0.1": lambda p: torch.where(p < 0.1, 0.0, torch.where(p > 0.9, 1.0, p)),
    "label": lambda p: (p > 0.5).float(),
}


def from_model(model: nn.Module, device: torch.device, batch: int = 64) -> Predictor:
    """A torch network as a predictor: images float (B, C, H, W) in [0, 1] -> probabilities float (B, H, W), on the CPU.

    An answer is kept by the digest of its query, so asking again (at another access level, say) costs nothing.
    Raises UserError when an answer is not finite: no evidence can rest on it.
    """
    known: dict[bytes, Tensor] = {}

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        digest = hashlib.sha256(images.contiguous().numpy().tobytes()).digest()
        if digest not in known:
            answers = [
                model(part.to(device).contiguous(memory_format=torch.channels_last))[:, 0].sigmoid().cpu()
                for part in images.split(batch)
            ]
            known[digest] = torch.cat(answers)
            if not known[digest].isfinite().all():
                raise UserError("the suspect answers with values that are not finite; no verdict can rest on them")
        return known[digest]

    return predict


def at_access(predictor: Predictor, level: str) -> Predictor:
    """The same suspect behind an interface that shows less. `level` is one of `ACCESS`; UserError for any other."""
    if level not in ACCESS:
        raise UserError(f"unknown access level {level!r}; allowed: {', '.join(ACCESS)}")
    return lambda images: ACCESS[level](predictor(images))
