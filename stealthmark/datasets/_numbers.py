"""Numbers as files hold them: in blocks, and whole again where scaling made them almost whole."""

from collections.abc import Iterable, Iterator

import numpy as np

#: How many values are computed with at once, where each takes several times its memory.
BLOCK = 1 << 20
#: What a picture or a volume may take in memory at most, in bytes: it is held there about twice.
MAX_BYTES = 800_000_000
#: Whole numbers that were stored as scaled ones come back this close to themselves.
WHOLE = 0.001
#: More different values than this are not counted.
MAX_VALUES = 256
#: How many values an error lists.
LISTED = 8


def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """The values in blocks, in order: what is computed of all at once may take several times their memory."""
    flat = values.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))


def whole(values: np.ndarray) -> np.ndarray:
    """Values within `WHOLE` of a whole number are that number; others stay what they are."""
    if values.dtype.kind != "f":
        return values
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) <= WHOLE, nearest, values)


def distinct(parts: Iterable[np.ndarray]) -> set[float]:
    """All the values of some arrays, or some more than `MAX_VALUES` of them."""
    values: set[float] = set()
    for part in parts:
        for block in blocks(part):
            values |= set(np.unique(block).tolist())
            if len(values) > MAX_VALUES:
                return values
    return values


def listed(values: set[float]) -> str:
    """The smallest of some values, and how many more there are."""
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return f"{', '.join(f'{value:g}' for value in sorted(values)[:LISTED])}{more}"
