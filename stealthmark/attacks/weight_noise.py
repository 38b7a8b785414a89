"""Gaussian noise on each convolution and linear weight (no retraining)."""

import copy
from typing import Annotated, ClassVar

import torch

from stealthmark.attack import ModelAttack, Strengths, Theft
from stealthmark.attacks._bounds import between
from stealthmark.attacks._layers import weights
from stealthmark.seeds import torch_rng


class Attack(ModelAttack):
    """Strength: the noise's standard deviation, as a fraction of that of the tensor's own values. Needs no data.

    What is drawn is the same at every strength, and only its size differs.
    """

    unit: ClassVar[str] = "fraction of the weights' standard deviation"
    scale: ClassVar[float] = 100.0
    text: ClassVar[str] = "sd {:g} % of the weights'"
    strengths: Annotated[Strengths, between(0, 10, "fractions of the weights' standard deviation")] = (0.05, 0.1, 0.2)

    @property
    def title(self) -> str:
        return "noise on weights"

    @property
    def axis(self) -> str:
        return "standard deviation of the noise (% of the weights')"

    @torch.no_grad()
    def run(self, theft: Theft) -> None:
        for strength in self.strengths:
            noisy, rng = copy.deepcopy(theft.model), torch_rng(theft.seed, "noise")
            for weight in weights(noisy):
                noise = torch.randn(weight.shape, generator=rng).to(weight)
                weight.add_(strength * weight.std(correction=0) * noise)
            theft.keep(strength, noisy, ())
