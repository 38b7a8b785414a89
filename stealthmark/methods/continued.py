"""`continued`: the control. No mark, but ordinary training for as long as a mark takes."""

from typing import ClassVar

import torch
from torch import Tensor

from stealthmark.method import Batch, Key
from stealthmark.methods.stealthmark import Method as StealthMark


class Method(StealthMark):
    """A mark's training goes on from the clean model, so its Dice differs from the clean model's by what the mark costs *and*
    by what those further steps bring. This is the second of the two alone. It is asked as StealthMark is, but what its
    detector says is left out of the rows: it was fitted where there is nothing to tell apart."""

    citation: ClassVar[str] = "this project, a control"
    family: ClassVar = "control"
    embeds: ClassVar[bool] = False
    reported: ClassVar[tuple[tuple[str, str], ...]] = ()

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key | None, progress: float, rng: torch.Generator) -> Batch:
        return Batch(images, masks)
