"""Open a suspect, whatever kind it is of. A suspect's files are untrusted input."""

from pathlib import Path
from typing import get_args

import torch

from stealthmark.errors import UserError
from stealthmark.layout import CARD, WEIGHTS
from stealthmark.suspects import checkpoint, nnunet
from stealthmark.suspects.described import described
from stealthmark.suspects.interface import Interface
from stealthmark.suspects.querier import Kind, Limits, Querier, Shows, sha256_of

#: Files that run code when they are read.
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib"}
#: Bytes that an answer may have for a pixel where classes are chosen and the limits do not say: 32 classes of float64.
OF_CLASSES = 256
OPENED = (
    "a checkpoint folder (safetensors and card.json), an nnU-Net results folder (plans.json and dataset.json), "
    "an .onnx file, an http:// or https:// address"
)


def connect(
    suspect: str | Path,
    shape: tuple[int, int, int],
    device: torch.device,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    shows: Shows = "probabilities",
    interface: Interface = Interface(),  # noqa: B008 (frozen)
) -> Querier:
    """The suspect at `suspect`, which will be asked with images of `shape` (C, H, W).

    `suspect` is a checkpoint folder, a results folder of nnU-Net, an `.onnx` file (these run on `device`) or an http(s)
    address (docs/http.md). `shows` says what the numbers in the answers of a file or a service are, and `interface` what else
    it takes and gives; of a folder both are known.
    Raises UserError for anything else, for a pickle (never opened), for a suspect that does not take such images, and for an
    interface that does not fit.
    """
    if shows not in get_args(Shows):
        raise UserError(f"'shows' has the value {shows!r}; allowed: {', '.join(get_args(Shows))}")
    kind = _kind_of(suspect)
    if kind not in ("http", "onnx") and interface != Interface():
        raise UserError(f"{suspect} is a folder, whose interface is known; allowed: no description of it")
    if interface.foreground is not None and "pixel_bytes" not in limits.model_fields_set:
        limits = limits.model_copy(update={"pixel_bytes": OF_CLASSES})
    match kind:
        case "http":
            from stealthmark.suspects import http  # requests takes a moment, which a benchmark need not spend

            source = http.source(str(suspect), shape, limits, shows, interface)
        case "onnx":
            from stealthmark.suspects import onnx

            source = onnx.source(Path(suspect), shape, device, limits, shows, interface)
        case "nnunet":
            source = nnunet.source(Path(suspect), shape, device)
        case _:
            source = checkpoint.source(Path(suspect), shape, device)
    return Querier(described(source, interface, shape), limits, shape)


def describe_suspect(suspect: str | Path) -> dict:
    """A suspect for its certificate: `name`, `kind`, and of files `sha256`; no secret of an address, no path of a machine.

    The name is an address's host and path, or the last name of a file or folder. The digest is of the file with the weights.
    Raises UserError for what `connect` does not open.
    """
    kind = _kind_of(suspect)
    if kind == "http":
        from stealthmark.suspects import http

        address, _ = http.parse(str(suspect))
        return {"name": f"{address.hostname}{address.path}", "kind": kind}
    path = Path(suspect)
    weights = {"checkpoint": path / WEIGHTS, "nnunet": nnunet.checkpoint_of(path), "onnx": path}[kind]
    return {"name": path.resolve().name, "kind": kind, "sha256": sha256_of(weights)}


def _kind_of(suspect: str | Path) -> Kind:
    """What kind of suspect a place is, by its looks alone."""
    if "://" in str(suspect):
        return "http"
    path = Path(suspect)
    if path.is_dir():
        return "nnunet" if (path / nnunet.PLANS).exists() and not (path / CARD).exists() else "checkpoint"
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path} may be a pickle, which runs code when it is read, and is not opened; allowed: {OPENED}")
    if not path.is_file():
        raise UserError(f"there is no suspect at {path}; allowed: {OPENED}")
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{path} has the suffix {path.suffix!r}; allowed: {OPENED}")
    return "onnx"
