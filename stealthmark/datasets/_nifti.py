"""NIfTI volumes and their label volumes: shapes from headers alone, voxels decoded once, labels checked."""

import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from stealthmark.errors import UserError

TRUTH = "_gt.nii.gz"
DAMAGE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError)


def pairs(files: Iterable[Path]) -> dict[Path, Path]:
    """image -> label volume `<image>_gt.nii.gz`, sorted, of `files` that hold both kinds.

    Raises UserError for an image without its labels, labels without their image, and two shapes that differ.
    """
    volumes = set(files)
    truths = {file for file in volumes if file.name.endswith(TRUTH)}
    truth_of = {image: image.with_name(image.name.removesuffix(".nii.gz") + TRUTH) for image in sorted(volumes - truths)}
    for image, truth in truth_of.items():
        if truth not in truths:
            raise UserError(f"the image {image} has no mask: there is no {truth}")
        if shape(image) != shape(truth):
            raise UserError(f"the image {image} has the shape {shape(image)} and its mask {truth} has {shape(truth)}")
    if without_image := sorted(truths - set(truth_of.values())):
        raise UserError(f"the mask {without_image[0]} has no image")
    return truth_of


@lru_cache(maxsize=4096)
def shape(path: Path) -> tuple[int, ...]:
    """The shape of a volume, from its header. Raises UserError where that cannot be read."""
    return tuple(int(side) for side in _open(path).shape)


def voxels(path: Path) -> np.ndarray:
    """A volume in its stored axis order, with the header's scaling applied. Raises UserError where it is damaged."""
    try:
        return np.asarray(_open(path).dataobj)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be decoded: {error or type(error).__name__}") from None


def labels(path: Path, allowed: dict[int, str]) -> np.ndarray:
    """uint8 labels in their stored axis order. Raises UserError for a value that is not among `allowed`."""
    values = voxels(path)
    unexpected = sorted(set(np.unique(values).tolist()) - allowed.keys())
    if unexpected:
        names = ", ".join(f"{value} ({name})" for value, name in allowed.items())
        raise UserError(f"the mask {path} holds the value {unexpected[0]:g}; allowed: {names}")
    return values.astype(np.uint8)


def _open(path: Path) -> nibabel.spatialimages.SpatialImage:
    try:
        return nibabel.load(path)
    except DAMAGE as error:
        raise UserError(f"{path} is not a NIfTI file: {str(error) or type(error).__name__}") from None
