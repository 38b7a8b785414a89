"""JPEG compression of what comes in: whoever serves the stolen model stores its queries as JPEG first."""

import io
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import field_validator
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: how much quality is lost, 100 minus JPEG's quality. Needs nothing."""

    unit: ClassVar[str] = "100 - quality"
    text: ClassVar[str] = "{:g} of 100 lost"
    citation: ClassVar[str] = "Das et al., Keeping the bad guys out with JPEG compression, 2017, arXiv 1705.02900"
    strengths: Strengths = (5.0, 35.0, 55.0)

    @field_validator("strengths")
    @classmethod
    def _qualities(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(1 <= value <= 99 and value.is_integer() for value in values):
            raise ValueError("strengths are 100 minus a JPEG quality: whole numbers from 1 to 99")
        return values

    @property
    def title(self) -> str:
        return "JPEG"

    @property
    def axis(self) -> str:
        return "JPEG quality lost (of 100)"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        return predictor(torch.stack([_stored(image, 100 - int(strength)) for image in images]))


def _stored(image: Tensor, quality: int) -> Tensor:
    """An image float (C, H, W) in [0, 1], one or three channels, written as JPEG and read back."""
    values = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).view(values.shape).permute(2, 0, 1).float() / 255
