"""A Gaussian blur of what comes in."""

from typing import Annotated, ClassVar

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: the standard deviation, as a fraction of the image's short side. Needs nothing.

    Beyond the image its edge is repeated. The kernel ends at four standard deviations.
    """

    unit: ClassVar[str] = "fraction of the short side"
    scale: ClassVar[float] = 100.0
    text: ClassVar[str] = "sd {:g} % of the short side"
    citation: ClassVar[str] = "Hendrycks and Dietterich, Benchmarking neural network robustness, ICLR 2019, arXiv 1903.12261"
    strengths: Annotated[Strengths, between(0, 0.5, "fractions of the short side")] = (1 / 64, 1 / 32)

    @property
    def title(self) -> str:
        return "blur"

    @property
    def axis(self) -> str:
        return "standard deviation of the blur (% of the short side)"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        sd = strength * min(images.shape[-2:])
        blurred = torch.from_numpy(gaussian_filter(images.numpy(), sigma=(0, 0, sd, sd), mode="nearest"))
        return predictor(blurred.clamp(0, 1))  # a kernel's weights add up to 1 within rounding
