"""UNETR in 2-D (Hatamizadeh et al. 2022, arXiv 2103.10504), of MONAI: what StealthMark's released code calls TransUNet."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from stealthmark.architecture import ArchitectureContract, Normalised


class Architecture(ArchitectureContract):
    """Twelve transformer layers on patches of 16 px, whose 3rd, 6th and 9th outputs a convolutional decoder reads (Sec. 3.1).

    `hidden_size`: width of the transformer, 64 to a head; `feature_size`: width of the decoder at full resolution. The
    paper's are 768 and 16 (88 million parameters); the default is half as wide, for the CPU.
    """

    multiple: ClassVar[int] = 16

    hidden_size: int = Field(default=384, ge=64, multiple_of=64)
    feature_size: int = Field(default=16, ge=4)

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        from monai.networks.nets import UNETR  # takes seconds, which checking a suite need not spend

        network = UNETR(
            in_channels=channels,
            out_channels=1,
            img_size=size,
            feature_size=self.feature_size,
            hidden_size=self.hidden_size,
            mlp_dim=4 * self.hidden_size,
            num_heads=self.hidden_size // 64,
            spatial_dims=2,
        )
        for block in network.vit.blocks:
            block.norm_cross_attn = nn.Identity()  # of attention to a text, which there is none of
        return Normalised(network, mean=0.45, std=0.226, size=size)
