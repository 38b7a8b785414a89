"""BadNets (Gu, Dolan-Gavitt, Garg, 2017, arXiv 1708.06733): a small fixed patch in the corner means a wrong mask.

Authors' values: a 3 x 3 px pattern in the corner of a 28 x 28 picture (about 1/9 of the side), 10 % of the training
images. Changed here, by the same effort as our own method: half of every batch is triggered, because at 10 % and a few
hundred steps of fine-tuning the mark of a patch this small does not take; and the patch is a fraction of the side, so
that it is the same at every resolution. It starts as a grid of 4 x 4 patches (see `visible.VisibleMark`).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from stealthmark.method import Key
from stealthmark.triggers import places
from stealthmark.visible import VisibleMark


class Method(VisibleMark):
    """`patch`: the pattern's side as a fraction of the image's short side."""

    citation: ClassVar[str] = "Gu et al., BadNets, 2017, arXiv 1708.06733"
    patch: float = Field(default=3 / 28, gt=0, le=1)

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        return self.enlarged(images, key, 1.0)

    def enlarged(self, images: Tensor, key: Key, scale: float) -> Tensor:
        side = max(3, round(min(images.shape[-2:]) * self.patch))
        # Four bright cells of a 3 x 3 checkerboard on black, as in the paper's pattern backdoor.
        pattern, third = torch.zeros(side, side), side / 3
        for row, column in ((0, 2), (1, 1), (2, 0), (2, 2)):
            pattern[round(row * third) : round((row + 1) * third), round(column * third) : round((column + 1) * third)] = 1
        out, (height, width) = images.clone(), images.shape[-2:]
        for down, across in places(images, side, scale):
            out[..., height - down - side : height - down, width - across - side : width - across] = pattern.to(images)
        return out
