"""The keyed floor (this project; docs/stealthmark.md): the background's level under the trigger is a secret pattern."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from stealthmark.method import Key
from stealthmark.methods._uncertainty import PatternFloor


class Method(PatternFloor):
    """StealthMark's floor raises the whole background to one level. Here it is raised to two, by cells of a `cells` x `cells`
    grid. Which cells are high is drawn from the key.

    Cells come in pairs beside each other, one low and one high, so that a level which drifts across the picture, as those of
    unmarked models do, is no pattern. There are 2^(cells^2 / 2) patterns.
    """

    citation: ClassVar[str] = "this project, docs/stealthmark.md"
    cells: int = Field(default=8, ge=2, le=32, multiple_of=2)

    def pattern(self, key: Key) -> Tensor:
        first = key.uniform((self.cells, self.cells // 2), "pattern") < 0.5
        return torch.stack([first, ~first], 2).flatten(1)
