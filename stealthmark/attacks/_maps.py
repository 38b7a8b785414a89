"""What holds for every change of an answer that leaves its label map alone."""

import torch
from torch import Tensor

HALF = torch.tensor(0.5)
#: The nearest float32 on both sides of one half, where the label map changes.
BELOW, ABOVE = HALF.nextafter(HALF - 1).item(), HALF.nextafter(HALF + 1).item()


def with_labels_of(p: Tensor, changed: Tensor) -> Tensor:
    """`changed`, with every pixel on the side of one half where it is in `p`; both float32 (B, H, W).

    A change that keeps the sides in exact arithmetic may round a probability next to one half to one half.
    """
    return torch.where(p > 0.5, changed.clamp(min=ABOVE), torch.where(p < 0.5, changed.clamp(max=BELOW), p))
