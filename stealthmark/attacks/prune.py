"""Global L1 pruning: the smallest convolution and linear weights of the whole network become zero (no retraining)."""

import copy
from typing import ClassVar

import torch
from pydantic import field_validator
from torch import nn
from torch.nn.utils import prune

from stealthmark.attack import ModelAttack, Strengths, Theft


class Attack(ModelAttack):
    """Strength: the fraction of weights removed. Needs no data."""

    unit: ClassVar[str] = "fraction of weights"
    scale: ClassVar[float] = 100.0
    text: ClassVar[str] = "{:g} %"
    citation: ClassVar[str] = "Han et al., Learning both weights and connections, NeurIPS 2015"
    reported: ClassVar[tuple[float, ...]] = (0.1, 0.3, 0.5)
    strengths: Strengths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    @field_validator("strengths")
    @classmethod
    def _fractions(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < value < 1 for value in values):
            raise ValueError("strengths are fractions of the weights, above 0 and below 1")
        return values

    @property
    def title(self) -> str:
        return "pruning"

    @property
    def axis(self) -> str:
        return "weights pruned (%)"

    def run(self, theft: Theft) -> None:
        for strength in self.strengths:
            # torch's global pruning flattens with `view`, which the channels-last weights of `fit` do not allow.
            pruned = copy.deepcopy(theft.model).to(memory_format=torch.contiguous_format)
            weights = [(m, "weight") for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
            prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=strength)
            for module, name in weights:
                prune.remove(module, name)
            theft.keep(strength, pruned, ())
