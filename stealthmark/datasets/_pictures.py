"""Pictures as people save them, grey or in colour, of 8 bit or deeper: decoded within a bound, turned into bytes."""

import re
import warnings
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from stealthmark.datasets._numbers import BLOCK, MAX_BYTES
from stealthmark.errors import UserError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"})
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")
#: What a picture may hold at most, besides `MAX_BYTES`: four times a whole mammogram. A file of some kilobytes may claim, and
#: inflate to, far more.
MAX_PIXELS = 100_000_000
EXIF_ORIENTATION = 0x0112
BMP_MAGIC = b"BM"
# What a PNG's header says at bytes 24 and 25.
DEEP_PNG, GREY_PNG = 16, 0
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: Bits a channel that Pillow decodes as they are. Deeper colour it cuts down to 8 without saying so.
SHALLOW = {1, 2, 4, 8}
INVERTED, COLOUR = "MINISWHITE", ("MINISWHITE", "MINISBLACK", "RGB")


def read_image(path: Path, channels: int) -> np.ndarray:
    """uint8 (H, W, channels) of a picture of 8 bit a channel (transparency is dropped) or of a deeper one.

    A deeper one is scaled so that its own smallest value becomes 0 and its largest 255, over all channels alike, since
    12-bit scanners leave most of the 16 bits unused; absolute grey levels are therefore not comparable between such pictures.
    """
    picture = decode(path)
    if isinstance(picture, np.ndarray):
        colours = 3 if picture.ndim == 3 and picture.shape[2] >= 3 else 1
        pixels = stretched(path, picture.reshape(*picture.shape[:2], -1)[:, :, :colours])
        if colours == channels:
            return pixels
        picture = Image.fromarray(pixels if colours == 3 else pixels[:, :, 0])
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise UserError(f"{path} has the pixel type {picture.mode!r}; allowed: grey, RGB or palette")
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def stretched(path: Path, values: np.ndarray) -> np.ndarray:
    """uint8, of the shape (H, W, channels) of `values`: their smallest becomes 0, their largest 255."""
    low, high = span(path, values)
    pixels, rows = np.empty(values.shape, np.uint8), max(1, BLOCK // values[0].size)
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.float64) - low
        part = part * (255 / max(high - low, 1)) if values.dtype.kind != "f" else part / ((high - low) or 1) * 255
        pixels[start : start + rows] = np.rint(part).astype(np.uint8)
    return pixels


