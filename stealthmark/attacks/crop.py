"""The margin is cut off, and what is left is made as large as the image was (Guo et al., ICLR 2018)."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: what is cut off at each of the four sides, as a fraction of the height or the width, in whole pixels. Needs
    nothing.

    The answer is made as small as what was left, bilinear with antialiasing, and put in its place. Of the margin nobody was
    asked: there the answer is 0, background.
    """

    unit: ClassVar[str] = "fraction of a side"
    scale: ClassVar[float] = 100.0
    text: ClassVar[str] = "{:g} % at each side"
    citation: ClassVar[str] = "Guo et al., Countering adversarial images using input transformations, ICLR 2018"
    strengths: Annotated[Strengths, between(0, 0.5, "fractions of a side")] = (0.05, 0.1)

    @property
    def title(self) -> str:
        return "cropping"

    @property
    def axis(self) -> str:
        return "margin cut off (% at each side)"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        size = images.shape[-2:]
        # Something is left, however large the strength and small the image.
        down, across = (min(round(strength * side), (side - 1) // 2) for side in size)
        inside = (..., slice(down, size[0] - down), slice(across, size[1] - across))
        left = images[inside]
        answers = predictor(F.interpolate(left, size, mode="bilinear").clamp(0, 1))
        whole = torch.zeros_like(answers)
        small = F.interpolate(answers[:, None], left.shape[-2:], mode="bilinear", antialias=True)
        whole[inside] = small[:, 0].clamp(0, 1)
        return whole
