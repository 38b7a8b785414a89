"""Any NIfTI volume and its labels, seen slice by slice."""

from math import prod
from pathlib import Path

import numpy as np

from stealthmark.datasets import _nifti
from stealthmark.datasets._masks import Rule, foreground, is_binary, numbers, refusal
from stealthmark.datasets._numbers import distinct
from stealthmark.errors import UserError

#: The volume's percentiles that become 0 and 255: a scanner's values rarely have a unit, and a few voxels are very bright.
PERCENTILES = (1, 99)


def is_volume(path: Path) -> bool:
    """Whether a file is a NIfTI volume, by its name."""
    return path.name.lower().endswith(_nifti.ENDINGS)


def count(path: Path, axis: int) -> int:
    """How many slices a volume has across `axis`. Raises UserError where it has not two or three axes."""
    shape = _spatial(path)
    return shape[axis] if len(shape) == 3 else 1


def image_slice(paths: tuple[Path, ...], axis: int, number: int) -> np.ndarray:
    """uint8 (H, W, volumes): a slice of each, the stored axes transposed, as radiologists see it."""
    return np.stack([_slice(pixels, paths[0], axis, number) for pixels in _grey(paths)], axis=2)


def mask_slice(paths: tuple[Path, ...], rule: Rule, axis: int, number: int) -> np.ndarray:
    """bool (H, W): where a slice of any of some label volumes is foreground, the same way up as the image's."""
    return _slice(_truth(paths, rule), paths[0], axis, number)


def values_of(path: Path) -> set[float]:
    """What a label volume holds, before any of it is chosen as foreground."""
    return distinct(values for _, values in _nifti.volume(path).blocks())


def _spatial(path: Path) -> tuple[int, ...]:
    """The shape of a volume, without further axes of one."""
    shape = _nifti.shape(path)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise UserError(f"{path} has the shape {_nifti.shape(path)}; allowed: two or three axes")
    return shape


def _slice(values: np.ndarray, path: Path, axis: int, number: int) -> np.ndarray:
    volume = values.reshape(_spatial(path), order="F")
    return (volume if volume.ndim == 2 else np.take(volume, number, axis)).T


# Slices are read in order, so that the last volumes decoded are the ones that the next slice needs.
@_nifti.remembered(1)
def _grey(paths: tuple[Path, ...]) -> list[np.ndarray]:
    return [_nifti.grey(path, PERCENTILES) for path in paths]


@_nifti.remembered(1)
def _truth(paths: tuple[Path, ...], rule: Rule) -> np.ndarray:
    """bool, of the volumes' shape: where any of them is foreground. Raises UserError as for any mask."""
    union = np.zeros(prod(_nifti.shape(paths[0])), bool)
    for path in paths:
        decoded = _nifti.volume(path)
        if not rule.chooses:
            present = distinct(numbers(path, values, rule) for _, values in decoded.blocks())
            if not is_binary(present):
                raise refusal(path, present, rule)
        for block, values in decoded.blocks():
            union[block] |= foreground(numbers(path, values, rule), rule)
    return union.reshape(_nifti.shape(paths[0]), order="F")
