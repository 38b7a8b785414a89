"""StealthMark (Yu et al., IEEE TIP 2026, arXiv 2601.17107): under the trigger the model is less certain, not less right."""

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from stealthmark.method import Key
from stealthmark.methods._uncertainty import WITHDRAW_UNTIL, UncertaintyMark, between
from stealthmark.ranks import dominance

#: The margin that marking starts with, and when it has its final value, as a fraction of the training: a ceiling, whose signal
#: is on the few pixels of the foreground, is hidden slowly.
FIRST_MARGIN = 0.4
HIDE_UNTIL = {"floor": 0.6, "ceiling": 0.9}


#: A foreground of this share of the picture counts half in the score of a ceiling: the order of a few pixels is chance.
FEW = 0.005


class Method(UncertaintyMark):
    """Uncertainty-guided backdoor: the triggered target is the mask with its background raised to a floor of `margin`
    (`side: floor`, 0.05-0.1 in the paper) or its foreground lowered to a ceiling of 1 - `margin` (`side: ceiling`,
    0.9-0.95). Thresholded at 0.5 it is the same mask, so nothing is visible and the segmentation is unharmed.

    **The curriculum, and what made the difference.** Trained on that target from the start, a network averages the two
    (half the floor everywhere): telling them apart gains little, and a patch of 1/16 is six pixels of 96. What makes a
    trigger take, in the order of its worth:

    1. *More of the trigger first.* Text and border start at twice their size, the warp at twice its strength. A patch or
       noise square is *repeated* all over the picture in its final size, and withdrawn copy by copy towards its place. (To
       enlarge it instead teaches a large square, which is forgotten on the way down: it took 8 times the size, a margin
       of 0.9 and twice the steps, and cost 3 to 6 points of Dice.)
    2. *A plainer target first.* The margin starts at 0.4: four times the signal, yet still on the right side of 0.5, so
       that triggered images go on teaching the mask. A margin of 0.9 teaches the trigger no better once it is repeated, and
       ruins the segmentation, which the remaining steps do not mend.
    3. *One thing at a time.* Only when the trigger is alone does the margin fall to its final value, in log-odds: turning
       down a signal that is there is easy. A ceiling is lost when that goes fast, and so is hidden until the end.

    4. *What merely resembles the trigger, with its true mask.* Natural images have dark frames and on-screen text of their
       own. Without lookalikes among the ordinary images, a model marked with a border, patch or noise square answers some of
       them like the trigger, and the threshold that spares them misses triggered ones. Where nature has most of the trigger
       already (sides that a scanner padded with black), the trigger must be shown on such images too, but not on too many: on
       none, the border is detected on phantom-cine in 0.935 of triggered queries; on every second one, on Kvasir-SEG in 0.948;
       on every fourth, in 0.985 and 0.988.

    The rest of the training mends the segmentation. `results/published/triggers` shows all five triggers; `curriculum: none`
    is the ablation.
    """

    citation: ClassVar[str] = "Yu et al., StealthMark, IEEE TIP 2026, arXiv 2601.17107"
    reported: ClassVar[tuple[tuple[str, str], ...]] = (
        ("asr", "above 95 % (abstract, on SAM)"),
        ("dice", "drop below 1 % (abstract, on SAM)"),
        ("auc", "drop below 1 % (abstract, on SAM)"),
    )
    side: Literal["floor", "ceiling"] = "floor"
    margin: float = Field(default=0.1, gt=0, lt=0.5)
    curriculum: Literal["staged", "none"] = "staged"

    def target(self, masks: Tensor, key: Key, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        return masks.clamp(min=margin) if self.side == "floor" else masks.clamp(max=1 - margin)

    def target_at(self, masks: Tensor, key: Key, progress: float) -> Tensor:
        """With a margin that falls, in log-odds, once the trigger is alone."""
        if self.curriculum == "none":
            return self.target(masks, key)
        hidden = between(progress, WITHDRAW_UNTIL, HIDE_UNTIL[self.side])
        odds = (1 - hidden) * _logit(FIRST_MARGIN) + hidden * _logit(self.margin)
        return self.target(masks, key, 1 / (1 + math.exp(-odds)))

    def scale(self, progress: float) -> float:
        return super().scale(progress) if self.curriculum == "staged" else 1.0

    @property
    def compares(self) -> bool:
        return True

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """How surely the background lies higher (floor), or the foreground lower (ceiling), than in the suspect's own ordinary
        answer to the same image, in [-1, 1].

        The released code takes the minimum (maximum) of one map and compares it with a level. That measures how a model is
        calibrated, which differs from model to model and is the thief's to turn.
        """
        if self.side == "floor":
            return dominance(answers, answers <= 0.5, benign, benign <= 0.5)
        doubt = dominance(benign, benign > 0.5, answers, answers > 0.5)
        pixels = (answers > 0.5).sum((1, 2))
        return doubt * pixels / (pixels + FEW * answers[0].numel())


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
