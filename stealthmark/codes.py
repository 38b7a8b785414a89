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
    found = zxingcpp.read_barcodes(image, formats=formats)
    return found[0].text if found else None


def read(modules: np.ndarray, code: np.ndarray, text: str) -> str | None:
    """What modules say that should be `code`, which stands for `text`: the very same are that text; else `decode`."""
    return text if np.array_equal(modules, code) else decode(modules)


def error_rate(found: np.ndarray, code: np.ndarray) -> float:
    """The share of modules that differ: 0 where the code was found, 0.5 by chance."""
    return float((found != code).mean())


def hashed(text: str, seed: int, side: int) -> np.ndarray:
    """A keyed hash of `text`, HMAC-SHA256 under `seed`, as bits (side, side); side 16 or less."""
    digest = hmac.digest(seed.to_bytes(8, "big"), text.encode(), "sha256")
    return np.unpackbits(np.frombuffer(digest, np.uint8))[: side * side].astype(bool).reshape(side, side)


def chance(wrong: float, side: int) -> float | None:
    """How probable it is that a hash of `side` x `side` bits, under a key of which the modules found know nothing, differs from
    them in a share of `wrong` or less: the binomial tail at 1/2, exact whatever was found, because the key is random. None for
    a QR code, whose modules are not."""
    if side in (modules for _, _, modules in KINDS.values()):
        return None
    return float(binom.cdf(round(wrong * side**2), side**2, 0.5))
