"""Averaging over mirrored images, as nnU-Net's prediction does by itself (Isensee et al., Nature Methods 2021)."""

from typing import ClassVar

import torch
from pydantic import field_validator
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.suspects.querier import Predictor

#: The axes that each copy of an image is mirrored along: none, width, height, both.
MIRRORS = ((), (-1,), (-2,), (-2, -1))


class Attack(WrapperAttack):
    """Strength: how many mirrored copies are averaged, 2 (left and right) or 4. Needs nothing."""

    unit: ClassVar[str] = "copies"
    text: ClassVar[str] = "{:g} copies"
    citation: ClassVar[str] = "Isensee et al., nnU-Net, Nature Methods 2021"
    strengths: Strengths = (2.0, 4.0)

    @field_validator("strengths")
    @classmethod
    def _copies(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not set(values) <= {2.0, 4.0}:
            raise ValueError("strengths are numbers of copies: 2 or 4")
        return values

    @property
    def title(self) -> str:
        return "mirrored averaging"

    @property
    def axis(self) -> str:
        return "mirrored copies averaged"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        answers = [predictor(images.flip(axes)).flip(axes) for axes in MIRRORS[: int(strength)]]
        return torch.stack(answers).mean(0)
