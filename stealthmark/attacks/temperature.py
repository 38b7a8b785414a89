"""Temperature: log-odds are divided by a number before they are shown (Guo et al., ICML 2017)."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from stealthmark.attack import Strengths, WrapperAttack
from stealthmark.attacks._bounds import between
from stealthmark.attacks._maps import with_labels_of
from stealthmark.suspects.querier import Predictor


class Attack(WrapperAttack):
    """Strength: the temperature T; p becomes sigmoid(logit(p) / T). Below 1 answers look surer, above 1 less
    sure. Needs nothing.

    No pixel changes its label at 0.5, and no two pixels change their order.
    """

    unit: ClassVar[str] = "temperature"
    text: ClassVar[str] = "T = {:g}"
    citation: ClassVar[str] = "Guo et al., On calibration of modern neural networks, ICML 2017"
    strengths: Annotated[Strengths, between(0, 100, "temperatures")] = (0.5, 2.0)

    @property
    def title(self) -> str:
        return "temperature"

    @property
    def axis(self) -> str:
        return "temperature T"

    def answer(self, predictor: Predictor, images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
        p = predictor(images)
        return with_labels_of(p, (p.double().logit() / strength).sigmoid().float())
