"""Fine-tuning on the attacker's data, of all layers (FTAL) or the last one (FTLL); StealthMark's robustness test uses Adam at
1e-4."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from stealthmark.attack import Epochs, ModelAttack, Theft
from stealthmark.attacks._layers import last_layer
from stealthmark.method import Batch
from stealthmark.settings import Schedule
from stealthmark.training import fit


class Attack(ModelAttack):
    """Strength: epochs of fine-tuning on the true masks at a constant learning rate `lr`.

    `batch_norm`: `train` learns its statistics anew from the thief's batches, as fine-tuning usually does; `frozen` keeps
    the stolen ones. Marking trains on batches that are half triggered, so that new statistics alone can shift a marked
    model's answers: a thief would try both.

    `layers`: `all` of them, or the `last` one alone, the convolution or linear layer nearest to the answer. Then everything
    else is frozen, the statistics of the norms too, whatever `batch_norm` says.
    """

    unit: ClassVar[str] = "epochs"
    text: ClassVar[str] = "{:g} epochs"
    needs: ClassVar[tuple[str, ...]] = ("images", "masks")
    citation: ClassVar[str] = "Adi et al., Turning your weakness into a strength, USENIX Security 2018 (FTAL, FTLL)"
    strengths: Epochs = (1.0, 3.0, 5.0)
    lr: float = Field(default=1e-4, gt=0)
    batch: int = Field(default=16, ge=2)
    batch_norm: Literal["train", "frozen"] = "train"
    layers: Literal["all", "last"] = "all"

    @property
    def title(self) -> str:
        if self.layers == "last":
            return "fine-tuning (last layer)"
        return "fine-tuning" + " (norms frozen)" * (self.batch_norm == "frozen")

    @property
    def axis(self) -> str:
        if self.layers == "last":
            return "epochs of fine-tuning, last layer"
        return "epochs of fine-tuning" + ", batch norm frozen" * (self.batch_norm == "frozen")

    def run(self, theft: Theft) -> None:
        frozen = self._frozen(theft)
        schedule = Schedule(epochs=int(self.strengths[-1]), batch=self.batch, lr=self.lr, weight_decay=0.0, decay="constant")

        def after_epoch(epoch: int, tuned: nn.Module) -> None:
            if epoch in self.strengths:
                _train(frozen, True)  # what is kept is a network like any other, which the next step of a stack can train
                theft.keep(float(epoch), tuned, ())
                _train(frozen, False)

        _train(frozen, False)
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
            frozen_norms=self.batch_norm == "frozen" or self.layers == "last",
        )
        _train(frozen, True)

    def _frozen(self, theft: Theft) -> list[nn.Parameter]:
        """The parameters that are not trained, although they could be."""
        if self.layers == "all":
            return []
        trained = set(last_layer(theft.model, theft.images[:1].float() / 255).parameters())
        return [value for value in theft.model.parameters() if value.requires_grad and value not in trained]


def _train(parameters: list[nn.Parameter], whether: bool) -> None:
    for value in parameters:
        value.requires_grad_(whether)
