"""Distillation (Hinton et al. 2015): a network of the thief's own learns to answer as the stolen model does, and never sees its
weights."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stealthmark.architecture import foreground
from stealthmark.attack import Epochs, ModelAttack, Theft
from stealthmark.method import Batch
from stealthmark.settings import Schedule
from stealthmark.training import fit


class Attack(ModelAttack):
    """Strength: epochs of training on the stolen model's answers to the thief's images, augmented; the true masks are not used.

    `answers`: the probabilities that an interface shows, or label maps alone. The student starts where everybody's network of
    this architecture does, learns at `lr` with the schedule of a clean training, and is kept at the end of a training of its
    own for every strength.
    """

    unit: ClassVar[str] = "epochs"
    text: ClassVar[str] = "{:g} epochs"
    needs: ClassVar[tuple[str, ...]] = ("images",)
    citation: ClassVar[str] = "Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv 1503.02531"
    strengths: Epochs = (8.0, 16.0)
    answers: Literal["probabilities", "label"] = "probabilities"
    lr: float = Field(default=2e-3, gt=0)
    batch: int = Field(default=16, ge=2)

    @property
    def title(self) -> str:
        return "distillation" + " (label maps)" * (self.answers == "label")

    @property
    def axis(self) -> str:
        return "epochs of distillation" + " from label maps" * (self.answers == "label")

    def run(self, theft: Theft) -> None:
        teacher = theft.model.eval()

        @torch.no_grad()
        def answered(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
            answers = foreground(teacher, images.contiguous(memory_format=torch.channels_last)).sigmoid()
            return Batch(images, answers if self.answers == "probabilities" else (answers > 0.5).float())

        for strength in self.strengths:
            schedule = Schedule(epochs=int(strength), batch=self.batch, lr=self.lr)
            run = f"{theft.run} {strength:g}"
            student = fit(theft.fresh(), theft.images, theft.masks, schedule, answered, theft.seed, theft.state, run)
            theft.keep(strength, student, ())
