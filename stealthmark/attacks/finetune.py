"""Fine-tuning of all layers on the attacker's data (FTAL); StealthMark's robustness test uses Adam at 1e-4."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from stealthmark.attack import AttackContract, Epochs, Fresh, Keep
from stealthmark.method import Batch
from stealthmark.training import Schedule, fit


class Attack(AttackContract):
    """Strength: epochs of fine-tuning on the true masks at a constant learning rate `lr`.

    `batch_norm`: `train` learns its statistics anew from the thief's batches, as fine-tuning usually does; `frozen` keeps
    the stolen ones. Marking trains on batches that are half triggered, so that new statistics alone can shift a marked
    model's answers: a thief would try both.
    """

    unit: ClassVar[str] = "epochs"
    strengths: Epochs = (1.0, 3.0, 5.0)
    lr: float = Field(default=1e-4, gt=0)
    batch: int = Field(default=16, ge=2)
    batch_norm: Literal["train", "frozen"] = "train"

    def run(
        self, model: nn.Module, images: Tensor, masks: Tensor, seed: int, state: Path, run: str, keep: Keep, fresh: Fresh
    ) -> None:
        schedule = Schedule(epochs=int(self.strengths[-1]), batch=self.batch, lr=self.lr, weight_decay=0.0, decay="constant")

        def after_epoch(epoch: int, tuned: nn.Module) -> None:
            if epoch in self.strengths:
                keep(float(epoch), tuned)

        frozen = self.batch_norm == "frozen"
        fit(model, images, masks, schedule, lambda i, m, p, r: Batch(i, m), seed, state, run, after_epoch, frozen)
