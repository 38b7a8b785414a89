"""Global L1 pruning: the smallest convolution and linear weights of the whole network become zero (no retraining)."""

import copy
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn.utils import prune

from stealthmark.attack import AttackContract, Fresh, Keep, Strengths


class Attack(AttackContract):
    """Strength: the fraction of weights removed. Needs no data."""

    unit: ClassVar[str] = "fraction of weights"
    strengths: Strengths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    @field_validator("strengths")
    @classmethod
    def _fractions(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < value < 1 for value in values):
            raise ValueError("strengths are fractions of the weights, above 0 and below 1")
        return values

    def run(
        self, model: nn.Module, images: Tensor, masks: Tensor, seed: int, state: Path, run: str, keep: Keep, fresh: Fresh
    ) -> None:
        for strength in self.strengths:
            # torch's global pruning flattens with `view`, which the channels-last weights of `fit` do not allow.
            pruned = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
            weights = [(m, "weight") for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
            prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=strength)
            for module, name in weights:
                prune.remove(module, name)
            keep(strength, pruned)
