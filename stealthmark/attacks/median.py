"""A median filter on what comes in (Xu et al., Feature squeezing, NDSS 2018)."""

from typing import Annotated, ClassVar

import torch
from scipy.ndimage import median_filter
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: the side of the square that the median is taken over, as a fraction of the image's short side. Needs nothing.

    The side is the odd number of pixels that is nearest to that, and at least 3: 1/32 is 3 px at 64 and at 96 px, 17 at 512.
    Beyond the image its edge is repeated.
    """

    unit: ClassVar[str] = "fraction of the short side"
    scale: ClassVar[float] = 100.0
    text: ClassVar[str] = "{:g} % of the short side"
    citation: ClassVar[str] = "Xu et al., Feature squeezing, NDSS 2018"
    strengths: Annotated[Strengths, between(0, 0.5, "fractions of the short side")] = (1 / 32,)

    @property
    def title(self) -> str:
        return "median filter"

    @property
    def axis(self) -> str:
        return "side of the median filter (% of the short side)"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        side = max(3, 2 * int(strength * min(images.shape[-2:]) / 2) + 1)
        return predictor(torch.from_numpy(median_filter(images.numpy(), size=(1, 1, side, side), mode="nearest")))
