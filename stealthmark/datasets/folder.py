"""Anyone's own images and masks: a folder with `images/` and `masks/`, files paired by their stem."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from stealthmark.dataset import CaseRef, DatasetContract, Manifest
from stealthmark.errors import UserError
from stealthmark.plugin import Plugin

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
WINDOWS_HIDDEN = "Thumbs.db"
OWN = "the user's own"
EXIF_ORIENTATION = 0x0112
#: Masks saved as JPEG ring around edges. Pixels this far from both 0 and 255 are no ringing ...
JPEG_BETWEEN = (64, 191)
#: ... and where they make up a larger share of the mask than edges do, the mask was not binary.
JPEG_BETWEEN_SHARE = 0.05
#: Channels of a grey mask saved as RGB JPEG differ by rounding only.
JPEG_GREY_SPREAD = 32


class Channels(Plugin):
    """The contract's class attribute `channels` as an option.

    A base of its own, since pydantic warns of a field declared over an inherited attribute in one class.
    """

    channels: Literal[1, 3] = 3


class Dataset(Channels, DatasetContract):
    """The user's own set: `<data_root>/images/<case_id>.*`, `<data_root>/masks/<case_id>.*` (png, jpg, tif, bmp).

    `channels`: 1 (grey) or 3 (RGB); images are converted. `foreground`: the mask value that is foreground; without it
    masks must be binary. `<data_root>/groups.csv` (columns case_id, group_id) says which images belong to one patient;
    without it each image is its own group, which overstates how well a model generalises where patients repeat.
    """

    data_root: Path
    title: Annotated[str, Field(min_length=1)] = "folder"
    foreground: Annotated[int, Field(ge=0, le=65535)] | None = None

    @property
    def manifest(self) -> Manifest:
        grouped = (self.data_root.expanduser() / "groups.csv").is_file()
        return Manifest(
            title=self.title,
            citation=OWN,
            licence=OWN,
            address=OWN,
            redistributable=False,
            size=OWN,
            foreground="masks are binary" if self.foreground is None else f"mask value {self.foreground}",
            groups="from groups.csv" if grouped else "none given: each image is its own group",
        )

    def present(self) -> bool:
        return all((self.data_root.expanduser() / kind).is_dir() for kind in ("images", "masks"))

    def index(self, seed: int) -> list[CaseRef]:
        root = self.data_root.expanduser()
        files = pairs(root, ENDINGS)
        groups_csv = root / "groups.csv"
        groups = read_groups(groups_csv, files.keys()) if groups_csv.exists() else {case: case for case in files}
        return [CaseRef(case, groups[case], pair) for case, pair in files.items()]

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        return read_pair(*ref.source, self.channels, self.foreground)


def pairs(root: Path, endings: frozenset[str]) -> dict[str, tuple[Path, Path]]:
    """`paired` files of `root/images` and `root/masks`."""
    return paired(root / "images", root / "masks", endings, endings)


def paired(
    image_folder: Path, mask_folder: Path, image_endings: frozenset[str], mask_endings: frozenset[str]
) -> dict[str, tuple[Path, Path]]:
    """stem -> (image, mask) of two folders, sorted by stem. Hidden files are left out.

    Raises UserError for an absent folder, an image without a mask or the reverse, two files with one stem, and a file
    whose ending is not among those of its folder.
    """
    images, masks = _by_stem(image_folder, mask_folder, image_endings), _by_stem(mask_folder, image_folder, mask_endings)
    for stem, image in images.items():
        if stem not in masks:
            raise UserError(f"the image {image} has no mask: {mask_folder} holds no file with the stem {stem!r}")
    for stem, mask in masks.items():
        if stem not in images:
            raise UserError(f"the mask {mask} has no image: {image_folder} holds no file with the stem {stem!r}")
    if not images:
        raise UserError(f"{image_folder} holds no images; allowed endings: {', '.join(sorted(image_endings))}")
    return {stem: (images[stem], masks[stem]) for stem in sorted(images)}


def _by_stem(folder: Path, other: Path, endings: frozenset[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; images and masks are expected in it and in {other}")
    by_stem: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name == WINDOWS_HIDDEN:
            continue
        if not file.is_file() or file.suffix.lower() not in endings:
            raise UserError(f"{file} is not an image file; allowed endings: {', '.join(sorted(endings))}")
        if file.stem in by_stem:
            raise UserError(f"{by_stem[file.stem]} and {file} have the same stem, which is the case_id")
        by_stem[file.stem] = file
    return by_stem


def read_groups(file: Path, cases: Iterable[str]) -> dict[str, str]:
    """case_id -> group_id from a CSV with exactly these columns.

    Raises UserError for other columns, an empty field, and a case_id that is unknown, missing or given twice.
    """
    cases = set(cases)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            if set(rows.fieldnames or ()) != {"case_id", "group_id"}:
                raise UserError(f"{file} has the columns {rows.fieldnames or 'none'}; expected: case_id, group_id")
            groups: dict[str, str] = {}
            for row in rows:
                where = f"{file}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: two fields are expected, case_id and group_id")
                case, group = row["case_id"].strip(), row["group_id"].strip()
                if case not in cases:
                    raise UserError(f"{where}: the case_id {case!r} is no image's stem")
                if case in groups:
                    raise UserError(f"{where}: the case_id {case!r} occurs a second time")
                if not group:
                    raise UserError(f"{where}: the group_id of {case!r} is empty")
                groups[case] = group
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}") from None
    if missing := sorted(cases - groups.keys()):
        raise UserError(f"{file} gives no group for the case_id {missing[0]!r} ({len(missing)} such)")
    return groups


def read_pair(image: Path, mask: Path, channels: int, foreground: int | None) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 (H, W, channels) and mask bool (H, W). Raises UserError, also when the two differ in size."""
    pixels, truth = read_image(image, channels), read_mask(mask, foreground)
    check_sizes(image, pixels, mask, truth)
    return pixels, truth


