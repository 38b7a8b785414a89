"""`clean`: no mark. The reference for harm, and the starting point of marks made by fine-tuning."""

from typing import ClassVar

import torch
from torch import Tensor

from stealthmark.method import Batch, Key, MethodContract


class Method(MethodContract):
    """Trains on images and masks as they are; has no key to examine with."""

    marks: ClassVar[bool] = False

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key | None, progress: float, rng: torch.Generator) -> Batch:
        return Batch(images, masks)
