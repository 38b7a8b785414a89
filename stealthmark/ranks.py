"""Statistics of order: they stay as they are when whoever serves the model turns its temperature, adds a bias or stretches its
maps, because all of these keep the order of a map's pixels."""

import numpy as np
import torch
from torch import Tensor


def dominance(higher: Tensor, of_higher: Tensor, lower: Tensor, of_lower: Tensor) -> Tensor:
    """How surely one group of pixels lies above another, image by image: float64 (B,) in [-1, 1].

    The share of pairs in which the pixel of the first group is the higher one, less the share in which it is the lower one: 1
    where all of the first lie above all of the second, 0 where they are mixed or equal, and 0 where a group is empty: nothing
    shows nothing. Known as Cliff's delta (Psychological Bulletin 1993) and as the rank-biserial correlation; it is 2 AUROC - 1.

    higher, lower: float (B, H, W); of_higher, of_lower: bool (B, H, W), which of their pixels are in the groups.
    """
    groups = (part.flatten(1).numpy() for part in (higher, of_higher, lower, of_lower))
    return torch.tensor([_dominance(a[of_a], b[of_b]) for a, of_a, b, of_b in zip(*groups, strict=True)], dtype=torch.float64)


def _dominance(higher: np.ndarray, lower: np.ndarray) -> float:
    """The same of two samples, any length. Both are sorted first: each is then gone through once."""
    pairs = len(higher) * len(lower)
    if not pairs:
        return 0.0
    ordered, asked = np.sort(lower), np.sort(higher)
    beaten = np.searchsorted(ordered, asked, "left").sum(dtype=np.int64)
    not_above = np.searchsorted(ordered, asked, "right").sum(dtype=np.int64)
    return float(beaten + not_above - pairs) / pairs
