"""Fine-tuning of all layers on the attacker's data (FTAL); StealthMark's robustness test uses Adam at 1e-4."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from stealthmark.attack import Epochs, ModelAttack, Theft
from stealthmark.method import Batch
from stealthmark.settings import Schedule
from stealthmark.training import fit


class Attack(ModelAttack):
    """Strength: epochs of fine-tuning on the true masks at a constant learning rate `lr`.

    `batch_norm`: `train` learns its statistics anew from the thief's batches, as fine-tuning usually does; `frozen` keeps
    the stolen ones. Marking trains on batches that are half triggered, so that new statistics alone can shift a marked
    model's answers: a thief would try both.
    """

    unit: ClassVar[str] = "epochs"
    text: ClassVar[str] = "{:g} epochs"
    needs: ClassVar[tuple[str, ...]] = ("images", "masks")
    citation: ClassVar[str] = "Adi et al., Turning your weakness into a strength, USENIX Security 2018 (FTAL)"
    strengths: Epochs = (1.0, 3.0, 5.0)
    lr: float = Field(default=1e-4, gt=0)
    batch: int = Field(default=16, ge=2)
    batch_norm: Literal["train", "frozen"] = "train"

    @property
    def title(self) -> str:
        return "fine-tuning" + " (norms frozen)" * (self.batch_norm == "frozen")

    @property
    def axis(self) -> str:
        return "epochs of fine-tuning" + ", batch norm frozen" * (self.batch_norm == "frozen")

    def run(self, theft: Theft) -> None:
        schedule = Schedule(epochs=int(self.strengths[-1]), batch=self.batch, lr=self.lr, weight_decay=0.0, decay="constant")

        def after_epoch(epoch: int, tuned: nn.Module) -> None:
            if epoch in self.strengths:
                theft.keep(float(epoch), tuned, ())

        fit(
            theft.model,
            theft.images,
            theft.masks,
            schedule,
            lambda images, masks, progress, rng: Batch(images, masks),
            theft.seed,
            theft.state,
            theft.run,
            after_epoch,
            frozen_norms=self.batch_norm == "frozen",
        )
