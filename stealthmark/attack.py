"""Attacks: the contracts of what a thief does to a stolen model, with data of their own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field, field_validator, model_validator
from torch import Tensor, nn

from stealthmark.errors import UserError
from stealthmark.plugin import Plugin, make
from stealthmark.seeds import derive
from stealthmark.suspects.querier import Predictor


class Wrap(NamedTuple):
    """One wrapper around a stolen model: the attack's options, its strength, and the seed of what it draws."""

    attack: dict
    strength: float
    seed: int


#: Called with (strength, model, wrappers) for every suspect that an attack makes; None for the stolen model as it is.
Keep = Callable[[float, nn.Module | None, tuple[Wrap, ...]], None]


@dataclass(frozen=True)
class Theft:
    """What a thief has. `model`: the stolen network, which an attack may change; `images` uint8 (N, C, H, W) and `masks`
    uint8 (N, H, W): the thief's own, disjoint from the owner's; `fresh`: makes a network of the stolen model's architecture
    with the weights that everybody starts from.

    `keep(strength, model)` is called once for every strength, rising. `state` and `run` are for `training.fit`, so that an
    interrupted attack goes on. `changed`: an attack before this one has made `model`.
    """

    model: nn.Module
    images: Tensor
    masks: Tensor
    seed: int
    state: Path
    run: str
    fresh: Callable[[], nn.Module]
    keep: Keep
    changed: bool = False


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("strengths must rise and not repeat")
    return values


def _whole(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(value >= 1 and value.is_integer() for value in values):
        raise ValueError("strengths are whole numbers of epochs, 1 or more")
    return values


#: The points of an attack's curve, rising; and where they are epochs, whole ones.
Strengths = Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_rising)]
Epochs = Annotated[Strengths, AfterValidator(_whole)]


class AttackContract(Plugin):
    """What a thief does to remove a mark. Attacks derive from one of the kinds below, never from this.

    `strengths` are the points of its curve, in `unit`. `title`, `axis`, `scale` and `text` are how figures name the attack, its
    axis, and one strength (`text` of the strength times `scale`). `needs`: what the thief must have beside the model.
    `reported`: strengths that the paper under study reports.
    """

    family: ClassVar[Literal["model", "wrapper", "stack"]]
    unit: ClassVar[str]
    scale: ClassVar[float] = 1.0
    text: ClassVar[str] = "{:g}"
    needs: ClassVar[tuple[str, ...]] = ()
    citation: ClassVar[str] = ""
    reported: ClassVar[tuple[float, ...]] = ()
    strengths: Strengths

    @property
    def title(self) -> str:
        """The attack's name in figures."""
        return self.name

    @property
    def axis(self) -> str:
        """The label of its strength axis."""
        return f"{self.title} ({self.unit})"

    def facts(self) -> dict:
        """What tables and figures must know of the attack."""
        names = ("name", "title", "axis", "unit", "scale", "text", "citation")
        own = {name: getattr(self, name) for name in names}
        return {
            **own,
            "kind": self.family,
            "needs": list(self.needs),
            "strengths": list(self.strengths),
            "reported": list(self.reported),
        }

    def run(self, theft: Theft) -> None:
        """Attack, and keep one suspect for every strength, rising."""
        raise NotImplementedError


class ModelAttack(AttackContract):
    """An attack that makes a model: `run` calls `theft.keep(strength, model, ())`."""

    family: ClassVar = "model"


class WrapperAttack(AttackContract):
    """An attack that leaves the model as it is and changes what goes in or what comes out. Subclasses give `answer`."""

    family: ClassVar = "wrapper"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        """What the wrapped model answers: float (B, H, W) in [0, 1], for images float (B, C, H, W) in [0, 1].

        `predictor` is the stolen model; it may be asked as often as the wrapper likes. `rng` is the same for the same images.
        """
        raise NotImplementedError

    def run(self, theft: Theft) -> None:
        for strength in self.strengths:
            model = theft.model if theft.changed else None
            theft.keep(strength, model, (Wrap(self.options(), strength, theft.seed),))


