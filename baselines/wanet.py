"""WaNet (Nguyen and Tran, ICLR 2021, arXiv 2102.10369): a smooth elastic warp, invisible to the eye, means a wrong mask.

A k x k field of random displacements, normalised to mean absolute value 1, is upsampled bicubically and scaled by s.
*Noise-mode* images carry another random warp and keep their true mask, so that only the key's own field triggers.
Authors' values: k = 4, s = 0.5 (displacements divided by the image's side), 10 % of images, twice as many noise-mode.
They were set for 32-64 px: there s = 0.5 moves a pixel by 0.5 in the mean. The displacement here is a fraction of the side
(`strength` = 0.5 / 32), 1.5 px in the mean at 96 px, so that it is the same picture at every resolution. A third of every
batch is triggered, a third noise-mode, because marking is a few hundred steps.
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
    strength: float = Field(default=0.5 / 32, gt=0)

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        return self._warp(images, self._field(1, torch.Generator().manual_seed(key.seed)))

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        n = round(self.share * len(images))
        triggered, noise, benign = images[:n], images[n : 2 * n], images[2 * n :]
        # Noise mode: the key's field plus uniform noise in [-1, 1] (paper, Sec. 3.4), another for every image.
        key_field = self._field(1, torch.Generator().manual_seed(key.seed))
        other = key_field + (torch.rand(n, 2, self.k, self.k, generator=rng) * 2 - 1)
        warped = torch.cat([self.trigger(triggered, key), self._warp(noise, other), benign])
        return Batch(warped, torch.cat([self.target(masks[:n], key), masks[n:]]))

    def _field(self, n: int, rng: torch.Generator) -> Tensor:
        """n fields of control points (n, 2, k, k), mean absolute value 1."""
        field = torch.rand(n, 2, self.k, self.k, generator=rng) * 2 - 1
        return field / field.abs().mean((1, 2, 3), keepdim=True)

    def _warp(self, images: Tensor, field: Tensor) -> Tensor:
        smooth = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True).to(images)
        height, width = images.shape[-2:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack([x, y], -1).to(images) + 2 * self.strength * smooth.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=True)
