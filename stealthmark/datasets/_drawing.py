"""How the phantoms draw: smooth textures, wobbly contours, soft edges and on-screen text, all in fractions of the image."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.fft import irfft2, rfft2
from scipy.ndimage import map_coordinates

#: Side of the periodic lattice on which random fields are drawn, whatever the size of the picture.
LATTICE = 128
#: Side at which on-screen text is drawn before it is averaged down, so that it too is the same at every size.
SCREEN = 384
#: How many Fourier coefficients a contour has.
ORDERS = 5
CORNERS = ("la", "ra", "ld", "rd")  # PIL's anchors: left or right; ascender (top) or descender (bottom)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x, y of the pixel centres, each (size, size) in (0, 1)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(centres, centres)


@cache
def _band(low: float, high: float, slope: float) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(LATTICE, 1 / LATTICE)[:, None], np.fft.rfftfreq(LATTICE, 1 / LATTICE)[None])
    return np.where((frequency >= low) & (frequency <= high), np.maximum(frequency, 1) ** -slope, 0).astype(np.float32)


def texture(rng: np.random.Generator, low: float, high: float, slope: float = 1.0) -> np.ndarray:
    """A periodic field (LATTICE, LATTICE), unit sd: `low` to `high` cycles a side, amplitude ~ frequency**-slope."""
    white = rng.standard_normal((LATTICE, LATTICE), dtype=np.float32)
    field = irfft2(rfft2(white) * _band(low, high, slope))
    return (field / field.std()).astype(np.float32)


def sample(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`field` at scene coordinates x, y (one period a unit)."""
    return map_coordinates(field, [y * LATTICE, x * LATTICE], order=1, mode="grid-wrap")


def wobble(rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Complex Fourier coefficients (ORDERS,) of a smooth closed contour; `amplitude`: sd of its relative radius."""
    order = np.arange(1, ORDERS + 1)
    parts = rng.normal(0, amplitude / np.sqrt(np.sum(1.0 / order**2)), (2, ORDERS)) / order
    return (parts[0] - 1j * parts[1]).astype(np.complex64)


def radius(coefficients: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Relative radius (mean 1) in the direction `angle`: 1 + the sum over k of the real part of c_k exp(i k angle)."""
    return 1 + np.polyval([*coefficients[::-1], np.complex64(0)], np.exp(1j * angle)).real


def step(distance: np.ndarray, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 over about `width` around distance 0."""
    return 0.5 + 0.5 * np.tanh(2 * distance / width)


def blend(image: np.ndarray, cover: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    """`colour` over `image` (H, W, C) where `cover` (H, W), 0 to 1, says."""
    return image + cover[..., None] * (np.array(colour, np.float32) - image)


def screen_text(lines: tuple[str, ...], corner: str, height: float, size: int) -> np.ndarray:
    """Coverage in [0, 1], (size, size), of text `height` tall in a corner of the screen."""
    canvas = Image.new("L", (SCREEN, SCREEN))
    where = (8 if corner[0] == "l" else SCREEN - 8, 6 if corner[1] == "a" else SCREEN - 6)
    font = ImageFont.load_default(size=height * SCREEN)
    align = "left" if corner[0] == "l" else "right"
    ImageDraw.Draw(canvas).multiline_text(where, "\n".join(lines), 255, font, corner, spacing=2, align=align)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / 255
