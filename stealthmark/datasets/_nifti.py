"""NIfTI volumes and their label volumes: what a header claims is checked before anything is decoded."""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, wraps
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from stealthmark.datasets._numbers import BLOCK, MAX_BYTES, whole
from stealthmark.errors import UserError

ENDINGS = (".nii.gz", ".nii")
TRUTH = "_gt.nii.gz"
#: What a volume may hold at most, besides `MAX_BYTES`: a CT of 512 x 512 px and a thousand slices. A file of some megabytes
#: may claim, and inflate to, far more.
MAX_VOXELS = 2**28
#: Where the voxels may begin at most: extensions of the header are text.
MAX_OFFSET = 2**24
#: What may follow the voxels at most, in bytes.
MAX_SURPLUS = 2**24
#: Percentiles of a larger volume are those of every second, third, ... voxel, so that there are no more than this.
SAMPLED_VOXELS = 2**24
#: Image and labels lie on each other if their corners are nearer than this many voxels.
APART = 0.5
SIZES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
MAGIC_GZIP = b"\x1f\x8b"
Files, Read, More = TypeVar("Files", Path, tuple[Path, ...]), TypeVar("Read"), ParamSpec("More")
DAMAGE = (HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Header:
    """What a volume's header says: a voxel's value is `slope` times the stored number plus `inter`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    affine: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Volume:
    """A decoded volume: the stored numbers, one after the other, and its header."""

    header: Header
    raw: np.ndarray

    def scaled(self, part: np.ndarray) -> np.ndarray:
        """The values of some of the stored numbers."""
        return apply_read_scaling(part, np.asarray(self.header.slope), np.asarray(self.header.inter))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The values, block by block: all of them at once may take several times the file's memory."""
        for start in range(0, len(self.raw), BLOCK):
            yield slice(start, start + BLOCK), self.scaled(self.raw[start : start + BLOCK])

    def shaped(self, values: np.ndarray) -> np.ndarray:
        """One value a voxel, in the stored order, as an array of the volume's shape."""
        return values.reshape(self.header.shape, order="F")


def remembered(
    count: int,
) -> Callable[[Callable[Concatenate[Files, More], Read]], Callable[Concatenate[Files, More], Read]]:
    """What a function read of its last `count` files, or tuples of files, is remembered while their sizes and times of change
    stay what they are."""

    def decorate(read: Callable[Concatenate[Files, More], Read]) -> Callable[Concatenate[Files, More], Read]:
        cached = lru_cache(maxsize=count)(lambda files, version, *more: read(files, *more))

        @wraps(read)
        def of_this_version(files: Files, *more: More.args) -> Read:
            try:
                states = [file.stat() for file in (files if isinstance(files, tuple) else (files,))]
            except OSError as error:
                raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
            return cached(files, tuple((state.st_size, state.st_mtime_ns) for state in states), *more)

        return of_this_version

    return decorate


def pairs(files: Iterable[Path]) -> dict[Path, Path]:
    """image -> label volume `<image>_gt.nii.gz`, sorted, of `files` that hold both kinds.

    Raises UserError for an image without its labels, labels without their image, and two that do not lie on each other.
    """
    volumes = set(files)
    truths = {file for file in volumes if file.name.endswith(TRUTH)}
    truth_of = {image: image.with_name(image.name.removesuffix(".nii.gz") + TRUTH) for image in sorted(volumes - truths)}
    for image, truth in truth_of.items():
        if truth not in truths:
            raise UserError(f"the image {image} has no mask: there is no {truth}")
        check_pair(image, truth)
    if without_image := sorted(truths - set(truth_of.values())):
        raise UserError(f"the mask {without_image[0]} has no image")
    return truth_of


def check_pair(image: Path, truth: Path) -> None:
    """Raises UserError when an image and its label volume differ in shape or in where their headers place them."""
    if shape(image) != shape(truth):
        raise UserError(f"the image {image} has the shape {shape(image)} and its mask {truth} has {shape(truth)}")
    if header(image).affine == header(truth).affine:
        return
    one, other = (np.array(header(file).affine) for file in (image, truth))
    sides = [side - 1 for side in (*shape(image), 1, 1)[:3]]
    corners = np.array([(x, y, z, 1) for x in (0, sides[0]) for y in (0, sides[1]) for z in (0, sides[2])])
    apart = np.abs((one - other) @ corners.T)[:3].max()
    if not apart < APART * np.linalg.norm(one[:3, :3], axis=0).min():
        raise UserError(
            f"the image {image} and its mask {truth} have different affines: their corners are {apart:g} mm apart, so that "
            "the mask may be mirrored or moved; allowed: volumes that lie on each other"
        )


def shape(path: Path) -> tuple[int, ...]:
    """The shape of a volume, from its header. Raises UserError where that cannot be read."""
    return header(path).shape


@remembered(4096)
def header(path: Path) -> Header:
    """A volume's header. Raises UserError where it cannot be read or claims more than `MAX_VOXELS` or `MAX_BYTES`."""
    try:
        with _stream(path) as stream:
            start = stream.read(max(SIZES))
        kind = SIZES.get(int.from_bytes(start[:4], "little")) or SIZES.get(int.from_bytes(start[:4], "big"))
        if kind is None or len(start) < kind.sizeof_hdr:
            raise ValueError(f"it begins with {start[:4]!r}, no header's length")
        stored = kind(start[: kind.sizeof_hdr])
        if not bytes(stored["magic"]).startswith(b"n+"):
            raise ValueError(f"its kind is {bytes(stored['magic'])!r}, and its voxels lie in another file")
        slope, inter = stored.get_slope_inter()
        read = Header(
            tuple(int(side) for side in stored.get_data_shape()),
            stored.get_data_dtype(),
            int(stored.get_data_offset()),
            1.0 if slope is None else slope,
            0.0 if inter is None else inter,
            tuple(tuple(row) for row in stored.get_best_affine().tolist()),
        )
    except DAMAGE as error:
        raise UserError(f"{path} is not a NIfTI file: {_reason(error)}") from None
    if (
        not read.shape
        or min(read.shape) < 1
        or not kind.sizeof_hdr <= read.offset <= MAX_OFFSET
        or read.dtype.kind not in "iuf"
    ):
        raise UserError(
            f"{path} has the shape {read.shape}, numbers of the type {read.dtype} and its voxels after {read.offset} bytes; "
            f"allowed: sides from 1, whole or real numbers, up to {MAX_OFFSET} bytes"
        )
    count = prod(read.shape)
    if count > MAX_VOXELS or count * read.dtype.itemsize > MAX_BYTES:
        raise UserError(
            f"{path} has the shape {read.shape}, {count / 1e6:.0f} million voxels of {read.dtype.itemsize} bytes; allowed: up "
            f"to {MAX_VOXELS / 1e6:.0f} million and {MAX_BYTES / 1e6:.0f} MB"
        )
    return read


def volume(path: Path) -> Volume:
    """A volume in its stored axis order. Raises UserError where it is damaged.

    Hardly more of the file is inflated than its header says that there is.
    """
    head = header(path)
    size = prod(head.shape) * head.dtype.itemsize
    content = np.empty(size, np.uint8)
    try:
        with _stream(path) as stream:
            stream.seek(head.offset)
            filled = 0
            while part := stream.read(min(BLOCK, size - filled)):
                content[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
                filled += len(part)
            if filled < size:
                raise EOFError(f"it holds {filled} of {size} bytes of voxels")
            if isinstance(stream, gzip.GzipFile):
                _to_the_end(stream)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be decoded: {_reason(error)}") from None
    return Volume(head, content.view(head.dtype))


def grey(path: Path, percentiles: tuple[float, float]) -> np.ndarray:
    """uint8, of the volume's shape, its two percentiles at 0 and 255. Raises UserError for a volume without contrast."""
    decoded = volume(path)
    sample = decoded.scaled(decoded.raw[:: -(-len(decoded.raw) // SAMPLED_VOXELS)]).astype(np.float32)
    low, high = np.percentile(sample, percentiles)
    if not high > low:
        raise UserError(f"{path} has no contrast: its percentiles {percentiles} are {low:g} and {high:g}")
    pixels = np.empty(len(decoded.raw), np.uint8)
    for block, values in decoded.blocks():
        stretched = (values.astype(np.float32) - low).clip(0, high - low) * (255 / (high - low))
        if np.isnan(stretched).any():
            raise UserError(f"{path} holds values that are no numbers (NaN)")
        pixels[block] = np.rint(stretched).astype(np.uint8)
    return decoded.shaped(pixels)


def bytes_of(path: Path) -> np.ndarray:
    """uint8, of the volume's shape, values that are grey levels already. Raises UserError where they leave 0 to 255."""
    decoded = volume(path)
    pixels, low, high = np.empty(len(decoded.raw), np.uint8), np.inf, -np.inf
    for block, values in decoded.blocks():
        low, high = np.minimum(low, values.min()), np.maximum(high, values.max())
        if not (low >= 0 and high <= 255):
            raise UserError(f"{path} holds values from {low:g} to {high:g}; allowed: 0 to 255")
        pixels[block] = np.rint(values).astype(np.uint8)
    return decoded.shaped(pixels)


def labels(path: Path, allowed: dict[int, str]) -> np.ndarray:
    """uint8 labels in their stored axis order. Raises UserError for a value that is not among `allowed`."""
    decoded = volume(path)
    numbers = np.empty(len(decoded.raw), np.uint8)
    for block, stored in decoded.blocks():
        values = whole(stored)
        if unexpected := sorted(set(np.unique(values).tolist()) - allowed.keys()):
            names = ", ".join(f"{value} ({name})" for value, name in allowed.items())
            raise UserError(f"the mask {path} holds the value {unexpected[0]:g}; allowed: {names}")
        numbers[block] = values.astype(np.uint8)
    return decoded.shaped(numbers)


def _to_the_end(stream: gzip.GzipFile) -> None:
    """Read what is left, which should be nothing: at the end gzip compares its checksum."""
    left = MAX_SURPLUS
    while part := stream.read(BLOCK):
        left -= len(part)
        if left < 0:
            raise ValueError("it holds more bytes than its header says")


def _stream(path: Path) -> BufferedReader | gzip.GzipFile:
    with path.open("rb") as stream:
        packed = stream.read(2) == MAGIC_GZIP
    return gzip.open(path) if packed else path.open("rb")


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