def span(path: Path, values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value. Raises UserError where they are no numbers."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise UserError(f"{path} holds values from {low:g} to {high:g}; allowed: finite numbers")
    return low, high


def decode(path: Path, exact: bool = False) -> Image.Image | np.ndarray:
    """A picture of up to 8 bit a channel as Pillow decodes it; the values (H, W) or (H, W, channels) of a deeper one.

    `exact`: values as they are stored, where Pillow would scale them to 8 bit. Raises UserError for what is damaged, is no
    picture, holds several, is turned, or is larger than `MAX_PIXELS`.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(26)
        if start[:4] in TIFF_MAGIC and (values := _deep_tiff(path)) is not None:
            return values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of is refused
            source, colours = _two_colours(path) if start[:2] == BMP_MAGIC else (path, None)
            picture = Image.open(source, formats=FORMATS)
        with picture:
            check_size(path, *picture.size, 4)
            check_single(path, getattr(picture, "is_animated", False), picture.getexif().get(EXIF_ORIENTATION, 1))
            if picture.format == "PNG" and start[24] == DEEP_PNG and start[25] != GREY_PNG:
                check_size(path, *picture.size, 8)
                return imagecodecs.png_decode(path.read_bytes())
            if picture.format == "PPM" and (stored := _ppm(path)) and (stored[1] > 255 or exact):
                return stored[0]
            picture.load()
            if colours:
                picture.putpalette(colours)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image; allowed: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} is too large; allowed: up to {MAX_PIXELS / 1e6:.0f} megapixels") from None
    except UserError:
        raise
    except Exception as error:  # decoders raise a dozen kinds on damaged files
        raise UserError(f"{path} cannot be decoded: {next(iter(str(error).splitlines()), type(error).__name__)}") from None
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.asarray(picture)
    return picture


def check_size(path: Path, width: int, height: int, bytes_a_pixel: int) -> None:
    """Raises UserError for a picture that is larger than what may be decoded."""
    if width * height > MAX_PIXELS or width * height * bytes_a_pixel > MAX_BYTES:
        raise UserError(
            f"{path} is {width} x {height} px with {bytes_a_pixel} bytes each; "
            f"allowed: up to {MAX_PIXELS / 1e6:.0f} megapixels and {MAX_BYTES / 1e6:.0f} MB"
        )


def check_single(path: Path, several: bool, turned: int) -> None:
    """Raises UserError for several pictures in one file, and for one that is to be turned before it is looked at."""
    if several:
        raise UserError(f"{path} holds several pictures; allowed: one")
    if turned != 1:
        raise UserError(f"{path} has the EXIF orientation {turned}; allowed: 1, so that image and mask are read alike")


def _deep_tiff(path: Path) -> np.ndarray | None:
    """The values of a TIFF whose channels are not 8 bit, or are signed or real numbers; None for any other."""
    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise UserError(f"{path} cannot be decoded: {error}") from None
    with file:
        page = file.pages.first
        bits = {page.bitspersample} if isinstance(page.bitspersample, int) else set(page.bitspersample)
        if page.sampleformat == tifffile.SAMPLEFORMAT.UINT and bits <= SHALLOW:
            return None
        check_size(path, page.imagewidth, page.imagelength * page.imagedepth, page.samplesperpixel * page.dtype.itemsize)
        tag = page.tags.get(EXIF_ORIENTATION)
        check_single(path, len(file.pages) > 1, tag.value if tag else 1)
        photometric = getattr(page.photometric, "name", page.photometric)
        if photometric not in COLOUR or page.dtype.kind not in "iuf" or page.imagedepth != 1:
            raise UserError(f"{path} has the pixel type {photometric} of {page.dtype}; allowed: grey, RGB or palette")
        values = page.asarray()
    if values.ndim not in (2, 3) or values.size == 0:
        raise UserError(f"{path} holds values of the shape {values.shape}; allowed: (H, W) or (H, W, channels)")
    if photometric == INVERTED:  # the smallest value is white
        values = ~values if values.dtype.kind in "iu" else -values
    return np.moveaxis(values, 0, -1) if page.axes == "SYX" else values


def _two_colours(path: Path) -> tuple[Path | BytesIO, list[int] | None]:
    """A BMP as it is; or, of one with 4 or 8 bit and only two colours, one of these a little off, and the two as they are.

    Where the two are black and white, Pillow takes the pixels for single bits.
    """
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[14:18], "little")
    if header < 40 or content[28] not in (4, 8) or int.from_bytes(content[46:50], "little") != 2:
        return path, None
    at = 14 + header
    colours = [*content[at : at + 3][::-1], *content[at + 4 : at + 7][::-1]]
    content[at] ^= 1
    return BytesIO(content), colours


def _ppm(path: Path) -> tuple[np.ndarray, int] | None:
    """The values of a PGM or PPM as they are stored, and what is white in it; None for a PBM."""
    content = path.read_bytes()
    header = re.match(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s", content[:BLOCK])
    if header is None:
        return None
    kind, width, height, white = (int(number) for number in header.groups())
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    raster, count = content[header.end() :], int(np.prod(shape))
    if kind in (2, 3):
        values = np.fromstring(raster.decode("ascii"), np.int32, sep=" ")[:count]
    else:
        values = np.frombuffer(raster, ">u2" if white > 255 else np.uint8, count)
    return values.reshape(shape), white
