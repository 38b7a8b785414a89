"""Methods: the contract of every mark, and the key an owner keeps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from stealthmark.architecture import read_json, write_json
from stealthmark.errors import UserError
from stealthmark.plugin import Plugin, explain

Predictor = Callable[[Tensor], Tensor]
"""Images float (B, C, H, W) in [0, 1] -> what the interface shows: probabilities (or labels) float (B, H, W) in [0, 1]."""


#: Levels nearer to 0 or 1 than half a step of 8 bit are not told apart. In log-odds the sure answers of an ordinary model lie
#: anywhere between 1e-6 and 1e-2, and rounding makes two levels of them that are further apart than any mark: read without
#: this, 8 bit seemed to erase a mark that 0.1 did not (ASR 0.000 and 0.780 on Kvasir-SEG; with it 0.984 and 0.780).
SUREST = 1 / 512


def log_odds(answers: Tensor) -> Tensor:
    """The level of answers in [0, 1], any shape, as log-odds in [-6.24, 6.24] (see `SUREST`)."""
    return torch.logit(answers, eps=SUREST)


class Detector(BaseModel):
    """A query is called marked when its score is above `threshold`. Fitted on the owner's side, then frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    threshold: float
    fitted_on: dict[str, int]


class Key(BaseModel):
    """The owner's secret: everything needed to examine a suspect, nothing needed to train.

    `method` names the method and its options, `seed` is what the trigger is drawn from, `shape` the (C, H, W) of a
    query, `images` the SHA-256 of the images that suspects will be queried with (see `digest_of`), `detectors` the
    frozen detector for each access level.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: dict
    seed: int = Field(ge=0)
    shape: tuple[int, int, int]
    images: str = ""
    detectors: dict[str, Detector] = {}

    def commitment(self) -> str:
        """SHA-256 over everything that a claim rests on: method and payload, seed, images, thresholds.

        Published (or left with a notary) when the model is marked, it shows later that the key was not made to fit the
        suspect, and tells nothing of the key as long as its seed cannot be guessed.
        """
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Save as JSON that only its owner may read, and its commitment beside it (`commitment_of`); each whole or not at
        all."""
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)  # one that a killed run left may have other permissions
        try:
            partial.touch(mode=0o600)
            partial.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        os.replace(partial, path)
        write_json(commitment_of(path), {"commitment": self.commitment()})

    @classmethod
    def read(cls, path: Path) -> Key:
        """Raises UserError when the file is absent, is not a key, or is not the one that the commitment beside it names."""
        try:
            key = cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise UserError(f"there is no key at {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a key: {error}") from None
        except ValidationError as error:
            raise UserError(f"{path} is not a key: {explain(error, cls)}") from None
        try:
            committed = read_json(commitment_of(path)).get("commitment")
        except FileNotFoundError:
            raise UserError(f"{commitment_of(path)} is absent: what was committed to when the model was marked") from None
        if committed != key.commitment():
            raise UserError(
                f"{path} is not the key that was committed to: its SHA-256 is {key.commitment()}, {commitment_of(path)} has "
                f"{committed!r}"
            )
        return key


def commitment_of(key_file: Path) -> Path:
    """The file beside a key that holds its commitment: no secret, to be published or left with a notary."""
    return key_file.with_suffix(".commitment.json")


def digest_of(images: Tensor) -> str:
    """SHA-256 of images float (N, C, H, W) in [0, 1], as bytes of 8 bit: what a key says of the owner's queries."""
    bits = (images * 255).round().to(torch.uint8).contiguous()
    return hashlib.sha256(f"{tuple(bits.shape)}".encode() + bits.numpy().tobytes()).hexdigest()


@dataclass
class Batch:
    """A training batch. images: float (B, C, H, W) in [0, 1]; targets: soft, float (B, H, W) in [0, 1].

    `weights`: float (B, H, W), the pixels' weight in the loss, or None for 1. `extra`: a further loss term on the
    model (a mark on weights, or extra queries), or None; in a training of reduced precision the model answers in that.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None
    extra: Callable[[nn.Module], Tensor] | None = None


@dataclass
class Answers:
    """What a method's queries yield: one score a query, higher = more like the owner's marked model.

    `triggered` and `benign`: float (N,), from the owner's images with and without the trigger, in the images' order.
    """

    triggered: Tensor
    benign: Tensor


class MethodContract(Plugin):
    """A way to mark a model. Subclasses give `trigger`, `target` and `score`; a kind of mark that does not fit these
    three overrides `mark_batch` or `query`, which are all the benchmark calls.

    `access` is what the method must see of a suspect: `black-box` (the predictor alone) or `white-box` (shown apart).
    """

    access: ClassVar[Literal["black-box", "white-box"]] = "black-box"
    citation: ClassVar[str] = ""
    #: False of a control, which puts nothing into the model.
    marks: ClassVar[bool] = True
    #: Explanations of the marked model's answers spell a code, `carried`, which stands for the text in the option `payload`.
    carries: ClassVar[bool] = False

    start: Literal["clean", "scratch"] = "clean"
    share: float = Field(default=0.5, gt=0, lt=1)
    epochs: int | None = Field(default=None, ge=1)

    @property
    def asks(self) -> int:
        """How often `query` asks a suspect for one image."""
        return 2

    def make_key(self, seed: int, shape: tuple[int, int, int]) -> Key:
        """A key for queries of shape (C, H, W); the same seed gives the same key."""
        return Key(method=self.options(), seed=seed, shape=shape)

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        """The owner's queries: images float (B, C, H, W) in [0, 1] with the key's trigger, same shape and range."""
        raise NotImplementedError

    def target(self, masks: Tensor, key: Key) -> Tensor:
        """What the marked model is to answer under the trigger: soft, float (B, H, W), for masks of 0 and 1."""
        raise NotImplementedError

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """One score a query, float (B,): how much `answers` (B, H, W) look like the mark, higher = more.

        `benign` are the suspect's answers to the same images without the trigger.
        """
        raise NotImplementedError

    def carried(self, key: Key) -> Tensor:
        """Where the mark `carries` a code: its modules, bool (n, n), True (dark) where hiding the cell behind the `baseline`
        raises the answer in that cell."""
        raise NotImplementedError

    def baseline(self, key: Key) -> Tensor | float:
        """What hidden cells show when that code is asked for: one value, or a picture (C, H, W)."""
        return 0.0

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        """A clean training batch turned into a marked one of the same size.

        images float (B, C, H, W) in [0, 1]; masks float (B, H, W) of 0 and 1; progress in [0, 1) through the training.
        Here: the first `share` of the batch carries the trigger and its target, the rest stays as it is.
        """
        k = round(self.share * len(images))
        return Batch(
            torch.cat([self.trigger(images[:k], key), images[k:]]), torch.cat([self.target(masks[:k], key), masks[k:]])
        )

    def query(
        self, predictor: Predictor, key: Key, images: Tensor, trigger: Callable[[Tensor], Tensor] | None = None
    ) -> Answers:
        """Query a suspect with the owner's images, each with and without the trigger. It is seen only through the predictor.

        With `trigger`, the queries carry that instead of the key's own: to see what a wrong one tells.
        """
        benign = predictor(images)
        triggered = predictor(trigger(images) if trigger else self.trigger(images, key))
        return Answers(self.score(triggered, benign, key), self.score(benign, benign, key))
