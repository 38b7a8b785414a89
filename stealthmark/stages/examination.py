"""An examination: key, method and committed images, opened and checked once, and the suspects that are examined with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from stealthmark import __version__, dataset
from stealthmark.access import PROBABILITIES, at_access
from stealthmark.attack import Wrap, wrapped
from stealthmark.dataset import Arrays
from stealthmark.detection import CHUNK
from stealthmark.errors import UserError
from stealthmark.files import check, read_json
from stealthmark.layout import CARD, CASES, INDEX, WEIGHTS, Place
from stealthmark.method import Key, MethodContract, WhiteBoxMark, digest_of
from stealthmark.plugin import describe_error, make
from stealthmark.stages import digest, status_of
from stealthmark.stages.train import float_images, load_network
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.function import from_function
from stealthmark.suspects.querier import Limits, Predictor, Querier


@dataclass(frozen=True)
class Suspect:
    """A place in the study and a predictor; the network behind it, which white-box marks and nobody else may look into.

    `queriers`: all that remember answers, the predictor among them.
    """

    place: Place
    predictor: Predictor
    model: nn.Module
    queriers: tuple[Querier, ...] = ()

    def forget(self) -> None:
        """Free what is remembered of some images, when it is done with."""
        for querier in self.queriers:
            querier.forget()


@dataclass(frozen=True)
class Listed:
    """A suspect on disk: its place, the checkpoint's folder, what is around it, and `ok` or why there is none."""

    place: Place
    folder: Path
    wraps: tuple[Wrap, ...]
    status: str


@dataclass(frozen=True)
class Examination:
    """Key and method (None without a key), and the images that suspects are queried with: the test share, on disk."""

    key: Key | None
    method: MethodContract | None
    arrays: Arrays
    device: torch.device

    @classmethod
    def open(cls, data: Path, key_file: Path | None, device: torch.device) -> Examination:
        """Raises UserError where the key is not the one committed to, or is for other images than those in `data`."""
        arrays = dataset.load(data).lazy_share("test")
        if key_file is None:
            return cls(None, None, arrays, device)
        key = Key.read(key_file)
        if key.shape != tuple(arrays.images.shape[1:]):
            raise UserError(
                f"{key_file} is for queries of shape {key.shape}, the images in {data} have {tuple(arrays.images.shape[1:])}"
            )
        if key.images and key.images != digest_of(arrays.images):
            raise UserError(f"the test images in {data} are not those that {key_file} was committed with")
        return cls(key, make("method", key.method), arrays, device)

    @property
    def levels(self) -> list[str]:
        """The access levels that the key has detectors for; without a key, and of a mark in the weights, probabilities."""
        if self.key is None or isinstance(self.method, WhiteBoxMark):
            return [PROBABILITIES]
        return list(self.key.detectors)

    def seen(self, predictor: Predictor) -> dict[str, Predictor]:
        """A suspect at every access level."""
        return {level: at_access(predictor, level) for level in self.levels}

    def batches(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, images float (B, C, H, W) in [0, 1]) of the test share, part by part."""
        return ((rows, float_images(self.arrays.images[rows])) for rows in self.arrays.chunks(CHUNK))

    def images(self, rows: np.ndarray) -> Tensor:
        """The images at these rows, float (N, C, H, W) in [0, 1]."""
        return float_images(self.arrays.images[rows])

    def masks(self, rows: slice | np.ndarray) -> np.ndarray:
        """The masks at these rows, bool (N, H, W)."""
        return np.asarray(self.arrays.masks[rows]) > 0

    def identity(self, listed: list[Listed]) -> str:
        """What the evidence of these suspects depends on: key, images, weights, wrappers, and this benchmark's version."""
        weights = [
            (one.status, [*one.wraps], (one.folder / WEIGHTS).stat().st_mtime_ns if one.status == "ok" else 0) for one in listed
        ]
        return digest(__version__, self.key.commitment() if self.key else "", self.arrays.manifest["sha256"], weights)

    def suspect(self, listed: Listed) -> Suspect:
        """Opens a suspect whose status is `ok`."""
        model, _ = load_network(listed.folder, self.arrays.images.shape[1], self.device)
        queriers = [from_model(model, self.device)]
        for wrap in listed.wraps:
            queriers.append(from_function(wrapped(queriers[-1], wrap), "the wrapped suspect", limits=Limits(batch=32)))
        return Suspect(listed.place, queriers[-1], model, tuple(queriers))


class _Made(BaseModel):
    """A suspect as an attack's index lists it; of a folder that somebody hands over, so it is checked."""

    strength: float
    model: str
    wraps: tuple[Wrap, ...] = ()


class _Index(BaseModel):
    """An attack's `index.json`: its suspects, or why there are none."""

    status: str = "ok"
    suspects: tuple[_Made, ...] = ()


def listed_in(folder: Path, place: Place) -> list[Listed]:
    """The suspects in a checkpoint's folder, or, one a strength, in an attack's. `place` says where the folder stands."""
    file = folder / INDEX
    if not file.exists():
        return [Listed(place, folder, (), status_of(folder / CARD))]
    try:
        index = _Index.model_validate(read_json(file))
    except ValidationError as error:
        raise UserError(f"{file} is not the index of an attack: {describe_error(error, _Index)}") from None
    if index.status != "ok":
        return [Listed(place, folder, (), index.status)]
    return [
        Listed(place._replace(strength=made.strength), (folder / made.model).resolve(), made.wraps, "ok")
        for made in index.suspects
    ]


def check_places(suspects: list[tuple[Place, Path]]) -> None:
    """Raises UserError where two suspects stand in one place."""
    places = [place for place, _ in suspects]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise UserError(f"two suspects stand in the place {twice.text!r}; allowed: one")


def check_job(suspects: list[tuple[Place, Path]]) -> None:
    """Raises UserError where suspects would write into each other's files: one job is one suspect's folder, or the members of
    one role, after one attack."""
    check_places(suspects)
    places = [place for place, _ in suspects]
    if len(places) > 1 and not (len({(place.role, place.attack) for place in places}) == 1 and all(p.member for p in places)):
        names = ", ".join(repr(place.text) for place in places)
        raise UserError(f"the suspects {names} are not members of one role; allowed at once: these, or one suspect")


def failure(listed: Listed) -> dict:
    """A suspect that could not be examined, as evidence lists it."""
    return {**listed.place._asdict(), "status": listed.status}


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n indices, evenly spread, rising."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def finished(card: Path, identity: str) -> bool:
    """Whether `card` is of a stage that ended well, with the same inputs, and what it wrote is still there."""
    try:
        summary = read_json(card)
        check(card.with_name(CASES))
    except (OSError, UserError):
        return False
    return summary.get("status") == "ok" and summary.get("identity") == identity
