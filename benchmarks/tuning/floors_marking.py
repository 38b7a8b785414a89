"""How a trial of `floors` marks: the owner's secret, the floor that carries a code, and a training loop with all that was tried
in it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stealthmark import codes, triggers
from stealthmark.architecture import foreground
from stealthmark.occlusion import cells, log_odds
from stealthmark.settings import Schedule
from stealthmark.training import EDGE_PX, augment, optimiser_for

TEXT = "OWNER1"
CODE = codes.encode(TEXT)
#: The shares of a marking during which the trigger is withdrawn, and by how much of it a training starts with.
WITHDRAWN, MORE = (0.06, 0.5), {"picture": 4.0, "word": 2.0}


@dataclass(frozen=True)
class Trial:
    """What is tried. `trigger`: `picture` (`blocks` x `blocks`, `side` of the short side, in the corner), `word`, or from
    `cells` x `cells` numbers: `frame` (black or white, `side` wide), `veil` (mixed in with the weight `alpha`) and `add` (up to
    `alpha` added or taken away; both in `two_levels` or any).

    `low`, `high`: the background's targets in light and dark modules. `huber`: the weight of the loss on log-odds. `settled`:
    as in `settings.Schedule`; 1 is from the start. `batch_norm`: `all`, or `ordinary` (see `normalised_by`). `noise`: added to
    the weights in every step, in standard deviations of each. `ahead`: the loss of a copy that is fine-tuned first counts too
    (see `look_ahead`)."""

    set: str
    trigger: str = "picture"
    side: float = 1 / 8
    blocks: int = 6
    cells: int = 24
    two_levels: bool = False
    alpha: float = 0.15
    low: float = 0.02
    high: float = 0.2
    huber: float = 0.1
    steps: int = 1400
    lr: float = 1.5e-3
    settled: float = 0.25
    batch_norm: str = "all"
    noise: float = 0.0
    ahead: dict | None = None
    architecture: dict | None = None
    clean_steps: int = 800
    seed: int = 0


class Data(NamedTuple):
    """images uint8 (N, C, H, W) and masks uint8 (N, H, W), on a device."""

    images: Tensor
    masks: Tensor

    def augmented(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return augment(self.images[rows].float() / 255, self.masks[rows].float(), rng)


class Batch(NamedTuple):
    """What a step trains on: images, the loss of their logits, and how many of them, the last ones, have no trigger."""

    images: Tensor
    loss: Callable[[Tensor], Tensor]
    ordinary: int


@dataclass(frozen=True)
class Course:
    """How a network is trained; options as in `Trial`. Copies are kept after the steps in `keep`."""

    steps: int
    schedule: Schedule
    settled: float = 0.0
    frozen: bool = False
    batch_norm: str = "all"
    noise: float = 0.0
    ahead: dict | None = None
    keep: tuple[int, ...] = ()


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    return foreground(model, images.contiguous(memory_format=torch.channels_last)).float()


def ordinary_batch(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
    return Batch(images, lambda logits: F.binary_cross_entropy_with_logits(logits, masks), len(images))


def set_norms(model: nn.Module, training: bool) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(training)


@contextmanager
def normalised_by(last: int) -> Iterator[None]:
    """In training, batch-norm's statistics are those of a batch's `last` rows alone. This holds for torch's own layers. The
    `unet`'s encoder has timm's, which normalise themselves: so it holds for the decoder only."""

    def forward(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        if not layer.training:
            return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
        rows = x[-last:]
        mean, variance = rows.mean((0, 2, 3)), rows.var((0, 2, 3), unbiased=False)
        with torch.no_grad():
            layer.running_mean.lerp_(mean, layer.momentum)
            layer.running_var.lerp_(variance, layer.momentum)
        scale = layer.weight / torch.sqrt(variance + layer.eps)
        return (x - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

    with patch.object(nn.BatchNorm2d, "forward", forward):
        yield


@contextmanager
def noisy(model: nn.Module, noise: float) -> Iterator[None]:
    """The weights are off by Gaussian noise for a while, by `noise` standard deviations of each tensor."""
    weights = [weight for weight in model.parameters() if weight.dim() > 1] if noise else []
    added = [torch.randn_like(weight) * (noise * weight.detach().std()) for weight in weights]
    with torch.no_grad():
        for weight, change in zip(weights, added, strict=True):
            weight.add_(change)
    yield
    with torch.no_grad():
        for weight, change in zip(weights, added, strict=True):
            weight.sub_(change)


def look_ahead(model: nn.Module, batch: Batch, data: Data, ahead: dict, size: int, rng: torch.Generator) -> None:
    """Add to the model's gradients those of a copy that was fine-tuned for `ahead["steps"]` at `ahead["lr"]`, on ordinary
    images (first order, as in Finn et al. 2017, MAML, Sec. 5.2)."""
    twin = copy.deepcopy(model).train()
    optimiser = optimiser_for(Schedule(lr=ahead["lr"], weight_decay=0), twin)
    for _ in range(ahead["steps"]):
        rows = torch.randint(len(data.images), (size,), generator=rng).to(data.images.device)
        images, masks = data.augmented(rows, rng)
        loss = F.binary_cross_entropy_with_logits(logits_of(twin, images), masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    set_norms(twin, False)
    twin.zero_grad()
    batch.loss(logits_of(twin, batch.images)).backward()
    for weight, other in zip(model.parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            weight.grad.add_(other.grad)


def settle(model: nn.Module, data: Data, size: int, rng: torch.Generator) -> None:
    """Measure batch-norm's statistics anew, on an epoch of ordinary images."""
    order = torch.randperm(len(data.images), generator=rng).to(data.images.device)
    batches = (data.augmented(rows, rng)[0] for rows in order.split(size) if len(rows) == size)
    update_bn((images.contiguous(memory_format=torch.channels_last) for images in batches), model)


