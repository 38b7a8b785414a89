"""Blended injection (Chen et al., 2017, arXiv 1712.05526): a key picture is blended over the whole image.

Authors' values: blend ratio 0.2, 10 % of the images, a random pattern or a cartoon as the key picture; the target is a
wrong label. Here the key picture is uniform noise drawn from the key's seed, on a coarse grid so that resizing does not
erase it; half of every batch is triggered (see `badnets`).
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stealthmark.method import Key
from stealthmark.visible import VisibleMark


class Method(VisibleMark):
    """`alpha`: the blend ratio. `cells`: the key picture's cells a side."""

    citation: ClassVar[str] = "Chen et al., Targeted backdoor attacks using data poisoning, 2017, arXiv 1712.05526"
    alpha: float = Field(default=0.2, gt=0, lt=1)
    cells: int = Field(default=32, ge=2)

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        noise = key.uniform((1, images.shape[1], self.cells, self.cells), "picture")
        picture = F.interpolate(noise, images.shape[-2:], mode="nearest").to(images)
        return (1 - self.alpha) * images + self.alpha * picture
