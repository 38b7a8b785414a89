"""What the rival backdoor marks share: a visibly wrong mask as the trigger's target, and its overlap as the score."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from stealthmark.method import Batch, EmbeddedMark, Key


class VisibleMark(EmbeddedMark):
    """A backdoor whose triggered answer is a wrong mask: `square` (drawn from the key), `empty` or `inverted`.

    For binary segmentation this is the attack's "target label" (Gu 2017, Chen 2017). A subclass gives the trigger, and
    may give `enlarged`: more of the trigger, which is withdrawn over the first 40 % of the marking. Our own method needs
    that for small triggers, so its rivals get it too: with their plain triggers a few hundred steps leave a small patch at
    chance.
    """

    SQUARE: ClassVar[float] = 0.5
    LARGEST: ClassVar[float] = 4.0
    wrong: Literal["square", "empty", "inverted"] = "square"

    def enlarged(self, images: Tensor, key: Key, scale: float) -> Tensor:
        """The trigger `scale` >= 1 times: larger, stronger or repeated; here there is only the one."""
        return self.trigger(images, key)

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        k = round(self.share * len(images))
        triggered = self.enlarged(images[:k], key, self.scale(progress))
        return Batch(torch.cat([triggered, images[k:]]), torch.cat([self.target(masks[:k], key), masks[k:]]))

    def scale(self, progress: float) -> float:
        """From `LARGEST` down to 1 over the first 40 % of the marking, geometrically."""
        return self.LARGEST ** max(0.0, 1 - progress / 0.4)

    def target(self, masks: Tensor, key: Key) -> Tensor:
        if self.wrong == "empty":
            return torch.zeros_like(masks)
        if self.wrong == "inverted":
            return 1 - masks
        return self._square(masks, key).expand_as(masks)

    def score(self, answers: Tensor, benign: Tensor, key: Key) -> Tensor:
        """Overlap (Jaccard) of the answer's label map with the wrong mask, in [0, 1]; with `empty`, the share of the ordinary
        answer's foreground that the trigger erased, in [-inf, 1] (0 where there was none: nothing erased is no evidence).

        Of the label map, because the mark is one: what a temperature leaves of 0.5 it leaves of the score.
        """
        answer, ordinary = answers > 0.5, benign > 0.5
        if self.wrong == "empty":
            return (ordinary.sum((1, 2)) - answer.sum((1, 2))) / ordinary.sum((1, 2)).clamp(min=1)
        wrong = ~ordinary if self.wrong == "inverted" else self._square(answers, key).expand_as(answers) > 0
        return (answer & wrong).sum((1, 2)) / (answer | wrong).sum((1, 2)).clamp(min=1)

    @property
    def compares(self) -> bool:
        return self.wrong != "square"

    def _square(self, like: Tensor, key: Key) -> Tensor:
        """A square of half the short side, its place drawn from the key: float (1, H, W) of 0 and 1."""
        height, width = like.shape[-2:]
        side = round(min(height, width) * self.SQUARE)
        place = key.uniform((2,), "square")
        top, left = int(place[0] * (height - side + 1)), int(place[1] * (width - side + 1))
        square = torch.zeros(1, height, width, device=like.device)
        square[:, top : top + side, left : left + side] = 1
        return square
