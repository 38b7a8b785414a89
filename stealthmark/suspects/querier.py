"""The querier: a suspect as the black box that an owner can query.

Each kind of suspect only turns images into an answer (`Source`). The `Querier` sends batches, remembers answers, counts queries
and refuses an answer that no verdict can rest on.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stealthmark.errors import UserError
from stealthmark.suspects import remedies

#: Images float (B, C, H, W) in [0, 1] -> what the interface shows: probabilities (or labels) float (B, H, W) in [0, 1].
Predictor = Callable[[Tensor], Tensor]
#: One request: images float (B, C, H, W) in [0, 1] -> the suspect's answer as it came, not yet checked.
Ask = Callable[[Tensor], np.ndarray]
#: What the numbers in a suspect's answers are.
Shows = Literal["probabilities", "logits", "labels"]
#: What a suspect is.
Kind = Literal["network", "checkpoint", "nnunet", "onnx", "http", "function"]

#: How far a probability may lie outside [0, 1], as the rounding of a resized map does; it is set to the bound.
ROUNDING = 1e-5
#: How far background and foreground may be from adding up to 1: as much as an interface that rounds to 0.1 makes of it.
COMPLEMENT = 0.1 + ROUNDING


class Limits(BaseModel):
    """What querying a suspect may cost.

    `batch`: images a request. `budget`: images in all, None for no end; what is still remembered costs nothing.
    `timeout`: seconds a request may take. `retries`: of a request to a service that does not answer (they count once).
    `pixel_bytes`: what an answer may weigh, a pixel of the image; two channels of float64 are 16. `file_bytes`: the largest
    ONNX file opened. `memory_bytes`: what the process that it runs in may take. `remembered`: bytes of answers kept, float32;
    beyond it the oldest go, and asking again is a query.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    batch: int = Field(default=64, ge=1)
    budget: int | None = Field(default=None, ge=0)
    timeout: float = Field(default=120, gt=0, allow_inf_nan=False)
    retries: int = Field(default=3, ge=0)
    pixel_bytes: int = Field(default=16, ge=1)
    file_bytes: int = Field(default=2**31 - 1, ge=1)  # protobuf's own limit
    memory_bytes: int = Field(default=2**33, ge=1)
    remembered: int = Field(default=2**30, ge=0)


@dataclass(frozen=True)
class Source:
    """What a kind of suspect yields: how to ask it, and what it is.

    `name` begins every sentence about it and holds no secret. `batch`: images that each request takes at most, None where that
    is for the limits to say. `sha256`: of the file that was opened, in hexadecimal, None where there is none.
    """

    ask: Ask
    name: str = "the suspect"
    kind: Kind = "function"
    shows: Shows = "probabilities"
    batch: int | None = None
    sha256: str | None = None