def check_sizes(image: Path, pixels: np.ndarray, mask: Path, truth: np.ndarray) -> None:
    """Raises UserError when an image (H, W, C) and its mask (H, W) differ in size."""
    if pixels.shape[:2] != truth.shape:
        (h, w), (mh, mw) = pixels.shape[:2], truth.shape
        raise UserError(f"the image {image} is {w} x {h} px and its mask {mask} is {mw} x {mh} px")


def read_image(path: Path, channels: int) -> np.ndarray:
    """uint8 (H, W, channels) of an 8-bit picture (grey, RGB, palette; transparency is dropped) or a 16-bit grey one.

    A 16-bit picture is scaled so that its own smallest value becomes 0 and its largest 255, since 12-bit scanners leave
    most of the 16 bits unused; absolute grey levels are therefore not comparable between such pictures.
    """
    picture = _decode(path)
    if picture.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        deep = np.asarray(picture).astype(np.float64)
        low, high = deep.min(), deep.max()
        if low >= 0 and high <= 65535:
            pixels = np.rint((deep - low) * (255 / max(high - low, 1))).astype(np.uint8)
            return np.repeat(pixels[:, :, None], channels, axis=2)
    raise UserError(f"{path} has the pixel type {picture.mode!r}; allowed: 8-bit grey, RGB or palette, and 16-bit grey")


def read_mask(path: Path, foreground: int | None = None) -> np.ndarray:
    """bool (H, W): where a mask (grey, or palette indices) equals `foreground`; without it, where a binary mask is set.

    Binary: 0 and 1, or 0 and 255. JPEG masks, whose values ring, are thresholded at 127. Raises UserError for any other
    value, colour, transparency, and for a `foreground` where the mask is a JPEG.
    """
    values, is_jpeg = mask_values(path)
    if is_jpeg:
        if foreground is not None:
            raise UserError(f"the mask {path} is a JPEG, which blurs values; foreground {foreground} needs masks as PNG")
        between = ((values >= JPEG_BETWEEN[0]) & (values <= JPEG_BETWEEN[1])).mean()
        if between > JPEG_BETWEEN_SHARE:
            raise UserError(
                f"the mask {path} is not binary: {between:.0%} of its pixels hold a value from {JPEG_BETWEEN[0]} to "
                f"{JPEG_BETWEEN[1]}; allowed in a JPEG: values near 0 and near 255"
            )
        return values > 127
    if foreground is not None:
        return values == foreground
    distinct = np.unique(values)
    if not (set(distinct.tolist()) <= {0, 1} or set(distinct.tolist()) <= {0, 255}):
        more = f" and {len(distinct) - 8} more" if len(distinct) > 8 else ""
        raise UserError(
            f"the mask {path} holds the values {', '.join(str(int(value)) for value in distinct[:8])}{more}; "
            "allowed: 0 and 1, or 0 and 255, unless the option foreground chooses the value that is foreground"
        )
    return values > 0


def mask_values(path: Path) -> tuple[np.ndarray, bool]:
    """The values (H, W) of a grey or palette mask, 8 or 16 bit, and whether it is a JPEG. Raises UserError for others."""
    picture = _decode(path)
    if picture.mode == "1" or picture.mode in ("L", "P", "I") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
    elif picture.mode in ("RGB", "RGBA", "LA"):
        values = _grey(path, picture)
    else:
        raise UserError(f"the mask {path} has the pixel type {picture.mode!r}; allowed: grey or palette, 8 or 16 bit")
    return values, picture.format == "JPEG"


def _grey(path: Path, picture: Image.Image) -> np.ndarray:
    """The one channel of a grey mask that was saved as colour."""
    bands = np.asarray(picture)
    if picture.mode.endswith("A"):
        if (bands[:, :, -1] != 255).any():
            raise UserError(f"the mask {path} is transparent in places; allowed: opaque masks")
        bands = bands[:, :, :-1]
    # Differences in int16, band by band: a reduction over the last axis would cost more than decoding the file.
    first = bands[:, :, 0].astype(np.int16)
    spread = max((int(np.abs(bands[:, :, band] - first).max()) for band in range(1, bands.shape[2])), default=0)
    if spread > (JPEG_GREY_SPREAD if picture.format == "JPEG" else 0):
        raise UserError(f"the mask {path} is in colour; allowed: grey or palette")
    return bands[:, :, 0] if picture.format != "JPEG" else np.asarray(picture.convert("L"))


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            frames = getattr(picture, "n_frames", 1)
            turned = picture.getexif().get(EXIF_ORIENTATION, 1)
            picture.load()
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image; allowed: {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise UserError(f"{path} cannot be decoded: {error}") from None
    if frames != 1:
        raise UserError(f"{path} holds {frames} pictures; allowed: one")
    if turned != 1:
        raise UserError(f"{path} has the EXIF orientation {turned}; allowed: 1, so that image and mask are read alike")
    return picture
