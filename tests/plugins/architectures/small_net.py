"""Two convolutions: the smallest network that every attack has something to do with. For the tests."""

from typing import ClassVar

from torch import nn

from stealthmark.architecture import ArchitectureContract


class Architecture(ArchitectureContract):
    """`width`: channels between the two convolutions."""

    multiple: ClassVar[int] = 8
    smallest: ClassVar[int] = 16
    width: int = 8

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        first, last = nn.Conv2d(channels, self.width, 3, padding=1), nn.Conv2d(self.width, 1, 3, padding=1)
        return nn.Sequential(first, nn.BatchNorm2d(self.width), nn.ReLU(), last)
