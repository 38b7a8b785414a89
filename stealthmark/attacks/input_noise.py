"""Gaussian noise on what comes in."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: the standard deviation of the noise on each value, which is then set into [0, 1]. Needs nothing."""

    unit: ClassVar[str] = "standard deviation"
    text: ClassVar[str] = "sd {:g}"
    citation: ClassVar[str] = "Hendrycks and Dietterich, Benchmarking neural network robustness, ICLR 2019, arXiv 1903.12261"
    strengths: Annotated[Strengths, between(0, 1, "standard deviations of values in [0, 1]")] = (0.02, 0.05, 0.1)

    @property
    def title(self) -> str:
        return "noise on images"

    @property
    def axis(self) -> str:
        return "standard deviation of the noise on images"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        return predictor((images + strength * torch.randn(images.shape, generator=rng)).clamp(0, 1))