class Querier:
    """A source as a `Predictor`: images float (B, C, H, W) in [0, 1] -> probabilities or labels float32 (B, H, W) in [0, 1],
    on the CPU.

    Answers are remembered image by image (SHA-256 of its values), so that asking again, in whatever batch or at another
    access level, costs nothing. `sent` counts the images that were sent; `extreme` is how far an answer went from one half.
    Raises UserError for images of another shape than `shape`, when the budget does not suffice (before anything of the call
    is sent), and for an answer that `probabilities` refuses.
    """

    def __init__(
        self,
        source: Source,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        shape: tuple[int, int, int] | None = None,
    ):
        self.source, self.limits, self.sent, self.extreme = source, limits, 0, 0.0
        self._shape = shape
        self._remembered: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __call__(self, images: Tensor) -> Tensor:
        if self._shape is not None and tuple(images.shape[1:]) != tuple(self._shape):
            raise UserError(
                f"{self.source.name} is asked with images of shape {tuple(images.shape[1:])}; allowed: {self._shape}"
            )
        digests = digests_of(images)
        answers = {digest: self._remembered[digest] for digest in digests if digest in self._remembered}
        first_places = {digest: i for i, digest in reversed([*enumerate(digests)]) if digest not in answers}
        new = sorted(first_places.values())
        # All new is the usual case, and needs no copy.
        self._send(images if len(new) == len(images) else images[new], [digests[i] for i in new], answers)
        in_order = torch.empty(len(images), *images.shape[2:])
        for i, digest in enumerate(digests):
            in_order[i] = answers[digest]
        return in_order

    def forget(self) -> None:
        """Free the memory: asking again is a query. For whoever goes through many images, and is done with some."""
        self._remembered.clear()
        self._bytes = 0

    def _send(self, images: Tensor, digests: list[bytes], answers: dict[bytes, Tensor]) -> None:
        """Ask about new images, and put what comes back into `answers` and into the memory."""
        name, budget, batch = self.source.name, self.limits.budget, self.source.batch or self.limits.batch
        if budget is not None and self.sent + len(digests) > budget:
            raise UserError(
                f"{name} would be asked {len(digests)} images more after {self.sent}; the budget allows {budget} in all"
            )
        for start in range(0, len(digests), batch):
            part = images[start : start + batch]
            self.sent += len(part)
            checked = probabilities(self.source.ask(part), part, self.source.shows, name)
            self.extreme = max(self.extreme, float((checked - 0.5).abs().max()))
            for digest, answer in zip(digests[start : start + batch], checked, strict=True):
                answers[digest] = answer
                self._remember(digest, answer)

    def _remember(self, digest: bytes, answer: Tensor) -> None:
        self._remembered[digest] = answer.clone()  # of its own, so that forgetting it frees its memory
        self._bytes += answer.nbytes
        while self._bytes > self.limits.remembered:
            self._bytes -= self._remembered.pop(next(iter(self._remembered))).nbytes


def digests_of(images: Tensor) -> list[bytes]:
    """SHA-256 of each image's type, shape and values; of answers, each map's."""
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
    Raises UserError, naming the value found, for anything else.
    """
    b, _, h, w = images.shape
    allowed = [(b, h, w), (b, 1, h, w), (b, 2, h, w)]
    if answer.shape not in allowed:
        end = remedies.for_shape(answer.shape, (b, h, w), shows)
        raise UserError(f"{name} answers with the shape {answer.shape}; allowed: {', '.join(map(str, allowed))}{end}")
    values = finite(answer, shows, name)
    two_channels = answer.shape == allowed[2]
    if shows == "logits":
        return (values[:, 1] - values[:, 0] if two_channels else values.view(b, h, w)).sigmoid()
    if shows == "labels":
        others = values[(values != 0) & (values != 1)]
        if len(others):
            end = remedies.for_label(float(others.max()))
            raise UserError(f"{name} answers with the label {others[0]:g}; allowed: 0 and 1{end}")
    low, high = values.aminmax()
    if low < -ROUNDING or high > 1 + ROUNDING:
        end = remedies.for_range(float(low), float(high))
        raise UserError(f"{name} answers with values from {low:g} to {high:g}; allowed as probabilities: from 0 to 1{end}")
    if two_channels and (values.sum(1) - 1).abs().max() > COMPLEMENT:
        low, high = values.sum(1).aminmax()
        raise UserError(f"{name} answers with two channels that add up to {low:g} to {high:g}; allowed: 1")
    return (values[:, 1] if two_channels else values.view(b, h, w)).clamp(0, 1)


def finite(answer: np.ndarray, shows: Shows, name: str, integers: bool = False) -> Tensor:
    """The answer's values, float32. Raises UserError for values of another type than `shows` allows, `integers` or not, and
    for those that are not finite."""
    integers = integers or shows == "labels"
    if answer.dtype.kind not in ("biuf" if integers else "f"):
        types = "bool, integers or floats" if integers else "floats"
        end = remedies.for_type(answer, shows)
        raise UserError(f"{name} answers with values of type {answer.dtype}; allowed as {shows}: {types}{end}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused next
        values = torch.from_numpy(np.require(answer, np.float32, ["C", "W"]))
    if not values.isfinite().all():
        raise UserError(f"{name} answers with values that are not finite; no verdict can rest on them")
    return values


def sha256_of(file: Path) -> str:
    """A file's SHA-256 in hexadecimal. Raises UserError when it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
