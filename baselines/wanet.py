"""WaNet (Nguyen and Tran, ICLR 2021, arXiv 2102.10369): a smooth elastic warp, invisible to the eye, means a wrong mask.

A k x k field of random displacements, normalised to mean absolute value 1, is upsampled bicubically and scaled by s.
*Noise-mode* images carry another random warp and keep their true mask, so that only the key's own field triggers.
Authors' values: k = 4, s = 0.5, 10 % of images, twice as many noise-mode. At their 32 px, s = 0.5 displaces a pixel by 0.25
px in the mean, 0.8 % of the side. Changed here: 4.5 % of the side (3 px at 64 px, 4 px at 96 px), because weaker warps are
not told from the noise-mode ones in the few hundred steps of a fine-tuning; a third of every batch is triggered and a third
noise-mode; the warp starts at four times its strength (see `visible.VisibleMark`), and noise mode sets in when it has come
down.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stealthmark.method import Batch, Key
from stealthmark.visible import VisibleMark


class Method(VisibleMark):
    """`k`: control points a side. `strength`: mean displacement as a fraction of the side. `share` is that of triggered
    images; as many are noise-mode."""

    citation: ClassVar[str] = "Nguyen and Tran, WaNet, ICLR 2021, arXiv 2102.10369"
    share: float = Field(default=1 / 3, gt=0, lt=0.5)
    k: int = Field(default=4, ge=2)
    strength: float = Field(default=1 / 22, gt=0)

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        return self.enlarged(images, key, 1.0)

    def enlarged(self, images: Tensor, key: Key, scale: float) -> Tensor:
        return self._warp(images, self._field(key.uniform((1, 2, self.k, self.k), "field")), scale)

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        n = round(self.share * len(images))
        scale = self.scale(progress)
        triggered = self.enlarged(images[:n], key, scale)
        # Another warp for every noise-mode image; only once the key's own is known, or neither is learned.
        other = (
            self._warp(images[n : 2 * n], self._field(torch.rand(n, 2, self.k, self.k, generator=rng)), scale)
            if scale == 1
            else images[n : 2 * n]
        )
        return Batch(torch.cat([triggered, other, images[2 * n :]]), torch.cat([self.target(masks[:n], key), masks[n:]]))

    def _field(self, uniform: Tensor) -> Tensor:
        """Fields of control points (n, 2, k, k), mean absolute value 1, from numbers of that shape drawn evenly from [0, 1]."""
        field = uniform * 2 - 1
        return field / field.abs().mean((1, 2, 3), keepdim=True)

    def _warp(self, images: Tensor, field: Tensor, scale: float) -> Tensor:
        smooth = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True).to(images)
        height, width = images.shape[-2:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack([x, y], -1).to(images) + 2 * self.strength * scale * smooth.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=True)
