"""QR codes: text -> modules -> text. Modules are bool (n, n), True where dark."""

import hmac
from functools import cache

import numpy as np
import segno
import zxingcpp
from scipy.stats import binom
from segno import consts

#: Kinds of code, the number of modules a side, and what holds in it at the error correction used here.
KINDS = {"micro": ("M2", "L", 13), "qr": (1, "L", 21)}


def encode(text: str, kind: str = "micro") -> np.ndarray:
    """The modules of a Micro QR code M2 (13 x 13, up to 6 alphanumeric characters) or a QR code version 1 (21 x 21, up to
    25). ValueError where the text does not fit."""
    version, correction, _ = KINDS[kind]
    try:
        code = segno.make(text, version=version, error=correction, boost_error=False, micro=kind == "micro")
    except segno.DataOverflowError as error:
        raise ValueError(f"{text!r} does not fit into a {kind} code: {error}") from None
    return _dark(code)


def _dark(code: segno.QRCode) -> np.ndarray:
    return np.array([[bool(module) for module in row] for row in code.matrix])


@cache
def patterns(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Which modules every code of a kind shares, and those: its function patterns (finders, separators, timing; ISO/IEC 18004,
    Sec. 6.3), which say where a printed code lies and carry nothing. Two bool (n, n); 74 modules of a Micro QR code M2."""
    version, correction, _ = KINDS[kind]
    code = segno.make("0", version=version, error=correction, boost_error=False, micro=kind == "micro")
    told = (consts.TYPE_DATA_DARK, consts.TYPE_DATA_LIGHT, consts.TYPE_FORMAT_DARK, consts.TYPE_FORMAT_LIGHT)
    return ~np.isin([list(row) for row in code.matrix_iter(border=0, verbose=True)], told), _dark(code)


def decode(modules: np.ndarray, scale: int = 8) -> str | None:
    """The text of a code's modules, with whatever errors they have; None where nothing can be read, as from a hash, which is
    no QR code. Modules of function patterns are set to what they are in every code: only the others are asked for the text."""
    kind = next((kind for kind, (_, _, side) in KINDS.items() if side == len(modules)), None)
    if kind is None:
        return None
    shared, drawn = patterns(kind)
    modules = np.where(shared, drawn, modules)
    image = np.kron(np.where(np.pad(modules, 4), 0, 255).astype(np.uint8), np.ones((scale, scale), np.uint8))
    formats = zxingcpp.BarcodeFormat.MicroQRCode if len(modules) < 21 else zxingcpp.BarcodeFormat.QRCode
    barcodes = zxingcpp.read_barcodes(image, formats=formats)
    return barcodes[0].text if barcodes else None


def read(modules: np.ndarray, code: np.ndarray, text: str) -> str | None:
    """What modules say that should be `code`, which stands for `text`: the very same are that text; else `decode`."""
    return text if np.array_equal(modules, code) else decode(modules)


def error_rate(modules: np.ndarray, code: np.ndarray) -> float:
    """The share of modules that differ from the code's: 0 where it was read, 0.5 by chance."""
    return float((modules != code).mean())


def hashed(text: str, seed: int, side: int) -> np.ndarray:
    """A keyed hash of `text`, HMAC-SHA256 under `seed`, as bits (side, side); side 16 or less."""
    digest = hmac.digest(seed.to_bytes(32, "big"), text.encode(), "sha256")
    return np.unpackbits(np.frombuffer(digest, np.uint8))[: side * side].astype(bool).reshape(side, side)


def chance(wrong: float, side: int) -> float | None:
    """How probable it is that a hash of `side` x `side` bits, under a key of which the modules found know nothing, differs from
    them in a share of `wrong` or less: the binomial tail at 1/2, exact whatever was found, because the key is random. None for
    a QR code, whose modules are not."""
    if side in (modules for _, _, modules in KINDS.values()):
        return None
    return float(binom.cdf(round(wrong * side**2), side**2, 0.5))


def median_split(explanation: np.ndarray) -> np.ndarray:
    """The bits that a map (grid, grid) spells: dark where a visible cell raises the quantity more than the median cell."""
    return explanation > np.median(explanation)


def minimum_error_split(explanation: np.ndarray) -> np.ndarray:
    """The modules that a map of `occlusion.read_code_maps` shows, bool (n, n), told apart by the threshold of minimum error.

    That is the split into two normal classes, each with a spread of its own, that fits the values best (Kittler and
    Illingworth, Pattern Recognition 1986). What an attack leaves of dark modules is uneven, light ones hardly move. No class
    has a spread of less than a hundredth of that of all values, or less than an eighth of the modules. All light where all
    are equal.
    """
    values = np.sort(explanation, axis=None).astype(float)
    spread = values.std()
    if spread == 0:
        return np.zeros(explanation.shape, dtype=bool)
    scaled = (values - values.mean()) / spread  # their sum is 0, that of their squares n
    n, lower = values.size, np.arange(1, values.size)
    sums, squares = np.cumsum(scaled)[:-1], np.cumsum(scaled**2)[:-1]
    cost = np.zeros(n - 1)
    for size, total, square in ((lower, sums, squares), (n - lower, -sums, n - squares)):
        variance = np.maximum(square / size - (total / size) ** 2, 1e-4)
        cost += size / n * (np.log(variance) / 2 - np.log(size / n))
    least = n // 8
    split = least + int(cost[least : n - 1 - least].argmin())
    return explanation > values[split : split + 2].mean()
