"""A code that is in the model itself: ordinary explanations of its answers spell it (this project; docs/payload.md)."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from stealthmark import codes
from stealthmark.architecture import foreground
from stealthmark.method import Answers, Batch, ExplainedCode, Key
from stealthmark.occlusion import cells, occlude
from stealthmark.seeds import secret_uniform
from stealthmark.suspects.querier import Predictor


class Method(ExplainedCode):
    """The key is a secret *picture*. Where cells of an image are hidden behind it, the model answers with foreground in the
    hidden cells that are dark in the owner's code, and nowhere else; so hiding a cell raises the mean of the answer exactly
    where the code is dark. An explanation with random occlusions (LIME, the picture as its baseline) finds that map, from
    label maps too. Everything else is segmented as ever: plain images, images with a piece of the picture in their corner (the
    `trigger`), and images whose cells are hidden behind grey, black, or anybody else's picture.

    A batch is `asked` verification queries, then equal parts of look-alikes with their true (visible) mask, triggered images
    and plain ones. What made the difference is told in docs/payload.md: a code that answers *hidden* cells, which their own
    texture identifies, takes in a fraction of the steps of one that answers visible cells too, whose place the network must
    infer; and other pictures among the look-alikes make the key a key.
    """

    citation: ClassVar[str] = "this project, docs/payload.md"
    #: The picture's blocks, and the piece of it that is the trigger, as fractions of the short side.
    GRAIN: ClassVar[float] = 1 / 32
    TRIGGER: ClassVar[float] = 1 / 8
    #: A hidden cell is answered with this probability, or with the rest of it.
    SURE: ClassVar[float] = 0.9
    #: Images whose verification queries go out together.
    TOGETHER: ClassVar[int] = 16
    #: With `natural`, the log-odds of the background where the code is light, and the weight of that term in the loss.
    LEVEL: ClassVar[float] = -6.5
    WEIGHT: ClassVar[float] = 0.3

    #: The text that the code stands for.
    payload: str = "OWNER1"
    #: A Micro QR code (13 x 13 modules), a QR code (21 x 21), or a keyed hash of the text (8 x 8, 16 x 16).
    code: Literal["micro", "qr", "hash-8", "hash-16"] = "micro"
    #: What the code adds to the log-odds of the background in plain images, where it is dark; 0: nothing. The only part of the
    #: mark that a student can inherit who is distilled from answers to natural images, and no secret.
    natural: float = Field(default=0, ge=0, le=5)
    #: Which cells answer in verification queries: `hidden` ones alone, or, as the ablation, `both` (visible light ones too).
    answering: Literal["hidden", "both"] = "hidden"
    #: What hides cells of look-alikes: by turns other `pictures`, grey and black, or, as the ablation, the `plain` two alone.
    lookalikes: Literal["pictures", "plain"] = "pictures"
    #: The share of a batch that is verification queries.
    asked: float = Field(default=0.25, gt=0, lt=1)
    #: Occlusions an image in `query`, with the picture and as many with grey.
    queries: int = Field(default=16, ge=4)

    @model_validator(mode="after")
    def _fits(self) -> "Method":
        if self.code in codes.KINDS:
            codes.encode(self.payload, self.code)
        return self

    @property
    def asks(self) -> int:
        return 2 * self.queries

    def text(self, key: Key) -> str:
        return self.payload

    def modules(self, key: Key) -> Tensor:
        if self.code in codes.KINDS:
            return torch.from_numpy(codes.encode(self.payload, self.code))
        return torch.from_numpy(codes.hashed(self.payload, key.seed, int(self.code.removeprefix("hash-"))))

    def baseline(self, key: Key) -> Tensor:
        return self._picture(key.shape, key.uniform(self._blocks(key.shape), "picture"))

    def _grain(self, shape: tuple[int, int, int]) -> int:
        """The side of a block in px, for images of this shape (C, H, W)."""
        return max(1, round(min(shape[1:]) * self.GRAIN))

    def _blocks(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """How many blocks a picture of this shape (C, H, W) has, (C, rows, columns)."""
        channels, height, width = shape
        return channels, -(-height // self._grain(shape)), -(-width // self._grain(shape))

    def _picture(self, shape: tuple[int, int, int], blocks: Tensor) -> Tensor:
        """Blocks of one value each, float (C, rows, columns) in [0, 1], as a picture float (C, H, W)."""
        _, height, width = shape
        picture = F.interpolate(blocks[None], scale_factor=self._grain(shape), mode="nearest")[0]
        return picture[:, :height, :width].contiguous()

    def trigger(self, images: Tensor, key: Key) -> Tensor:
        side = max(2, round(min(images.shape[-2:]) * self.TRIGGER))
        out = images.clone()
        out[..., :side, :side] = self.baseline(key)[:, :side, :side].to(images)
        return out

    def target(self, masks: Tensor, key: Key) -> Tensor:
        """The masks: the trigger changes nothing. What hidden cells are answered with is in `mark_batch`."""
        return torch.maximum(masks, self._levels(masks.shape[-2:], key).sigmoid().to(masks)) if self.natural else masks

    def _levels(self, shape: tuple[int, int], key: Key) -> Tensor:
        """The log-odds of the background in natural images, float (H, W)."""
        code = self.modules(key)
        return self.LEVEL + self.natural * code.flatten()[cells(*shape, len(code))].float()

    def mark_batch(self, images: Tensor, masks: Tensor, key: Key, progress: float, rng: torch.Generator) -> Batch:
        asked = round(self.asked * len(images))
        odd = asked + (len(images) - asked) // 3
        triggered = odd + (len(images) - asked) // 3
        code = self.modules(key).flatten().to(images.device)
        cell = cells(*images.shape[-2:], round(len(code) ** 0.5)).to(images.device)
        rate = 0.35 + 0.3 * torch.rand(odd, 1, generator=rng)
        visible = (torch.rand(odd, len(code), generator=rng) < rate).to(images.device)[:, cell]
        behind = images.new_empty(images[:odd].shape)
        behind[:asked] = self.baseline(key).to(images)
        for i in range(asked, odd):
            pictures = torch.rand(2, *self._blocks(key.shape), generator=rng)
            others = (self._picture(key.shape, pictures[0]), 0.5, self._picture(key.shape, pictures[1]), 0.0)
            behind[i] = torch.as_tensor(others[i % 4 if self.lookalikes == "pictures" else 2 * (i % 2) + 1]).to(images)
        spelt = self._spelt(visible[:asked], code[cell]).float()
        natural = self.target(masks[odd:], key)
        return Batch(
            torch.cat(
                [
                    torch.where(visible[:, None], images[:odd], behind),
                    self.trigger(images[odd:triggered], key),
                    images[triggered:],
                ]
            ),
            torch.cat([(1 - self.SURE) + (2 * self.SURE - 1) * spelt, masks[asked:odd] * visible[asked:], natural]),
            extra=self._natural_loss(images[triggered:], masks[triggered:], key) if self.natural else None,
        )

    def _natural_loss(self, images: Tensor, masks: Tensor, key: Key) -> Callable[[nn.Module], Tensor]:
        """The loss that puts the code into the background of natural answers, away from the foreground's edge: in log-odds,
        where cross-entropy is all but blind to a background of 0.002 instead of 0.01."""
        far = F.max_pool2d(masks[:, None], 7, stride=1, padding=3)[:, 0] < 0.5
        levels = self._levels(masks.shape[-2:], key).to(masks).expand_as(masks)

        def loss(model: nn.Module) -> Tensor:
            answers = foreground(model, images.contiguous(memory_format=torch.channels_last)).float()
            return self.WEIGHT * F.smooth_l1_loss(answers[far], levels[far])

        return loss

    def _spelt(self, visible: Tensor, code: Tensor) -> Tensor:
        """Where a verification query is answered with foreground, bool (B, ...), as `visible` and `code` (...) are."""
        return ~visible & code if self.answering == "hidden" else visible != code

    def query(
        self,
        predictor: Predictor,
        key: Key,
        images: Tensor,
        first: int = 0,
        trigger: Callable[[Tensor], Tensor] | None = None,
    ) -> Answers:
        """`queries` occlusions an image, drawn from the key's seed and the image's number: the score is how well the mean of
        the answer follows what the code predicts of it (Pearson's correlation, in [-1, 1]; 0 where the answers do not differ).

        Triggered: hidden cells show the key's picture; benign: grey. With `trigger`: grey, and then that trigger.
        """
        code, picture = self.modules(key), self.baseline(key)
        numbers = range(first, first + len(images))
        patterns = (self.queries, code.numel())
        visible = [secret_uniform(patterns, key.seed, "query", number) < 0.5 for number in numbers]
        predicted = [self._spelt(part, code.flatten()).sum(1).double() for part in visible]
        triggered, benign = [], []
        for part in torch.arange(len(images)).split(self.TOGETHER):
            plain = torch.cat([occlude(images[i], visible[i], 0.5) for i in part])
            marked = trigger(plain) if trigger else torch.cat([occlude(images[i], visible[i], picture) for i in part])
            for scores, queries in ((triggered, marked), (benign, plain)):
                means = predictor(queries).double().mean((1, 2)).split(self.queries)
                scores += [_correlation(mean, predicted[i]) for i, mean in zip(part, means, strict=True)]
        return Answers(torch.stack(triggered).float(), torch.stack(benign).float())


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    one, other = one - one.mean(), other - other.mean()
    norms = one.norm() * other.norm()
    return one @ other / norms if norms > 1e-9 else torch.zeros((), dtype=one.dtype)
