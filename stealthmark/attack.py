"""Attacks: the contract of what a thief does to a marked model, with data of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from stealthmark.plugin import Plugin

#: Called with (strength, suspect) for every suspect that an attack makes.
Keep = Callable[[float, nn.Module], None]
#: A network of the stolen model's architecture as anybody can have it, with the weights that everybody starts from.
Fresh = Callable[[], nn.Module]


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
    """What a thief does to remove a mark. `strengths` are the points of its curve; `unit` says what they count."""

    unit: ClassVar[str]
    strengths: Strengths

    def run(
        self, model: nn.Module, images: Tensor, masks: Tensor, seed: int, state: Path, run: str, keep: Keep, fresh: Fresh
    ) -> None:
        """Attack `model` (which may be changed) and call `keep(strength, suspect)` once for every strength, rising.

        images uint8 (N, C, H, W) and masks uint8 (N, H, W) are the attacker's own, disjoint from the owner's. `state`
        and `run` are for `training.fit`, so that an interrupted attack goes on. `fresh` is for an attack that trains a
        network of its own.
        """
        raise NotImplementedError
