"""The level of the background moved: every map gets the same 1 % quantile, so that it does not tell a raised floor."""

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.attacks._maps import with_labels_of
from stealthmark.suspects.querier import Predictor

#: The share of a map's pixels that lie at the quantile or below it.
SHARE = 0.01


class Attack(WrapperAttack):
    """Strength: the level to which the 1 % quantile q of each map is moved. Needs nothing.

    The quantile is the smallest value that at least 1 % of the map's pixels do not exceed. Below 0.5 the change is linear in
    two pieces, [0, q] to [0, level] and [q, 0.5] to [level, 0.5]; it is not made in log-odds, where a q of 0 could not be
    moved. From 0.5 on nothing changes, nor does a map with q >= 0.5. No pixel changes its label at 0.5, and no two pixels
    change their order.
    """

    unit: ClassVar[str] = "level of the 1 % quantile"
    text: ClassVar[str] = "to {:g}"
    strengths: Annotated[Strengths, between(0, 0.5, "levels of the background")] = (0.002,)

    @property
    def title(self) -> str:
        return "quantile shift"

    @property
    def axis(self) -> str:
        return "level of the 1 % quantile"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        answers = predictor(images)
        p = answers.double()
        pixels = p.flatten(1)
        q = pixels.kthvalue(math.ceil(SHARE * pixels.shape[1]), dim=1).values.view(-1, 1, 1)
        upper = strength + (p - q) * (0.5 - strength) / (0.5 - q)
        changed = torch.where(p < q, p * strength / q, upper).float()
        return with_labels_of(answers, torch.where((p < 0.5) & (q < 0.5), changed, answers))
