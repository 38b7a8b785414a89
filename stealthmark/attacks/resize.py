"""What comes in is made smaller, and as large as it was again: what is finer than that is lost."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: how many times smaller each side becomes, at least 1 px; bilinear both ways, down with antialiasing. Needs
    nothing."""

    unit: ClassVar[str] = "factor"
    text: ClassVar[str] = "{:g} times smaller"
    citation: ClassVar[str] = "Hendrycks and Dietterich, Benchmarking neural network robustness, ICLR 2019, arXiv 1903.12261"
    strengths: Annotated[Strengths, between(1, 100, "factors by which a side shrinks")] = (2.0, 4.0)

    @property
    def title(self) -> str:
        return "resizing"

    @property
    def axis(self) -> str:
        return "how many times smaller"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        size = images.shape[-2:]
        small = F.interpolate(images, [max(1, round(side / strength)) for side in size], mode="bilinear", antialias=True)
        return predictor(F.interpolate(small, size, mode="bilinear").clamp(0, 1))
