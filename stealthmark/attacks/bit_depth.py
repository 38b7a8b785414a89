"""Fewer bits a value of what comes in (Xu et al., Feature squeezing, NDSS 2018)."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import whole
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: how many of 8 bits are taken away: 3 leave 5 bits, 32 shades from 0 to 1. Needs nothing."""

    unit: ClassVar[str] = "bits of 8 removed"
    text: ClassVar[str] = "{:g} of 8 bits removed"
    citation: ClassVar[str] = "Xu et al., Feature squeezing, NDSS 2018"
    strengths: Annotated[Strengths, whole(1, 7, "how many of 8 bits are removed")] = (3.0, 4.0, 5.0)

    @property
    def title(self) -> str:
        return "bit depth"

    @property
    def axis(self) -> str:
        return "bits removed from images (of 8)"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        steps = 2 ** (8 - int(strength)) - 1
        return predictor((images * steps).round() / steps)
