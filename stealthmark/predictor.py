"""The predictor: a suspect as the black box that an owner can query, at a given access level.

`connect` opens a checkpoint folder, an ONNX file or an HTTP service; `from_model` takes a torch network. All stand behind one
`Querier`, which sends batches, remembers answers, counts queries and refuses an answer that no verdict can rest on.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stealthmark import architecture
from stealthmark.errors import UserError
from stealthmark.method import Predictor
from stealthmark.plugin import make

#: What an interface shows of the probabilities, float (B, H, W) in [0, 1]. Of logits, the owner takes the sigmoid.
ACCESS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda p: p,
    "probabilities": lambda p: p,
    "rounded-0.01": lambda p: (p * 100).round() / 100,
    "rounded-0.1": lambda p: (p * 10).round() / 10,
    "8-bit": lambda p: (p * 255).round() / 255,
    "clipped-0.1": lambda p: torch.where(p < 0.1, 0.0, torch.where(p > 0.9, 1.0, p)),
    "label": lambda p: (p > 0.5).float(),
}

#: What the numbers in a suspect's answers are.
Shows = Literal["probabilities", "logits", "labels"]
#: One request: images float (B, C, H, W) in [0, 1] -> the suspect's answer as it came, not yet checked.
Ask = Callable[[Tensor], np.ndarray]

#: Files that run code when they are read.
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib"}
OPENED = "a checkpoint folder (safetensors and card.json), an .onnx file, an http:// or https:// address"
#: How far a probability may lie outside [0, 1], as the rounding of a resized map does; it is set to the bound.
ROUNDING = 1e-5
#: How far background and foreground may be from adding up to 1: as much as an interface that rounds to 0.1 makes of it.
COMPLEMENT = 0.1 + ROUNDING


class Limits(BaseModel):
    """What querying a suspect may cost.

    `batch`: images a request. `budget`: images in all, None for no end; what is still remembered costs nothing.
    `timeout`: seconds a request may take. `retries`: of a request to a service that does not answer (they count once).
    `pixel_bytes`: what an answer may weigh, a pixel of the image; two channels of float64 are 16. `file_bytes`: the largest
    ONNX file opened. `remembered`: bytes of answers kept, float32; beyond it the oldest go, and asking again is a query.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    batch: int = Field(default=64, ge=1)
    budget: int | None = Field(default=None, ge=0)
    timeout: float = Field(default=120, gt=0, allow_inf_nan=False)
    retries: int = Field(default=3, ge=0)
    pixel_bytes: int = Field(default=16, ge=1)
    file_bytes: int = Field(default=2**31 - 1, ge=1)  # protobuf's own limit
    remembered: int = Field(default=2**30, ge=0)


class Querier:
    """A suspect as a `Predictor`: images float (B, C, H, W) in [0, 1] -> probabilities or labels float32 (B, H, W) in [0, 1],
    on the CPU.

    Answers are remembered image by image (SHA-256 of its values), so that asking again, in whatever batch or at another
    access level, costs nothing. `sent` counts the images that were sent.
    Raises UserError for images of another shape than `shape`, when the budget does not suffice (before anything of the call
    is sent), and for an answer that `probabilities` refuses.
    """

    def __init__(
        self,
        ask: Ask,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        shows: Shows = "probabilities",
        name: str = "the suspect",
        shape: tuple[int, int, int] | None = None,
    ):
        self.limits, self.sent = limits, 0
        self._ask, self._shows, self._name, self._shape = ask, shows, name, shape
        self._known: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __call__(self, images: Tensor) -> Tensor:
        if self._shape and tuple(images.shape[1:]) != tuple(self._shape):
            raise UserError(f"{self._name} is asked with images of shape {tuple(images.shape[1:])}; allowed: {self._shape}")
        digests = _digests(images)
        found = {digest: self._known[digest] for digest in digests if digest in self._known}
        first = {digest: i for i, digest in reversed([*enumerate(digests)]) if digest not in found}
        places = sorted(first.values())
        # All new is the usual case, and needs no copy.
        self._send(images if len(places) == len(images) else images[places], [digests[i] for i in places], found)
        answers = torch.empty(len(images), *images.shape[2:])
        for i, digest in enumerate(digests):
            answers[i] = found[digest]
        return answers

    def _send(self, images: Tensor, digests: list[bytes], found: dict[bytes, Tensor]) -> None:
        budget, batch = self.limits.budget, self.limits.batch
        if budget is not None and self.sent + len(digests) > budget:
            raise UserError(
                f"{self._name} would be asked {len(digests)} images more after {self.sent}; the budget allows {budget} in all"
            )
        for start in range(0, len(digests), batch):
            part = images[start : start + batch]
            self.sent += len(part)
            answers = probabilities(self._ask(part), part, self._shows, self._name)
            for digest, answer in zip(digests[start : start + batch], answers, strict=True):
                found[digest] = answer
                self._remember(digest, answer)

    def _remember(self, digest: bytes, answer: Tensor) -> None:
        self._known[digest] = answer.clone()  # of its own, so that forgetting it frees its memory
        self._bytes += answer.nbytes
        while self._bytes > self.limits.remembered:
            self._bytes -= self._known.pop(next(iter(self._known))).nbytes


def _digests(images: Tensor) -> list[bytes]:
    """SHA-256 of each image's type, shape and values."""
    rows = images.contiguous().numpy()
    start = hashlib.sha256(f"{rows.dtype.str} {rows.shape[1:]}".encode())
    digests = []
    for row in rows:
        digest = start.copy()
        digest.update(row)
        digests.append(digest.digest())
    return digests


