"""Weights of fewer bits: each convolution and linear weight is rounded to a few levels (no retraining)."""

import copy
from typing import Annotated, ClassVar

import torch

from stealthmark.attack import ModelAttack, Strengths, Theft
from stealthmark.attacks._bounds import whole
from stealthmark.attacks._layers import weights


class Attack(ModelAttack):
    """Strength: how many of 32 bits are taken away: 24 leave 8 bits. Needs no data.

    Symmetric, per tensor: b bits are the levels from -(2^(b - 1) - 1) to 2^(b - 1) - 1, times one step a tensor, by which its
    largest absolute value is kept.
    """

    unit: ClassVar[str] = "bits of 32 removed"
    text: ClassVar[str] = "{:g} of 32 bits removed"
    citation: ClassVar[str] = "Krishnamoorthi, Quantizing deep convolutional networks, 2018, arXiv 1806.08342"
    strengths: Annotated[Strengths, whole(16, 30, "how many of 32 bits are removed")] = (24.0, 26.0, 27.0)

    @property
    def title(self) -> str:
        return "quantised weights"

    @property
    def axis(self) -> str:
        return "bits removed from weights (of 32)"

    @torch.no_grad()
    def run(self, theft: Theft) -> None:
        for strength in self.strengths:
            rounded = copy.deepcopy(theft.model)
            for weight in weights(rounded):
                step = weight.abs().max() / (2 ** (31 - int(strength)) - 1)
                if step > 0:
                    weight.copy_((weight / step).round() * step)
            theft.keep(strength, rounded, ())