class Stack(AttackContract):
    """A list of attacks: each starts from what the one before left. All but the last have one strength; the last one's
    strengths are the stack's. Attacks that make a model come before those that wrap one."""

    family: ClassVar = "stack"
    unit: ClassVar[str] = ""
    strengths: Strengths = ()
    steps: tuple[dict, ...] = Field(min_length=2)

    @field_validator("steps", mode="before")
    @classmethod
    def _named(cls, steps: Any) -> Any:
        return [{"name": step} if isinstance(step, str) else step for step in steps] if isinstance(steps, list) else steps

    @model_validator(mode="before")
    @classmethod
    def _last_ones_strengths(cls, options: object) -> object:
        """A stack has no strengths of its own: it takes those of its last step."""
        if not (isinstance(options, dict) and isinstance(options.get("steps"), list | tuple) and options["steps"]):
            return options
        try:
            last = make("attack", cls._named([*options["steps"]])[-1])
        except UserError as error:
            raise ValueError(str(error)) from None
        if tuple(options.get("strengths", last.strengths)) != last.strengths:
            raise ValueError("a stack has the strengths of its last step")
        return {**options, "strengths": last.strengths}

    @model_validator(mode="after")
    def _in_order(self) -> Stack:
        try:
            parts = self.parts()
        except UserError as error:
            raise ValueError(str(error)) from None
        for part in parts[:-1]:
            if len(part.strengths) != 1:
                raise ValueError(f"{part.name} has {len(part.strengths)} strengths; allowed: one, in all steps but the last")
        families = [part.family for part in parts]
        if "stack" in families or families != sorted(families):  # "model" sorts before "wrapper"
            raise ValueError(f"the steps are {', '.join(families)}; allowed: attacks that make a model, then wrappers")
        return self

    def parts(self) -> list[AttackContract]:
        """The attacks, in order."""
        return [make("attack", step) for step in self.steps]

    @property
    def title(self) -> str:
        return ", then ".join(part.title for part in self.parts())

    def facts(self) -> dict:
        last = self.parts()[-1].facts()
        needs = list(dict.fromkeys(need for part in self.parts() for need in part.needs))
        citation = "; ".join(dict.fromkeys(part.citation for part in self.parts() if part.citation))
        return {**last, "name": self.name, "title": self.title, "kind": self.family, "needs": needs, "citation": citation}

    def run(self, theft: Theft) -> None:
        *firsts, last = self.parts()
        wraps: tuple[Wrap, ...] = ()
        for number, part in enumerate(firsts):
            model, more = _left_by(part, theft, number)
            wraps += more
            if model is not None:
                theft = replace(theft, model=model, changed=True)
        keep = theft.keep
        last.run(replace(theft, keep=lambda strength, model, more: keep(strength, model, wraps + more)))


def _left_by(part: AttackContract, theft: Theft, number: int) -> tuple[nn.Module | None, tuple[Wrap, ...]]:
    """What one step of a stack leaves: its model, None where that is the one it was given, and its wrappers."""
    left: list[tuple[nn.Module | None, tuple[Wrap, ...]]] = []

    def keep(strength: float, model: nn.Module | None, wraps: tuple[Wrap, ...]) -> None:
        left.append((copy.deepcopy(model), wraps))

    state, run = theft.state.with_name(f"{theft.state.name}-{number}"), f"{theft.run} {number}"
    part.run(replace(theft, seed=derive(theft.seed, "step", number), state=state, run=run, keep=keep))
    ((model, wraps),) = left
    return model, wraps


def attack_options(attack: str | dict | list) -> dict:
    """An attack as a suite or a command gives it, a name, a mapping or a list, as options for `make`."""
    if isinstance(attack, list):
        return {"name": "stack", "steps": attack}
    return {"name": attack} if isinstance(attack, str) else attack


def wrapped(predictor: Predictor, wrap: Wrap) -> Predictor:
    """A predictor behind one wrapper. What is drawn for a batch depends on the wrapper's seed and the batch alone."""
    attack = make("attack", wrap.attack)

    def answer(images: Tensor) -> Tensor:
        digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
        rng = torch.Generator().manual_seed(derive(wrap.seed, wrap.strength, digest))
        return attack.answer(predictor, images, wrap.strength, rng)

    return answer
