"""Distillation (Hinton et al. 2015): a network of the thief's own learns to answer as the stolen model does, and never sees its
weights."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stealthmark.attack import AttackContract, Epochs, Fresh, Keep
from stealthmark.method import Batch
from stealthmark.training import Schedule, fit


class Attack(AttackContract):
    """Strength: epochs of training on the stolen model's answers to the thief's images, augmented; the true masks are not used.

    `answers`: the probabilities that an interface shows, or label maps alone. The student starts where everybody's network of
    this architecture does, learns at `lr` with the schedule of a clean training, and is kept at the end of a training of its
    own for every strength.
    """

    unit: ClassVar[str] = "epochs"
    strengths: Epochs = (8.0, 16.0)
    answers: Literal["probabilities", "label"] = "probabilities"
    lr: float = Field(default=2e-3, gt=0)
    batch: int = Field(default=16, ge=2)

    def run(
        self, model: nn.Module, images: Tensor, masks: Tensor, seed: int, state: Path, run: str, keep: Keep, fresh: Fresh
    ) -> None:
        teacher = model.eval()

        @torch.no_grad()
        def answered(shown: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
            told = teacher(shown.contiguous(memory_format=torch.channels_last))[:, 0].sigmoid()
            return Batch(shown, told if self.answers == "probabilities" else (told > 0.5).float())

        for strength in self.strengths:
            schedule = Schedule(epochs=int(strength), batch=self.batch, lr=self.lr)
            here = f"{run} {strength:g}"
            keep(strength, fit(fresh(), images, masks, schedule, answered, seed, state, here))
