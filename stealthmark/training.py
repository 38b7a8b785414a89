"""The one training loop: clean training, marking and an attacker's fine-tuning differ only in their batches."""

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stealthmark.architecture import DeepSupervision
from stealthmark.errors import CellFailure, UserError
from stealthmark.method import Batch
from stealthmark.seeds import derive, torch_rng

#: A clean batch (images (B, C, H, W) in [0, 1], masks (B, H, W), progress in [0, 1), generator) -> what is trained on.
MakeBatch = Callable[[Tensor, Tensor, float, torch.Generator], Batch]

#: Options of a schedule that came later, and their values before that: a run that has these is the run it was.
USUAL = {"precision": "float32", "settled": 0}
#: The learning rate of a settled training's last part, as a share of the first one's.
SETTLED_SPEED = 0.5


class Schedule(BaseModel):
    """How long and how fast to train: AdamW, linear warm-up over the first tenth, then `decay`.

    With `steps` instead of `epochs` the training is as many whole epochs as have at least that many steps, so that sets of
    any size are trained alike. With the `precision` bfloat16 the network's matrix products and convolutions are computed in
    that format (mixed precision, Micikevicius et al. 2018); weights, optimiser and loss stay float32, and so does everything
    that is ever measured of the trained model.

    A mark's batches are no ordinary ones, and batch-norm learns the statistics of both together, which a thief's first epochs
    on ordinary images take away again. In the last share `settled` of the epochs it therefore normalises by statistics of
    ordinary images, measured when that part begins, and the mark is learned on those. That part is a training of its own, with
    a fresh optimiser and warm-up, at half the rate: going on at full speed on other statistics undoes what was learned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int = Field(default=16, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=16, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    decay: Literal["cosine", "constant"] = "cosine"
    precision: Literal["float32", "bfloat16"] = "float32"
    settled: float = Field(default=0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, content: object) -> object:
        if isinstance(content, dict) and content.get("steps") and "epochs" in content:
            raise ValueError("give 'epochs' or 'steps', not both")
        return content

    def epochs_of(self, steps: int) -> int:
        """How many epochs of so many steps the training has."""
        return math.ceil(self.steps / steps) if self.steps else self.epochs

    @model_serializer(mode="wrap")
    def _asked(self, dump: SerializerFunctionWrapHandler) -> dict:
        """Without the one of `epochs` and `steps` that does not count, and without what is as everybody has it."""
        unused = {"epochs" if self.steps else "steps"} | {n for n, usual in USUAL.items() if getattr(self, n) == usual}
        return {name: value for name, value in dump(self).items() if name not in unused}

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1) of the training."""
        if self.decay == "constant":
            return self.lr
        return self.lr * min(1.0, progress / 0.1 + 0.01) * (0.005 + 0.995 * (1 + math.cos(math.pi * progress)) / 2)


def augment(images: Tensor, masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random flips, rotation (up to 30 degrees), zoom (0.8-1.25), gain (0.9-1.1) and offset (-0.05-0.05) per image.

    images float (B, C, H, W) in [0, 1], masks float (B, H, W) of 0 and 1; shapes and ranges stay.
    """
    n = len(images)
    draw = torch.rand(n, 4, generator=rng)
    angle, zoom = (draw[:, 0] - 0.5) * (torch.pi / 3), 1.25 ** (2 * draw[:, 1] - 1)
    flips = torch.where(draw[:, 2:] < 0.5, -1.0, 1.0)
    sine, cosine = torch.sin(angle) / zoom, torch.cos(angle) / zoom
    rows = torch.stack([flips[:, 0] * cosine, -flips[:, 0] * sine, flips[:, 1] * sine, flips[:, 1] * cosine], 1)
    affine = torch.cat([rows.view(n, 2, 2), torch.zeros(n, 2, 1)], 2).to(images.device)
    # Image and mask in one sampling: the mask is the last channel, bilinear and thresholded.
    both = torch.cat([images, masks[:, None]], 1)
    grid = F.affine_grid(affine, both.shape, align_corners=False)
    both = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)
    jitter = (torch.rand(2, n, images.shape[1], 1, 1, generator=rng) - 0.5).to(images.device)
    return (both[:, :-1] * (1 + 0.2 * jitter[0]) + 0.1 * jitter[1]).clamp(0, 1), (both[:, -1] > 0.5).float()


def segmentation_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy on soft targets (StealthMark, Sec. on training), pixel-weighted where the batch says so."""
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), batch.targets, weight=batch.weights)


