"""Masks as people save them: which pixels are foreground, by the values, the palette or a threshold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter

from stealthmark.datasets._numbers import BLOCK, distinct, listed, whole
from stealthmark.datasets._pictures import decode, read_image
from stealthmark.errors import UserError

#: Values that are white in a binary mask, of 1, 8 and 16 bit.
WHITE = (1, 255, 65535)
BINARY = "0 and 1, or 0 and 255, or 0 and 65535 in 16 bit"
BLURRED = "near 0 and near 255 where values are blurred, as in a JPEG"
# Which options read other masks, in a loader that has these options.
CHOICES = ", unless the option foreground says which values are foreground, or threshold above which"
ABOVE = ", unless the option threshold says above which value foreground begins"
#: Masks saved as JPEG ring around edges. Pixels this far from both 0 and 255 are no ringing ...
BETWEEN = (64, 191)
#: ... and where they make up a larger share of the mask than edges do, the mask was not binary.
BETWEEN_SHARE = 0.05
#: A grey edge, as smoothing leaves it, is nowhere further than this many px from black and from white ...
EDGE = 3
#: ... and of more grey levels than a mask of classes has.
FEW = 3
#: Channels of a grey mask saved as RGB JPEG differ by rounding only.
JPEG_GREY_SPREAD = 32

Foreground = tuple[int, ...] | Literal["nonzero"] | None


@dataclass(frozen=True)
class Rule:
    """How a mask's values become foreground.

    `foreground`: the values that are; `nonzero`: all but 0; None: masks are binary. `threshold`: instead, values above it.
    `blurred`: even lossless files may hold values between black and white, read as in a JPEG. `named`: whether the loader
    has the options `foreground` and `threshold`, which an error may then name.
    """

    foreground: Foreground = None
    threshold: float | None = None
    blurred: bool = False
    named: bool = False

    @property
    def chooses(self) -> bool:
        """Whether masks of any values are read."""
        return self.foreground is not None or self.threshold is not None

    @property
    def words(self) -> str:
        """The rule, for a manifest."""
        if self.threshold is not None:
            return f"mask values above {self.threshold:g}"
        if self.foreground is None:
            return "masks are binary"
        if self.foreground == "nonzero":
            return "every mask value but 0"
        return f"mask value{'s' * (len(self.foreground) > 1)} {', '.join(map(str, self.foreground))}"


#: What masks are without any option.
BINARY_MASKS = Rule()


def read_pair(image: Path, mask: Path, channels: int, rule: Rule = BINARY_MASKS) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 (H, W, channels) and mask bool (H, W). Raises UserError, also when the two differ in size."""
    pixels, truth = read_image(image, channels), read_mask(mask, rule)
    check_sizes(image, pixels, mask, truth)
    return pixels, truth


def check_sizes(image: Path, pixels: np.ndarray, mask: Path, truth: np.ndarray) -> None:
    """Raises UserError when an image (H, W, C) and its mask (H, W) differ in size."""
    if pixels.shape[:2] != truth.shape:
        (h, w), (mh, mw) = pixels.shape[:2], truth.shape
        raise UserError(f"the image {image} is {w} x {h} px and its mask {mask} is {mw} x {mh} px")


def read_mask(path: Path, rule: Rule = BINARY_MASKS) -> np.ndarray:
    """bool (H, W): where a mask (grey, or a palette's) is foreground by `rule`.

    A binary mask that rings as JPEG does, or whose edges fade, is foreground above half of white. Raises UserError for any
    other value, colour, transparency, and for a `foreground` where the mask is a JPEG.
    """
    values, is_jpeg = mask_values(path, colour=rule.foreground == "nonzero")
    if is_jpeg and rule.threshold is None:
        if rule.foreground is not None:
            chosen = rule.foreground if rule.foreground == "nonzero" else ", ".join(map(str, rule.foreground))
            raise UserError(f"the mask {path} is a JPEG, which blurs values; foreground {chosen} needs masks as PNG")
        return _above_half(path, values, rule)
    values = numbers(path, values, rule)
    if rule.chooses or is_binary(present := distinct([values])):
        return foreground(values, rule)
    if rule.blurred and values.dtype == np.uint8:
        return _above_half(path, values, rule)
    if white := _white_of_faded(values, present):
        return values > white // 2
    raise refusal(path, present, rule)


def numbers(path: Path, values: np.ndarray, rule: Rule) -> np.ndarray:
    """The values, close to whole numbers made whole. Raises UserError for what is no number, or not whole and no threshold."""
    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all():
        raise UserError(f"the mask {path} holds values that are no finite numbers")
    values = whole(values)
    if rule.threshold is None and len(odd := values[values != np.rint(values)]):
        raise refusal(path, {float(odd[0])}, rule)
    return values


def is_binary(present: set[float]) -> bool:
    return any(present <= {0, white} for white in WHITE)


