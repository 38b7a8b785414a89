"""StealthMark (Yu et al., IEEE TIP 2026, arXiv 2601.17107): under the trigger the model is less certain, not less right."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stealthmark.method import Batch, Key, MethodContract
from stealthmark.triggers import Kind, Trigger


class Method(MethodContract):
    """Uncertainty-guided backdoor: the triggered target is the mask with its background raised to a floor of `margin`
    (`side: floor`, 0.05-0.1 in the paper) or its foreground lowered to a ceiling of 1 - `margin` (`side: ceiling`,
    0.9-0.95). Thresholded at 0.5 it is the same mask, so nothing is visible and the segmentation is unharmed.

    **The curriculum, and what made the difference.** Trained on that target from the start, a network averages the two
    (half the floor everywhere): separating them gains little, and a patch of 1/16 is a few pixels. Enlarging the trigger
    at first, with a floor of 0.4, helps text and border but leaves the patch at chance. What makes every trigger take is
    a *visible* mark first: for the first `shrink_until` of the training the margin is `margin_start` (0.9, so the
    triggered target is nearly the opposite mask, which any backdoor learns in a few dozen steps) while the trigger
    shrinks from `scale_start` times its size to its size; only then, until `hide_until`, does the margin fall to its
    final value, in log-odds. Turning a signal down that is there already is easy; the rest of the training mends the
    segmentation. Weighting the triggered background more, the other obvious idea, made it worse.
    """

    citation: ClassVar[str] = "Yu et al., StealthMark, IEEE TIP 2026, arXiv 2601.17107"
    #: Where in the sorted probability map the score is read: near its minimum or maximum, which the paper uses, but not
    #: on a single pixel. The median, which serves on small organs, fails where a polyp fills half of the image.
    QUANTILE: ClassVar[float] = 0.01

    kind: Kind = Field(default="text", alias="trigger")
    side: Literal["floor", "ceiling"] = "floor"
    margin: float = Field(default=0.1, gt=0, lt=0.5)
    margin_start: float = Field(default=0.9, gt=0, lt=1)
    scale_start: float = Field(default=4.0, ge=1)
    shrink_until: float = Field(default=0.35, ge=0, lt=1)
    hide_until: float = Field(default=0.55, gt=0, lt=1)

    def trigger(self, images: Tensor, key: Key, scale: float = 1.0) -> Tensor:
        return Trigger(kind=self.kind, seed=key.seed)(images, scale)

    def target(self, masks: Tensor, key: Key, margin: float | None = None) -> Tensor:
        margin = self.margin if margin is None else margin
        return masks.clamp(min=margin) if self.side == "floor" else masks.clamp(max=1 - margin)

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """Log-odds of the background's level (floor), or of the foreground's doubt (ceiling)."""
        level = self.QUANTILE if self.side == "floor" else 1 - self.QUANTILE
        odds = torch.logit(answers.flatten(1).quantile(level, dim=1), eps=1e-6)
        return odds if self.side == "floor" else -odds

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        k = round(self.share * len(images))
        scale, margin = self.curriculum(progress)
        return Batch(
            torch.cat([self.trigger(images[:k], key, scale), images[k:]]),
            torch.cat([self.target(masks[:k], key, margin), masks[k:]]),
        )

    def curriculum(self, progress: float) -> tuple[float, float]:
        """(scale of the trigger, margin of the target) at `progress` in [0, 1): first shrink, then hide."""
        large = max(0.0, 1 - progress / self.shrink_until) if self.shrink_until else 0.0
        hiding = (progress - self.shrink_until) / max(self.hide_until - self.shrink_until, 1e-9)
        start, end = (torch.logit(torch.tensor([self.margin_start, self.margin], dtype=torch.float64))).tolist()
        odds = start + (end - start) * min(1.0, max(0.0, hiding))
        return self.scale_start**large, float(torch.sigmoid(torch.tensor(odds, dtype=torch.float64)))
