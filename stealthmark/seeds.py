"""One root seed in the suite; every stage derives its own from named components."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(root: int, *components: str | int | float) -> int:
    """A 63-bit seed that depends on the root seed and on the named components, and on nothing else.

    Adding a dataset, method or attack to a suite therefore never changes another's numbers.
    """
    text = "\x1f".join([str(root), *map(str, components)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_rng(root: int, *components: str | int | float) -> torch.Generator:
    """A CPU generator of torch's seeded by `derive`; draws are the same whatever device the model is on."""
    import torch  # what derives seeds, or draws from numpy, need not load it

    return torch.Generator().manual_seed(derive(root, *components))


def numpy_rng(root: int, *components: str | int | float) -> np.random.Generator:
    """A numpy generator seeded by `derive`."""
    return np.random.default_rng(derive(root, *components))
