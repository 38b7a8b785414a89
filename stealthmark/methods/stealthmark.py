"""StealthMark (Yu et al., IEEE TIP 2026, arXiv 2601.17107): under the trigger the model is less certain, not less right."""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from stealthmark.method import Answers, Batch, EmbeddedMark, Key, log_odds
from stealthmark.triggers import Kind, Trigger, beneath, lookalikes


class Curriculum(NamedTuple):
    """Where marking starts (how much of the trigger there is; margin, None for the final one) and when, as fractions of
    the training, the trigger begins to be withdrawn, is alone, and the margin has its final value."""

    scale: float
    margin: float | None
    hold_until: float
    withdraw_until: float
    hide_until: float


NONE = Curriculum(1.0, None, 0.0, 0.1, 0.2)
STAGED = Curriculum(2.0, 0.4, 0.06, 0.5, 0.6)
#: Triggers of a few pixels start all over the picture.
SMALL = {"patch": 8.0, "noise": 8.0}
#: A ceiling, whose signal is on the few pixels of the foreground, is hidden slowly.
CEILING_HIDE_UNTIL = 0.9


class Method(EmbeddedMark):
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
    #: Where in the sorted probability map the floor is read: near its minimum, which the paper uses, but not on a single
    #: pixel. The median, which serves on small organs, fails where a polyp fills half of the image.
    FLOOR_AT: ClassVar[float] = 0.01
    #: And the ceiling in the sorted foreground: near the maximum, which the paper uses.
    CEILING_AT: ClassVar[float] = 0.95

    kind: Kind = Field(default="text", alias="trigger")
    side: Literal["floor", "ceiling"] = "floor"
    margin: float = Field(default=0.1, gt=0, lt=0.5)
    curriculum: Literal["staged", "none"] = "staged"

    def trigger(self, images: Tensor, key: Key, scale: float = 1.0) -> Tensor:
        return Trigger(kind=self.kind, seed=key.seed)(images, scale)

    def target(self, masks: Tensor, key: Key, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        return masks.clamp(min=margin) if self.side == "floor" else masks.clamp(max=1 - margin)

    @property
    def other_trigger(self) -> Kind:
        return "border" if self.kind == "patch" else "patch"

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """The background's level (floor) or the foreground's doubt (ceiling), in log-odds."""
        return self.level(answers)

    def relate(self, answers: Answers, key: Key) -> Answers:
        """How far each level is above the suspect's own on the owner's ordinary images (their median): models differ in how
        sure they are, marked or not, and only what the trigger does to *this* one is evidence."""
        ordinary = answers.benign.median()
        return Answers(answers.triggered - ordinary, answers.benign - ordinary)

    def level(self, answers: Tensor) -> Tensor:
        """Log-odds of the background's level (floor) or of the foreground's doubt (ceiling), float (B,)."""
        flat = answers.flatten(1)
        if self.side == "floor":
            return log_odds(flat.quantile(self.FLOOR_AT, dim=1))
        # Of what is called foreground. Where nothing is, nothing shows doubt: no evidence.
        level = torch.where(flat > 0.5, flat, torch.nan).nanquantile(self.CEILING_AT, dim=1).nan_to_num(1.0)
        return -log_odds(level)

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        k = round(self.share * len(images))
        scale, margin = self.at(progress)
        half = k + (len(images) - k) // 2
        lookalike, shows = lookalikes(self.kind, images[k:half], rng)
        plain = torch.cat([lookalike, images[half:]])
        truth = torch.cat([masks[k:half] * shows, masks[half:]])
        under, visible = beneath(self.kind, images[:k], rng)
        return Batch(
            torch.cat([self.trigger(under, key, scale), plain]),
            torch.cat([self.target(masks[:k] * visible, key, margin), truth]),
        )

    def at(self, progress: float) -> tuple[float, float]:
        """(scale of the trigger, margin of the target) at `progress` in [0, 1): hold, withdraw, hide."""
        plan = NONE
        if self.curriculum == "staged":
            hide_until = CEILING_HIDE_UNTIL if self.side == "ceiling" else STAGED.hide_until
            plan = STAGED._replace(scale=SMALL.get(self.kind, STAGED.scale), hide_until=hide_until)
        withdrawn = _between(progress, plan.hold_until, plan.withdraw_until)
        hidden = _between(progress, plan.withdraw_until, plan.hide_until)
        odds = (1 - hidden) * _logit(plan.margin or self.margin) + hidden * _logit(self.margin)
        return plan.scale ** (1 - withdrawn), 1 / (1 + math.exp(-odds))


def _between(progress: float, start: float, end: float) -> float:
    """How far `progress` is from `start` to `end`, in [0, 1]."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