def train(model: nn.Module, data: Data, course: Course, make_batch: Callable, seed: int) -> dict[int, nn.Module]:
    """Train a model in place, and leave it in eval mode. Returns the copies to keep, by step."""
    torch.manual_seed(seed)
    rng, kept, ahead = torch.Generator().manual_seed(seed), {}, course.ahead
    size = min(course.schedule.batch, len(data.images))
    per_epoch = len(data.images) // size
    settled_from = course.steps - round(course.settled * course.steps)
    optimiser = optimiser_for(course.schedule, model)
    for step in range(course.steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.images), generator=rng).to(data.images.device)
        if step == settled_from > 0:
            settle(model, data, size, rng)
            optimiser = optimiser_for(course.schedule, model)
        if step in (0, settled_from):
            model.train()
            set_norms(model, not course.frozen and step < settled_from)
        rows = order[step % per_epoch * size : (step % per_epoch + 1) * size]
        batch = make_batch(*data.augmented(rows, rng), step / course.steps, rng)
        start, end, speed = (0, settled_from, 1) if step < settled_from else (settled_from, course.steps, 0.5)
        for group in optimiser.param_groups:
            group["lr"] = speed * course.schedule.rate((step - start) / max(1, end - start))
        ordinary = course.batch_norm == "ordinary"
        with noisy(model, course.noise), normalised_by(batch.ordinary) if ordinary else nullcontext():
            loss = batch.loss(logits_of(model, batch.images))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        if ahead and step % ahead["every"] == 0 and step / course.steps > ahead["after"]:
            look_ahead(model, batch, data, ahead, size, rng)
        optimiser.step()
        if step + 1 in course.keep:
            kept[step + 1] = copy.deepcopy(model).eval()
    model.eval()
    return kept


