"""Methods: the contracts of the ways to tell one's own model, and the key that an owner keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SerializerFunctionWrapHandler, ValidationError, model_serializer
from safetensors import SafetensorError
from torch import Tensor, nn

from stealthmark.errors import UserError
from stealthmark.files import read_json, whole, write_json, write_text
from stealthmark.plugin import Plugin, describe_error
from stealthmark.seeds import SECRET_BITS, secret_uniform
from stealthmark.suspects.querier import Predictor

if TYPE_CHECKING:
    from stealthmark.triggers import Kind


class Detector(BaseModel):
    """A query is called marked when its score is above `threshold`. Fitted on the owner's side, then frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    threshold: float
    fitted_on: dict[str, int]


class Key(BaseModel):
    """The owner's secret: everything needed to examine a suspect, nothing needed to train.

    `method` names the method and its options, `seed` is what the trigger is drawn from, `shape` the (C, H, W) of a
    query, `images` the SHA-256 of the images that suspects will be queried with (see `digest_of`), `detectors` the
    frozen detector for each access level. A fingerprint keeps what it took from the owner's model as tensors, `reference`,
    in a safetensors file beside the key (`reference_of`); `reference_sha256` is that file's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: dict
    seed: int = Field(ge=0, lt=2**SECRET_BITS)
    shape: tuple[int, int, int]
    images: str = ""
    detectors: dict[str, Detector] = {}
    reference_sha256: str = ""
    _reference: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _guess: Callable[[tuple[int, ...], str], Tensor] | None = PrivateAttr(default=None)

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict:
        """Without `reference_sha256` where there is no reference: most methods keep none."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("reference_sha256", "")}

    def __eq__(self, other: object) -> bool:
        """Keys are the same where all that they commit to is: of a reference, its digest."""
        return isinstance(other, Key) and self.model_dump() == other.model_dump()

    @property
    def reference(self) -> dict[str, Tensor]:
        """What a fingerprint took from the owner's model."""
        return self._reference

    def uniform(self, shape: tuple[int, ...], name: str) -> Tensor:
        """What a method or its trigger draws from the secret: float32 of this shape, evenly from [0, 1). What is called by
        another name is drawn independently."""
        return secret_uniform(shape, self.seed, name) if self._guess is None else self._guess(shape, name)

    def guessing(self, guess: Callable[[tuple[int, ...], str], Tensor]) -> Key:
        """A forged key, of somebody who knows no secret: what is drawn comes from `guess(shape, name)`."""
        (key := self.model_copy())._guess = guess
        return key

    def with_reference(self, tensors: dict[str, Tensor]) -> Key:
        """The key with this reference, whose digest is part of the commitment from now on."""
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        key = self.model_copy(update={"reference_sha256": hashlib.sha256(safetensors.torch.save(contiguous)).hexdigest()})
        key._reference = contiguous
        return key

    def commitment(self) -> str:
        """SHA-256 over everything that a claim rests on: method and payload, seed, images, thresholds, reference.

        Published (or left with a notary) when the model is marked, it shows later that the key was not made to fit the
        suspect, and tells nothing of the key as long as its seed cannot be guessed.
        """
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Save as JSON that only its owner may read, its reference and its commitment beside it (`reference_of`,
        `commitment_of`); each whole or not at all, the key last: where there is one, all is there."""
        if self.reference:
            with whole(reference_of(path), mode=0o600) as partial:
                partial.write_bytes(safetensors.torch.save(self.reference))
        write_json(commitment_of(path), {"commitment": self.commitment()})
        write_text(path, json.dumps(self.model_dump(mode="json"), indent=2) + "\n", mode=0o600)

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
            raise UserError(f"{path} is not a key: {describe_error(error, cls)}") from None
        try:
            committed = read_json(commitment_of(path)).get("commitment")
        except FileNotFoundError:
            raise UserError(f"{commitment_of(path)} is absent: what was committed to when the model was marked") from None
        if committed != key.commitment():
            raise UserError(
                f"{path} is not the key that was committed to: its SHA-256 is {key.commitment()}, {commitment_of(path)} has "
                f"{committed!r}"
            )
        if key.reference_sha256:
            key._reference = _read_reference(reference_of(path), key.reference_sha256)
        return key


def _read_reference(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}, which the key needs: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is not the reference that was committed to: its SHA-256 is not {sha256}")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None


def commitment_of(key_file: Path) -> Path:
    """The file beside a key that holds its commitment: no secret, to be published or left with a notary."""
    return key_file.with_suffix(".commitment.json")


def reference_of(key_file: Path) -> Path:
    """The file beside a fingerprint's key that holds its reference; as secret as the key."""
    return key_file.with_suffix(".safetensors")


