"""Entropy of the answers to superimposed images (the idea of STRIP, Gao et al., ACSAC 2019), without a trigger to test."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from stealthmark.architecture import foreground
from stealthmark.scanner import ScannerContract
from stealthmark.seeds import torch_rng


class Scanner(ScannerContract):
    """Half of one image and half of another is no image of the task, and a model is rarely sure of it. STRIP calls an *input*
    triggered whose superimpositions are answered with little entropy. Here the model is asked with ordinary images alone:
    the score is minus the mean entropy, in nats a pixel, so it says only whether a model is surer than others."""

    citation: ClassVar[str] = "Gao et al., STRIP, ACSAC 2019"
    title: ClassVar[str] = "entropy of answers"
    pairs: int = Field(default=64, ge=1)

    @torch.inference_mode()
    def score(self, model: nn.Module, images: Tensor, masks: Tensor, seed: int) -> float:
        device = next(model.parameters()).device
        one, other = torch.randint(len(images), (2, self.pairs), generator=torch_rng(seed, "pairs"))
        entropies = []
        for a, b in zip(one.split(32), other.split(32), strict=True):
            answers = foreground(model, ((images[a] + images[b]) / 2).to(device)).sigmoid().double()
            entropies.append(-(torch.xlogy(answers, answers) + torch.xlogy(1 - answers, 1 - answers)).mean((1, 2)))
        return -float(torch.cat(entropies).mean())