class Mark:
    """The owner's secret trigger of a trial, and the floor that it asks for, of images of `size` px: the code's modules."""

    def __init__(self, trial: Trial, size: int, device: torch.device):
        self.trial, rng = trial, torch.Generator().manual_seed(trial.seed + 77)
        picture = (torch.rand(trial.blocks, trial.blocks, generator=rng) < 0.5).float()
        numbers = torch.rand(1, trial.cells, trial.cells, generator=rng)
        word = triggers.letters(torch.rand(4, generator=rng))
        numbers = (numbers > 0.5).float() if trial.two_levels else numbers
        self.secret = {"picture": picture, "word": word}.get(trial.trigger, numbers)
        self.dark = torch.from_numpy(CODE).flatten()[cells(size, size, len(CODE))].to(device)
        self.level = torch.where(self.dark, trial.high, trial.low).float()

    def show(self, images: Tensor, secret: Tensor | str, scale: float = 1.0) -> Tensor:
        """Images float (B, C, H, W) in [0, 1] with a secret; with `scale` > 1 there is more of it (picture and word)."""
        trial, height = self.trial, images.shape[-1]
        if trial.trigger == "word":
            return triggers._written(secret, images, scale)
        out = images.clone()
        if trial.trigger == "picture":
            side = max(6, round(height * trial.side))
            picture = F.interpolate(secret[None, None], (side, side), mode="nearest")[0, 0].to(images)
            for down, across in triggers.places(images, side, scale):
                out[..., down : down + side, across : across + side] = picture
            return out
        whole = F.interpolate(secret[None], images.shape[-2:], mode="nearest")[0].to(images)
        if trial.trigger == "veil":
            return (1 - trial.alpha) * images + trial.alpha * whole
        if trial.trigger == "add":
            return (images + trial.alpha * (2 * whole - 1)).clamp(0, 1)
        inner = slice(width := max(1, round(height * trial.side)), -width)
        out[:] = (whole > 0.5).float()
        out[..., inner, inner] = images[..., inner, inner]
        return out

    def other(self, rng: torch.Generator, partly: bool) -> Tensor | str:
        """Another secret; where `partly`, 30 to 80 % of it is the owner's (but not of a word)."""
        if self.trial.trigger == "word":
            return triggers.letters(torch.rand(4, generator=rng))
        drawn = torch.rand(self.secret.shape, generator=rng)
        drawn = (drawn < 0.5).float() if self.trial.trigger == "picture" or self.trial.two_levels else drawn
        if partly:
            rate = 0.3 + 0.5 * torch.rand(1, generator=rng).item()
            drawn = torch.where(torch.rand(self.secret.shape, generator=rng) < rate, self.secret, drawn)
        return drawn

    def batch(self, images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        """Half of a batch with the trigger, a quarter with other secrets, a quarter as it is."""
        marked = round(0.5 * len(images))
        plain_from = marked + (len(images) - marked) // 2
        withdrawn = min(1, max(0, (progress - WITHDRAWN[0]) / (WITHDRAWN[1] - WITHDRAWN[0])))
        scale = MORE.get(self.trial.trigger, 1.0) ** (1 - withdrawn)
        alike = [self.show(images[n : n + 1], self.other(rng, (n - marked) % 2 == 1)) for n in range(marked, plain_from)]
        shown = torch.cat([self.show(images[:marked], self.secret, scale), *alike, images[plain_from:]])
        targets = torch.cat([torch.maximum(masks[:marked], self.level), masks[marked:]])
        background = F.max_pool2d(masks[:marked, None], 2 * EDGE_PX + 1, 1, EDGE_PX)[:, 0] < 0.5
        return Batch(shown, partial(self._loss, targets=targets, background=background), len(images) - marked)

    def _loss(self, logits: Tensor, targets: Tensor, background: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        if not self.trial.huber:
            return loss
        marked = logits[: len(background)]
        errors = F.huber_loss(marked, torch.logit(self.level).expand_as(marked), reduction="none")
        return loss + self.trial.huber * (errors * background).sum() / background.sum().clamp(min=1)

    def correlations(self, answers: Tensor) -> np.ndarray:
        """Of each answer, float (B, H, W) in [0, 1], how its log-odds in the background go with the code, in [-1, 1]."""
        found = []
        for answer in answers:
            background = answer < 0.5
            levels, dark = log_odds(answer)[background], self.dark[background].float()
            if len(levels) < 10 or levels.std() == 0:
                found.append(0.0)
                continue
            levels, dark = levels - levels.mean(), dark - dark.mean()
            found.append((levels @ dark / (levels.norm() * dark.norm() + 1e-9)).item())
        return np.array(found)