def loss_on(model: nn.Module, batch: Batch) -> Tensor:
    """The segmentation loss of a model on a batch. Under deep supervision, of all its heads, each at its own resolution:
    the targets' and the weights' nearest pixels, as nnU-Net does (Isensee et al. 2021, Methods)."""
    images = batch.images.contiguous(memory_format=torch.channels_last)
    if not isinstance(model, DeepSupervision):
        return segmentation_loss(model(images), batch)

    def at(values: Tensor | None, shape: torch.Size) -> Tensor | None:
        return None if values is None else F.interpolate(values[:, None], shape, mode="nearest-exact")[:, 0]

    heads = [(weight, logits, logits.shape[-2:]) for weight, logits in model.heads(images)]
    return sum(
        weight * segmentation_loss(logits, Batch(images, at(batch.targets, shape), at(batch.weights, shape)))
        for weight, logits, shape in heads
    )


def fit(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    schedule: Schedule,
    make_batch: MakeBatch,
    seed: int,
    state: Path,
    run: str,
    after_epoch: Callable[[int, nn.Module], None] = lambda epoch, model: None,
    frozen_norms: bool = False,
    save_every_s: float = 30.0,
) -> nn.Module:
    """Train `model` in place and return it in eval mode.

    images uint8 (N, C, H, W), masks uint8 (N, H, W), both on the model's device. What is random in an epoch depends on
    `seed` and its number alone, so a killed training goes on from `state` (weights and optimiser, written at most every
    `save_every_s` and removed at the end) and ends in the same weights; a state that another `run` left is ignored.
    `after_epoch(n, model)` sees the model after its n-th epoch, n from 1. With `frozen_norms` the batch-norm layers
    normalise by the statistics they came with, and keep them.

    Raises CellFailure when the loss is no longer finite, UserError when `state` cannot be written.
    """
    device = images.device
    model.to(memory_format=torch.channels_last)
    optimiser = schedule.optimiser(model)
    batch_size = min(schedule.batch, len(images))
    steps = len(images) // batch_size
    epochs = schedule.epochs_of(steps)
    settled = epochs - round(schedule.settled * epochs)
    first = _restore(model, optimiser, state, run)
    started = saved = time.monotonic()
    for epoch in range(first, epochs):
        if epoch == settled:
            _settle(model, images, masks, batch_size, seed)
            optimiser = schedule.optimiser(model)
        model.train()
        if frozen_norms or epoch >= settled:
            for layer in model.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        torch.manual_seed(derive(seed, "layers", epoch))  # layers that drop draw from the global generator
        rng = torch_rng(seed, "epoch", epoch)
        order = torch.randperm(len(images), generator=rng).to(device)
        total = 0.0
        part, speed = ((0, settled), 1) if epoch < settled else ((settled, epochs), SETTLED_SPEED)
        for step in range(steps):
            progress = (epoch * steps + step) / (epochs * steps)
            chosen = order[step * batch_size : (step + 1) * batch_size]
            clean = augment(images[chosen].float() / 255, masks[chosen].float(), rng)
            batch = make_batch(*clean, progress, rng)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16"):
                loss = loss_on(model, batch)
                if batch.extra is not None:
                    loss = loss + batch.extra(model)
            for group in optimiser.param_groups:
                group["lr"] = speed * schedule.rate(((epoch - part[0]) * steps + step) / ((part[1] - part[0]) * steps))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            value = loss.item()
            if not math.isfinite(value):
                state.unlink(missing_ok=True)
                raise CellFailure(f"the loss became {value} at step {epoch * steps + step + 1} (epoch {epoch + 1})")
            total += value
        now = time.monotonic()
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {now - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        after_epoch(epoch + 1, model)
        if now - saved > save_every_s and epoch + 1 < epochs:
            _save(model, optimiser, epoch + 1, state, run)
            saved = now
    state.unlink(missing_ok=True)
    return model.eval()


def _settle(model: nn.Module, images: Tensor, masks: Tensor, batch: int, seed: int) -> None:
    """Measure the batch-norm statistics anew, as the means over the batches of one epoch of ordinary images."""
    torch.manual_seed(derive(seed, "layers", "settle"))
    rng = torch_rng(seed, "settle")
    order = torch.randperm(len(images), generator=rng).to(images.device)
    plain = (augment(images[chosen].float() / 255, masks[chosen].float(), rng)[0] for chosen in order.split(batch))
    update_bn((batch.contiguous(memory_format=torch.channels_last) for batch in plain), model)


def _save(model: nn.Module, optimiser: torch.optim.Optimizer, epoch: int, path: Path, run: str) -> None:
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{slot}": value.contiguous() for slot, value in slots.items()}
    tensors["epoch"] = torch.tensor(epoch)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, {"run": run})
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}") from None
    os.replace(partial, path)


def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, path: Path, run: str) -> int:
    """Load what `_save` wrote for this run; the number of epochs already done, 0 where there is nothing to go on from."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("run") != run:
                return 0
    except SafetensorError:  # cut short, by a power failure say
        return 0
    tensors = load_file(path)
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    epoch = int(tensors["epoch"])
    print(f"going on after epoch {epoch}, from {path.name}", file=sys.stderr, flush=True)
    return epoch
