"""One root seed in the suite; every stage derives its own from named components. And what is drawn from an owner's secret."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

#: Bits of an owner's secret.
SECRET_BITS = 256


def derive(root: int, *components: str | int | float) -> int:
    """A 63-bit seed that depends on the root seed and on the named components, and on nothing else.

    Adding a dataset, method or attack to a suite therefore never changes another's numbers.
    """
    text = "\x1f".join([str(root), *map(str, components)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def secret(root: int, *components: str | int | float) -> int:
    """A secret of 256 bits that depends on all bits of `root`, at most as many, and on the named components: HMAC-SHA256."""
    text = "\x1f".join(map(str, components))
    return int.from_bytes(hmac.digest(root.to_bytes(SECRET_BITS // 8, "big"), text.encode(), "sha256"), "big")


def secret_rng(root: int, *components: str | int | float) -> np.random.Generator:
    """A generator for what nobody may guess: PCG64, whose state is drawn from all bits of `secret`.

    Torch's CPU generator ignores the upper half of its seed, so that what it draws can be searched in 2^32 tries.
    """
    sequence = np.random.SeedSequence(secret(root, *components), pool_size=SECRET_BITS // 32)
    return np.random.Generator(np.random.PCG64(sequence))


def secret_uniform(shape: tuple[int, ...], root: int, *components: str | int | float) -> torch.Tensor:
    """Float32 of this shape, drawn evenly from [0, 1) by `secret_rng`."""
    import torch

    return torch.from_numpy(secret_rng(root, *components).random(shape, dtype=np.float32))


def torch_rng(root: int, *components: str | int | float) -> torch.Generator:
    """A CPU generator of torch's seeded by `derive`; draws are the same whatever device the model is on."""
    import torch  # what derives seeds, or draws from numpy, need not load it

    return torch.Generator().manual_seed(derive(root, *components))


def numpy_rng(root: int, *components: str | int | float) -> np.random.Generator:
    """A numpy generator seeded by `derive`."""
    return np.random.default_rng(derive(root, *components))