def probabilities(answer: np.ndarray, images: Tensor, shows: Shows, name: str) -> Tensor:
    """The answer to `images` (B, C, H, W) as probabilities of the foreground (or labels), float32 (B, H, W) in [0, 1].

    `answer` is (B, H, W) or (B, 1, H, W), of the foreground, or (B, 2, H, W), of background and foreground. As
    `probabilities` its values are floats in [0, 1], as `logits` finite floats (turned by sigmoid, or softmax of two), as
    `labels` 0 and 1 of any type; two channels of probabilities or labels are each other's complement.
    Raises UserError, naming what was found, for anything else.
    """
    b, _, h, w = images.shape
    allowed = [(b, h, w), (b, 1, h, w), (b, 2, h, w)]
    if answer.shape not in allowed:
        raise UserError(f"{name} answers with the shape {answer.shape}; allowed: {', '.join(map(str, allowed))}")
    if answer.dtype.kind not in ("biuf" if shows == "labels" else "f"):
        types = "bool, integers or floats" if shows == "labels" else "floats"
        raise UserError(f"{name} answers with values of type {answer.dtype}; allowed as {shows}: {types}")
    with np.errstate(over="ignore"):  # what is too large for float32 is found next
        found = torch.from_numpy(np.require(answer, np.float32, ["C", "W"]))
    if not found.isfinite().all():
        raise UserError(f"{name} answers with values that are not finite; no verdict can rest on them")
    two = answer.shape == allowed[2]
    if shows == "logits":
        return (found[:, 1] - found[:, 0] if two else found.view(b, h, w)).sigmoid()
    if shows == "labels":
        other = found[(found != 0) & (found != 1)]
        if len(other):
            raise UserError(f"{name} answers with the label {other[0]:g}; allowed: 0 and 1")
    low, high = found.aminmax()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UserError(f"{name} answers with values from {low:g} to {high:g}; allowed as probabilities: from 0 to 1")
    if two and (found.sum(1) - 1).abs().max() > COMPLEMENT:
        low, high = found.sum(1).aminmax()
        raise UserError(f"{name} answers with two channels that add up to {low:g} to {high:g}; allowed: 1")
    return (found[:, 1] if two else found.view(b, h, w)).clamp(0, 1)


def from_model(model: nn.Module, device: torch.device, batch: int = 32) -> Querier:
    """A torch network as a predictor: images float (B, C, H, W) in [0, 1] -> probabilities float (B, H, W), on the CPU.

    Raises UserError when an answer is not finite: no evidence can rest on it.
    """
    return Querier(_of_network(model, device), Limits(batch=batch))


def _of_network(model: nn.Module, device: torch.device) -> Ask:
    @torch.inference_mode()
    def ask(images: Tensor) -> np.ndarray:
        return model(images.to(device).contiguous(memory_format=torch.channels_last))[:, 0].sigmoid().cpu().numpy()

    return ask


def connect(
    suspect: str | Path,
    shape: tuple[int, int, int],
    device: torch.device,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    shows: Shows = "probabilities",
) -> Querier:
    """The suspect at `suspect`, which will be asked with images of `shape` (C, H, W).

    `suspect` is a checkpoint folder, an `.onnx` file (run on `device`) or an http(s) address (see `remote`). `shows` says
    what the numbers in the answers of a file or a service are; a checkpoint's network is known to give logits.
    Raises UserError for anything else, for a pickle (never opened), and for a suspect that does not take such images.
    """
    if shows not in get_args(Shows):
        raise UserError(f"'shows' has the value {shows!r}; allowed: {', '.join(get_args(Shows))}")
    if "://" in str(suspect):
        from stealthmark.remote import service  # takes a moment, which a benchmark need not spend

        ask, name = service(str(suspect), limits)
        return Querier(ask, limits, shows, name, shape)
    path = Path(suspect)
    if path.is_dir():
        return Querier(_of_checkpoint(path, shape, device), limits, "probabilities", str(path), shape)
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path} may be a pickle, which runs code when it is read, and is not opened; allowed: {OPENED}")
    if not path.is_file():
        raise UserError(f"there is no suspect at {path}; allowed: {OPENED}")
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{path} has the suffix {path.suffix!r}; allowed: {OPENED}")
    from stealthmark.onnxfile import opened

    ask, batch = opened(path, shape, device, limits)
    return Querier(ask, limits.model_copy(update={"batch": batch}), shows, str(path), shape)


def _of_checkpoint(folder: Path, shape: tuple[int, int, int], device: torch.device) -> Ask:
    model, card = architecture.load(folder, device)
    multiple = make("architecture", card["architecture"]).multiple
    channels, *sides = shape
    if card["channels"] != channels or any(side % multiple for side in sides):
        raise UserError(
            f"the model in {folder} does not take images of shape {shape}; "
            f"allowed: {card['channels']} channels, height and width multiples of {multiple} px"
        )
    return _of_network(model, device)


def at_access(predictor: Predictor, level: str) -> Predictor:
    """The same suspect behind an interface that shows less. `level` is one of `ACCESS`; UserError for any other."""
    if level not in ACCESS:
        raise UserError(f"unknown access level {level!r}; allowed: {', '.join(ACCESS)}")
    return lambda images: ACCESS[level](predictor(images))
