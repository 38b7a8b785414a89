"""The border of what comes in is replaced by the mirrored inside: a trigger at the edge never reaches the model."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: the width of the strip, as a fraction of the image's short side, in whole pixels, at least 1. Needs nothing.

    The inside is mirrored at its own edge, which is repeated. The answer is shown as it comes, on the strip too.
    """

    unit: ClassVar[str] = "fraction of the short side"
    scale: ClassVar[float] = 100.0
    text: ClassVar[str] = "{:g} % of the short side"
    strengths: Annotated[Strengths, between(0, 0.5, "fractions of the short side")] = (9 / 64,)

    @property
    def title(self) -> str:
        return "border replaced"

    @property
    def axis(self) -> str:
        return "width of the strip replaced (% of the short side)"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        wide = max(1, round(strength * min(images.shape[-2:])))
        rows, columns = (_sources(side, wide) for side in images.shape[-2:])
        return predictor(images[..., rows, :][..., columns])


def _sources(side: int, wide: int) -> Tensor:
    """Which of `side` pixels is seen at each of them, int64 (side,); the strip leaves at least one."""
    wide = min(wide, (side - 1) // 2)
    inside = side - 2 * wide
    place = (torch.arange(side) - wide) % (2 * inside)  # mirrored as often as it takes
    return wide + place.minimum(2 * inside - 1 - place)
