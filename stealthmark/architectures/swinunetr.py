"""Swin UNETR in 2-D (Hatamizadeh et al. 2022, arXiv 2201.01266), of MONAI."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from stealthmark.architecture import ArchitectureContract, Normalised


class Architecture(ArchitectureContract):
    """A Swin transformer in windows of 7 x 7, each stage of which a convolutional decoder reads (Sec. 3).

    `feature_size`: width of the first stage, doubled in each of the next four. StealthMark's released code has 72 (57
    million parameters); the default is a third of it, for the CPU.
    """

    smallest: ClassVar[int] = 64  # its deepest features are at 1/32, and one pixel has no deviation to normalise by

    feature_size: int = Field(default=24, ge=12, multiple_of=12)

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        from monai.networks.nets import SwinUNETR  # takes seconds, which checking a suite need not spend

        network = SwinUNETR(in_channels=channels, out_channels=1, feature_size=self.feature_size, spatial_dims=2)
        return Normalised(network, mean=0.45, std=0.226)