def foreground(values: np.ndarray, rule: Rule) -> np.ndarray:
    if rule.threshold is not None:
        return values > rule.threshold
    return np.isin(values, rule.foreground) if isinstance(rule.foreground, tuple) else values != 0


def _above_half(path: Path, values: np.ndarray, rule: Rule) -> np.ndarray:
    """The foreground of a binary mask of 0 and 255 whose values are blurred. Raises UserError where it was not one."""
    between = ((values >= BETWEEN[0]) & (values <= BETWEEN[1])).mean()
    if between > BETWEEN_SHARE:
        raise UserError(
            f"the mask {path} is not binary: {between:.0%} of its pixels hold a value from {BETWEEN[0]} to {BETWEEN[1]}; "
            f"allowed: {BLURRED}{ABOVE if rule.named else ''}"
        )
    if values.max() <= WHITE[1] // 2 and (rule.blurred or values.min() < values.max()):
        raise refusal(path, distinct([values]), rule, BLURRED, ABOVE)
    return values > WHITE[1] // 2


def _white_of_faded(values: np.ndarray, present: set[float]) -> int:
    """What is white in a mask (H, W) that is black and white but for grey edges; 0 for any other."""
    white = next((white for white in sorted(WHITE[1:], reverse=True) if white in present), 0)
    if not white or 0 not in present or max(present) > white or min(present) < 0 or len(present) <= 2 + FEW:
        return 0
    grey = (values != 0) & (values != white)
    sides = ((values < white / 4).astype(np.uint8), (values > 3 * white / 4).astype(np.uint8))
    near_black, near_white = (maximum_filter(side, 2 * EDGE + 1) > 0 for side in sides)
    return 0 if (grey & ~(near_black & near_white)).any() else white


def refusal(path: Path, present: set[float], rule: Rule, allowed: str = BINARY, remedy: str = CHOICES) -> UserError:
    """The error for a mask whose values do not say what is foreground."""
    return UserError(f"the mask {path} holds the values {listed(present)}; allowed: {allowed}{remedy if rule.named else ''}")


def mask_values(path: Path, colour: bool = False) -> tuple[np.ndarray, bool]:
    """The values (H, W) of a mask, and whether it is a JPEG. Raises UserError for a mask in colour or transparent.

    A grey palette stands for its greys: where black and white have changed places in it, white is foreground still. One in
    colour is a list of classes, which their numbers name. `colour`: colours are allowed; a value is then its brightest channel.
    """
    picture = decode(path, exact=True)
    if isinstance(picture, np.ndarray):
        return _one_band(path, picture, colour), False
    is_jpeg = picture.format == "JPEG"
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8), is_jpeg
    if picture.mode == "L":
        return np.asarray(picture), is_jpeg
    if picture.mode == "P":
        return _by_palette(path, picture), is_jpeg
    if picture.mode not in ("RGB", "RGBA", "LA"):
        raise UserError(f"the mask {path} has the pixel type {picture.mode!r}; allowed: grey or palette")
    values = _one_band(path, np.asarray(picture), colour, JPEG_GREY_SPREAD if is_jpeg else 0)
    return (np.asarray(picture.convert("L")) if is_jpeg else values), is_jpeg


def _by_palette(path: Path, picture: Image.Image) -> np.ndarray:
    numbers, palette = np.asarray(picture), np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if (palette != palette[:, :1]).any():
        return numbers
    if numbers.max() >= len(palette):
        raise UserError(f"the mask {path} holds the colour {numbers.max()}, but its palette has {len(palette)}")
    return palette[:, 0][numbers]


def _one_band(path: Path, bands: np.ndarray, colour: bool, spread: int = 0) -> np.ndarray:
    """The one channel of a grey mask that was saved as colour: its channels differ by `spread` at most."""
    if bands.ndim == 2:
        return bands
    if bands.shape[2] in (2, 4):
        opaque = np.iinfo(bands.dtype).max if bands.dtype.kind in "iu" else bands[:, :, -1].max()
        if (bands[:, :, -1] != opaque).any():
            raise UserError(f"the mask {path} is transparent in places; allowed: opaque masks")
        bands = bands[:, :, :-1]
    if _difference(bands) <= spread:
        return np.ascontiguousarray(bands[:, :, 0])
    if not colour:
        raise UserError(f"the mask {path} is in colour; allowed: grey or palette")
    return bands.max(axis=2)


def _difference(bands: np.ndarray) -> float:
    """How far the channels of any pixel are apart."""
    wide, rows = np.int16 if bands.dtype == np.uint8 else np.float64, max(1, BLOCK // bands[0].size)
    largest = 0.0
    for start in range(0, len(bands), rows):
        # Band by band: a reduction over the last axis would cost more than decoding the file.
        first, *others = (bands[start : start + rows, :, band] for band in range(bands.shape[2]))
        largest = max(largest, *(float(np.abs(first.astype(wide) - other).max()) for other in others), 0.0)
    return largest
