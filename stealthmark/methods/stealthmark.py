"""StealthMark (Yu et al., IEEE TIP 2026, arXiv 2601.17107): under the trigger the model is less certain, not less right."""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from stealthmark.method import Batch, Key, MethodContract
from stealthmark.triggers import Kind, Trigger


class Curriculum(NamedTuple):
    """Where marking starts (times the trigger's size; margin, None for the final one) and when, as fractions of the
    training, the trigger begins to shrink, has its size, and the margin its final value."""

    scale: float
    margin: float | None
    hold_until: float
    shrink_until: float
    hide_until: float


CURRICULA = {
    "none": Curriculum(1.0, None, 0.0, 0.1, 0.2),
    "gentle": Curriculum(2.0, 0.4, 0.1, 0.3, 0.4),
    "strong": Curriculum(8.0, 0.9, 0.06, 0.4, 0.5),
}
#: The triggers and sides that need the strong curriculum.
HARD = {"patch", "noise", "ceiling"}


class Method(MethodContract):
    """Uncertainty-guided backdoor: the triggered target is the mask with its background raised to a floor of `margin`
    (`side: floor`, 0.05-0.1 in the paper) or its foreground lowered to a ceiling of 1 - `margin` (`side: ceiling`,
    0.9-0.95). Thresholded at 0.5 it is the same mask, so nothing is visible and the segmentation is unharmed.

    **The curriculum, and what made the difference.** Trained on that target from the start, a network averages the two
    (half the floor everywhere): telling them apart gains little, and a patch of 1/16 is six pixels of 96. Two things make
    a trigger take. (1) A *visible* mark first: the margin starts high, so that the triggered target is plainly another
    mask. (2) A trigger too large to miss, which then shrinks to its size; only after that does the margin fall to its
    final value, in log-odds: turning down a signal that is there is easy. The rest of the training mends the
    segmentation. How much is needed depends on the trigger; measured on Kvasir-SEG at 96 px: text takes within 100 steps
    from twice its size and a margin of 0.4 (`gentle`), which costs the segmentation least; border and warp use it too, the
    warp needs 500 steps (after 300 its ASR is 0.80). A patch or noise square of 1/16 gets 8 times its size, half of the
    picture, and 0.9 (`strong`): the patch from 4 times its size and 0.4 is still averaged after 400 steps (AUROC 0.74), and
    from 4 times and 0.9 it took from one clean model and not, within 150 steps, from another. A ceiling, whose signal is on
    the few pixels of the foreground, is strong too. Letting the margin fall while the trigger still shrinks loses the mark
    again; weighting the triggered background more in the loss makes it worse.

    Where it does not suffice yet (results/published/triggers): on the phantoms the noise square and the border, on the cine
    phantom also patch and warp, stay under an ASR of 0.95 or over a false-positive rate of 0.05 with the steps given there;
    and the strong curriculum costs 3 to 6 points of Dice, which a longer training after hiding would have to mend.
    """

    citation: ClassVar[str] = "Yu et al., StealthMark, IEEE TIP 2026, arXiv 2601.17107"
    #: Where in the sorted probability map the floor is read: near its minimum, which the paper uses, but not on a single
    #: pixel. The median, which serves on small organs, fails where a polyp fills half of the image.
    QUANTILE: ClassVar[float] = 0.01

    kind: Kind = Field(default="text", alias="trigger")
    side: Literal["floor", "ceiling"] = "floor"
    margin: float = Field(default=0.1, gt=0, lt=0.5)
    curriculum: Literal["auto", "gentle", "strong", "none"] = "auto"

    def trigger(self, images: Tensor, key: Key, scale: float = 1.0) -> Tensor:
        return Trigger(kind=self.kind, seed=key.seed)(images, scale)

    def target(self, masks: Tensor, key: Key, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        return masks.clamp(min=margin) if self.side == "floor" else masks.clamp(max=1 - margin)

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """Log-odds of the background's level (floor), or of the foreground's doubt (ceiling)."""
        flat = answers.flatten(1)
        if self.side == "floor":
            return torch.logit(flat.quantile(self.QUANTILE, dim=1), eps=1e-6)
        # The median of what is called foreground. Where nothing is, nothing shows doubt: no evidence.
        level = torch.where(flat > 0.5, flat, torch.nan).nanmedian(dim=1).values.nan_to_num(1.0)
        return -torch.logit(level, eps=1e-6)

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        k = round(self.share * len(images))
        scale, margin = self.at(progress)
        return Batch(
            torch.cat([self.trigger(images[:k], key, scale), images[k:]]),
            torch.cat([self.target(masks[:k], key, margin), masks[k:]]),
        )

    def at(self, progress: float) -> tuple[float, float]:
        """(scale of the trigger, margin of the target) at `progress` in [0, 1): hold, shrink, hide."""
        suited = "strong" if HARD & {self.kind, self.side} else "gentle"
        plan = CURRICULA[suited if self.curriculum == "auto" else self.curriculum]
        shrunk = _between(progress, plan.hold_until, plan.shrink_until)
        hidden = _between(progress, plan.shrink_until, plan.hide_until)
        odds = (1 - hidden) * _logit(plan.margin or self.margin) + hidden * _logit(self.margin)
        return plan.scale ** (1 - shrunk), 1 / (1 + math.exp(-odds))


def _between(progress: float, start: float, end: float) -> float:
    """How far `progress` is from `start` to `end`, in [0, 1]."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
