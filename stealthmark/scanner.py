"""Scanners: the contract of somebody who has a model and asks whether it looks backdoored."""

from typing import ClassVar

from torch import Tensor, nn

from stealthmark.plugin import Plugin


class ScannerContract(Plugin):
    """A scanner knows no key. Its score of a model is ranked among those of the suite's models that were never marked."""

    citation: ClassVar[str] = ""
    title: ClassVar[str] = ""

    def facts(self) -> dict:
        """What tables must know of the scanner."""
        return {"name": self.name, "title": self.title or self.name, "citation": self.citation}

    def score(self, model: nn.Module, images: Tensor, masks: Tensor, seed: int) -> float:
        """How backdoored the model looks, higher = more. The same arguments give the same score.

        model: in eval mode, images float (B, C, H, W) in [0, 1] on its own device -> logits; images float (N, C, H, W) in
        [0, 1] and masks float (N, H, W) of 0 and 1, on the CPU, are the scanner's own.
        """
        raise NotImplementedError
