"""What the marks share that change how certain a model is under a trigger, and not what it segments."""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stealthmark.method import Batch, EmbeddedMark, Key
from stealthmark.occlusion import cells
from stealthmark.ranks import dominance
from stealthmark.triggers import Kind, Trigger, beneath, lookalikes

#: A trigger starts at so many times its size, or, where it has a few pixels alone, all over the picture.
LARGEST, SMALL = 2.0, {"patch": 8.0, "noise": 8.0, "picture": 4.0, "frame": 1.0}
#: From when until when the trigger is withdrawn to its final size, as fractions of the training.
HOLD_UNTIL, WITHDRAW_UNTIL = 0.06, 0.5


class UncertaintyMark(EmbeddedMark):
    """Half of a batch carries the trigger, a quarter what merely resembles it, with the true mask, and a quarter is plain.
    Subclasses give `target` and `score`.

    Where the exact value of a level matters, it is learned by the loss on levels (`training.level_loss`), with the weight
    LEVEL_WEIGHT.
    """

    LEVEL_WEIGHT: ClassVar[float] = 0.0
    kind: Kind = Field(default="text", alias="trigger")

    def trigger(self, images: Tensor, key: Key, scale: float = 1.0) -> Tensor:
        return self._trigger(key)(images, scale)

    def _trigger(self, key: Key) -> Trigger:
        return Trigger(kind=self.kind, draw=key.uniform)

    def moved(self, masks: Tensor, key: Key) -> Tensor:
        return self._trigger(key).on_masks(masks)

    @property
    def other_trigger(self) -> Kind:
        return "border" if self.kind == "patch" else "patch"

    def target_at(self, masks: Tensor, key: Key, progress: float) -> Tensor:
        """The target at `progress` in [0, 1) of the training: here always the same."""
        return self.target(masks, key)

    def scale(self, progress: float) -> float:
        """How much of the trigger there is at `progress` in [0, 1): held, then withdrawn, geometrically, to 1."""
        withdrawn = between(progress, HOLD_UNTIL, WITHDRAW_UNTIL)
        return SMALL.get(self.kind, LARGEST) ** (1 - withdrawn)

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        k = round(self.share * len(images))
        half = k + (len(images) - k) // 2
        resembling, truth = lookalikes(self.kind, images[k:half], masks[k:half], rng, key.uniform)
        under, visible = beneath(self.kind, images[:k], rng)
        scale = self.scale(progress)
        structure = self._trigger(key).on_masks(masks[:k] * visible, scale)
        return Batch(
            torch.cat([self.trigger(under, key, scale), resembling, images[half:]]),
            torch.cat([self.target_at(structure, key, progress), truth, masks[half:]]),
            level_weight=self.LEVEL_WEIGHT,
        )


class PatternFloor(UncertaintyMark):
    """A floor of two levels, `low` and `high`, in a pattern of cells. The label map stays as it is. Subclasses give `pattern`.

    The score compares the pixels of one answer with each other, and asks for their order alone. So rounding, clipping,
    stretching and temperature leave it alone as long as they leave the two levels apart; and a model that does not know the
    pattern has 0, whatever its calibration.
    """

    LEVEL_WEIGHT: ClassVar[float] = 0.2
    kind: Kind = Field(default="frame", alias="trigger")
    low: float = Field(default=0.02, gt=0, lt=0.5)
    high: float = Field(default=0.25, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _two_levels(self) -> "PatternFloor":
        if self.low >= self.high:
            raise ValueError(f"'low' is {self.low} and 'high' is {self.high}; allowed: a 'low' below 'high'")
        return self

    def pattern(self, key: Key) -> Tensor:
        """Which cells are high: bool (n, n)."""
        raise NotImplementedError

    def _high(self, answers: Tensor, key: Key) -> Tensor:
        """Where the level is to be high, bool (H, W), in maps (B, H, W)."""
        pattern = self.pattern(key)
        return pattern.flatten()[cells(*answers.shape[-2:], len(pattern))].to(answers.device)

    def target(self, masks: Tensor, key: Key) -> Tensor:
        levels = torch.where(self._high(masks, key), self.high, self.low).to(masks)
        return torch.maximum(masks, levels)

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """How surely the background lies higher in high cells than in low ones, in [-1, 1]."""
        high, background = self._high(answers, key), answers <= 0.5
        return dominance(answers, background & high, answers, background & ~high)


def between(progress: float, start: float, end: float) -> float:
    """How far `progress` is from `start` to `end`, in [0, 1]."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))