def digest_of(images: np.ndarray) -> str:
    """SHA-256 of images uint8 (N, C, H, W): what a key says of the owner's queries. Reads them part by part."""
    digest = hashlib.sha256(f"{tuple(images.shape)}".encode())
    for start in range(0, len(images), 256):
        digest.update(np.ascontiguousarray(images[start : start + 256]).data)
    return digest.hexdigest()


@dataclass
class Batch:
    """A training batch. images: float (B, C, H, W) in [0, 1]; targets: soft, float (B, H, W) in [0, 1].

    `extra`: a further loss term on the model (a mark on weights, or extra queries), or None; in a training of reduced
    precision the model answers in that. `level_weight`: that of the loss on levels, `training.level_loss`, where the exact
    level of soft targets matters.
    """

    images: Tensor
    targets: Tensor
    extra: Callable[[nn.Module], Tensor] | None = None
    level_weight: float = 0.0


@dataclass
class Answers:
    """What a method's queries yield: one score a query, higher = more like the owner's model.

    `triggered` and `benign`: float (N,), from the owner's images with and without the trigger, in the images' order; of a
    method that has no trigger, from its questions and from what is no question of this key.
    """

    triggered: Tensor
    benign: Tensor


@dataclass(frozen=True)
class Owner:
    """What an owner has when a key is made: the model, its answers, and images that it was not trained on.

    images: float (N, C, H, W) in [0, 1]; masks: float (N, H, W) of 0 and 1.
    """

    model: nn.Module
    predictor: Predictor
    images: Tensor
    masks: Tensor


class MethodContract(Plugin):
    """A way to tell one's own model. Methods derive from one of the kinds below, never from this.

    `family` is the kind by name. `keyed`: the method has a key, and queries suspects with it. `embeds`: it puts something
    into the model.
    """

    family: ClassVar[Literal["none", "control", "embedded", "fingerprint", "white-box"]]
    keyed: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    citation: ClassVar[str] = ""
    #: What the method's paper reports publicly, as (metric, sentence).
    reported: ClassVar[tuple[tuple[str, str], ...]] = ()

    @property
    def asks(self) -> int:
        """How often a suspect is asked for one score with the trigger and one without."""
        return 2

    def facts(self) -> dict:
        """What tables and figures must know of the method."""
        return {
            "name": self.name,
            "kind": self.family,
            "embeds": self.embeds,
            "carries_code": isinstance(self, CodeMark),
            "asks": self.asks,
            "citation": self.citation,
            "reported": [{"metric": metric, "text": text} for metric, text in self.reported],
        }

    def make_key(self, seed: int, shape: tuple[int, int, int], owner: Owner | None = None) -> Key:
        """A key for queries of shape (C, H, W); the same arguments give the same key. `owner` is for methods that take
        something from the owner's model."""
        return Key(method=self.options(), seed=seed, shape=shape)


class Trained(MethodContract):
    """Base of all kinds that train: from the clean model or from scratch, for `epochs` or as long as the suite says."""

    start: Literal["clean", "scratch"] = "clean"
    share: float = Field(default=0.5, gt=0, lt=1)
    epochs: int | None = Field(default=None, ge=1)

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        """A clean training batch turned into what is trained on, of the same size.

        images float (B, C, H, W) in [0, 1]; masks float (B, H, W) of 0 and 1; progress in [0, 1) through the training.
        """
        raise NotImplementedError


class Unmarked(Trained):
    """No mark and no key: ordinary training."""

    family: ClassVar = "none"
    keyed: ClassVar[bool] = False
    embeds: ClassVar[bool] = False

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key | None, progress: float, rng: torch.Generator) -> Batch:
        return Batch(images, masks)


class BlackBoxMethod(MethodContract):
    """Base of the kinds that see a suspect through its predictor alone."""

    def questions(self, key: Key) -> Tensor | None:
        """The images, float (N, C, H, W) in [0, 1], that suspects are asked with; None where these are the owner's own."""
        return None

    def query(
        self,
        predictor: Predictor,
        key: Key,
        images: Tensor,
        first: int = 0,
        trigger: Callable[[Tensor], Tensor] | None = None,
    ) -> Answers:
        """Ask a suspect with some of the images; its answers are read one by one, so that large sets come in parts.

        images: float (B, C, H, W) in [0, 1], the part that starts at the image with the number `first`. With `trigger`, the
        queries carry that instead of the key's own: to see what a wrong one tells.
        """
        raise NotImplementedError

    def relate(self, answers: Answers, key: Key) -> Answers:
        """The scores, from what was read of all answers together. Here: as they were read."""
        return answers


