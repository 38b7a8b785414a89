"""Access levels: what a suspect's interface shows of its probabilities."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from stealthmark.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def _stretched(p: "Tensor") -> "Tensor":
    """Each map float (H, W) of a batch stretched to [0, 1], as PraNet's evaluation does (Fan et al., MICCAI 2020); a constant
    one, which has nothing to stretch, is 0."""
    low, high = p.amin((1, 2), keepdim=True), p.amax((1, 2), keepdim=True)
    return ((p - low) / (high - low).where(high > low, 1.0)).clamp(0, 1)


#: Level -> what it shows of probabilities, float (B, H, W) in [0, 1]. Of logits, the owner takes the sigmoid.
LEVELS: "dict[str, Callable[[Tensor], Tensor]]" = {
    "logits": lambda p: p,
    "probabilities": lambda p: p,
    "rounded-0.01": lambda p: (p * 100).round() / 100,
    "rounded-0.1": lambda p: (p * 10).round() / 10,
    "8-bit": lambda p: (p * 255).round() / 255,
    "clipped-0.1": lambda p: p.where(p >= 0.1, 0.0).where(p <= 0.9, 1.0),
    "min-max": _stretched,
    "label": lambda p: (p > 0.5).float(),
}
#: Segmentation is scored at this level.
PROBABILITIES = "probabilities"
#: What a white-box mark is shown. No interface: it stands where others have their access level.
WEIGHTS = "weights"


def at_access(predictor: "Callable[[Tensor], Tensor]", level: str) -> "Callable[[Tensor], Tensor]":
    """The same suspect behind an interface that shows less. `level` is one of `LEVELS`; UserError for any other."""
    if level not in LEVELS:
        raise UserError(f"unknown access level {level!r}; allowed: {', '.join(LEVELS)}")
    return lambda images: LEVELS[level](predictor(images))
