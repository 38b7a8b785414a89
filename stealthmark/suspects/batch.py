"""A suspect that says which images it takes: do they fit, and how many does it take at a time?"""

from collections.abc import Sequence

import numpy as np

from stealthmark.errors import UserError
from stealthmark.suspects import remedies
from stealthmark.suspects.interface import Interface
from stealthmark.suspects.querier import Limits


def fixed_batch(
    sides: Sequence[object], shape: tuple[int, int, int], limits: Limits, name: str, interface: Interface
) -> int | None:
    """The number of images that a suspect takes at a time, None where any number is right.

    `sides` are those of its input, as the suspect says them; one that is no number, or is negative, is free. Raises UserError
    where they do not fit images of `shape` (C, H, W) as the interface sends them, or the number is larger than `limits.batch`.
    """
    fixed = [side if isinstance(side, int) and side >= 0 else None for side in sides]
    sent = interface.takes(shape)
    if len(fixed) != 4 or any(side not in (None, wanted) for side, wanted in zip(fixed[1:], sent, strict=True)):
        end = remedies.for_input(fixed, shape)
        raise UserError(f"{name} takes images of shape {str([*sides])[:200]}; allowed: a batch of {sent}{end}")
    if fixed[0] is not None and not 1 <= fixed[0] <= limits.batch:
        raise UserError(f"{name} takes {fixed[0]} images at a time; allowed: any number, or one from 1 to {limits.batch}")
    return fixed[0]


def filled(images: np.ndarray, batch: int | None) -> np.ndarray:
    """The images, the last one repeated until there are `batch`."""
    return images if batch is None else np.concatenate([images, np.repeat(images[-1:], batch - len(images), axis=0)])


def unfilled(answer: np.ndarray, batch: int | None, count: int) -> np.ndarray:
    """The answers to the first `count` images of a batch that was `filled`."""
    return answer[:count] if answer.shape[:1] == (batch,) else answer