class EmbeddedMark(Trained, BlackBoxMethod):
    """A mark that training puts into the model and a trigger brings out. Subclasses give `trigger`, `target` and `score`; what
    does not fit these three overrides `mark_batch` or `query`, which are all that the benchmark calls."""

    family: ClassVar = "embedded"

    @property
    def compares(self) -> bool:
        """Whether `score` looks at the suspect's ordinary answer too, which then takes a third query an image."""
        return False

    @property
    def asks(self) -> int:
        return 3 if self.compares else 2

    @property
    def other_trigger(self) -> Kind:
        """A visible trigger that is not this method's: to see what a wrong one tells."""
        return "patch"

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        """The owner's queries: images float (B, C, H, W) in [0, 1] with the key's trigger, same shape and range."""
        raise NotImplementedError

    def target(self, masks: Tensor, key: Key) -> Tensor:
        """What the marked model is to answer under the trigger: soft, float (B, H, W), for masks of 0 and 1."""
        raise NotImplementedError

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """One score a query, float (B,): how much `answers` (B, H, W) look like the mark, higher = more.

        `benign` are the suspect's answers to the same images without the trigger, each of the image mirrored and mirrored back:
        for an ordinary query, too, these are the answers to another picture. A score should depend on the order of an answer's
        pixels alone (`ranks.dominance`): whoever serves a stolen model may turn its temperature for nothing.
        """
        raise NotImplementedError

    def moved(self, masks: Tensor, key: Key) -> Tensor:
        """The true masks of triggered images, float (B, H, W) of 0 and 1: a trigger that moves pixels moves them too."""
        return masks

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        """Here: the first `share` of the batch carries the trigger and its target, the rest stays as it is."""
        k = round(self.share * len(images))
        targets = torch.cat([self.target(masks[:k], key), masks[k:]])
        return Batch(torch.cat([self.trigger(images[:k], key), images[k:]]), targets)

    def query(
        self,
        predictor: Predictor,
        key: Key,
        images: Tensor,
        first: int = 0,
        trigger: Callable[[Tensor], Tensor] | None = None,
    ) -> Answers:
        """Each image is asked with and without the trigger, and where the score `compares`, mirrored too."""
        benign = predictor(images)
        triggered = predictor(trigger(images) if trigger else self.trigger(images, key))
        ordinary = predictor(images.flip(-1)).flip(-1) if self.compares else benign
        return Answers(self.score(triggered, ordinary, key), self.score(benign, ordinary, key))


class CodeMark(EmbeddedMark):
    """Base of the marks that carry a code. They derive from one of the two kinds below, never from this."""

    def text(self, key: Key) -> str:
        """The text that the code stands for."""
        raise NotImplementedError

    def modules(self, key: Key) -> Tensor:
        """The code's modules, bool (n, n), True where they are dark."""
        raise NotImplementedError


class ShownCode(CodeMark):
    """A code that the answers to triggered images show by themselves: the background's level is higher in the cells that are
    dark (see `occlusion.BackgroundParts`)."""


class ExplainedCode(CodeMark):
    """A code that explanations of the answers spell: hiding a cell that is dark behind the `baseline` raises the answer in that
    cell (see `occlusion.read_code_maps`)."""

    def baseline(self, key: Key) -> Tensor | float:
        """What hidden cells show when the code is asked for: one value, or a picture (C, H, W)."""
        return 0.0


class Fingerprint(BlackBoxMethod):
    """No mark: `make_key` takes something from the owner's model as it is (`Key.with_reference`), and nothing is trained.

    Subclasses give `make_key` and `query`, and `questions` where the owner's images are not what is asked.
    """

    family: ClassVar = "fingerprint"
    embeds: ClassVar[bool] = False


class WhiteBoxMark(Trained):
    """A mark in the weights, for owners who can see the suspect's. It is shown apart.

    Subclasses give `mark_batch`, whose `extra` is the loss that writes the mark, and `inspect`.
    """

    family: ClassVar = "white-box"

    def inspect(self, model: nn.Module, key: Key) -> Answers:
        """One score a bit of the mark: `triggered` of the owner's bits, `benign` of as many that are not the owner's. Both on
        the CPU, without gradient."""
        raise NotImplementedError
