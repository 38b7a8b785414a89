"""A floor under each answer, of a level drawn anew for every query: a raised background no longer tells anything."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: the highest level. Needs nothing.

    The level of each image is uniform between 0 and the strength, and every pixel below it is raised to it; the others stay.
    The strength is below 0.5, so that no pixel changes its label there.
    """

    unit: ClassVar[str] = "probability"
    text: ClassVar[str] = "up to {:g}"
    strengths: Annotated[Strengths, between(0, 0.5, "levels of the background")] = (0.08,)

    @property
    def title(self) -> str:
        return "random floor"

    @property
    def axis(self) -> str:
        return "highest random floor"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        levels = strength * torch.rand(len(images), 1, 1, generator=rng)
        return predictor(images).maximum(levels)
