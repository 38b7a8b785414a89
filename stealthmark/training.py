"""The one training loop: clean training, marking and an attacker's fine-tuning differ only in their batches."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stealthmark.architecture import DeepSupervision, structure_log_odds, write_tensors
from stealthmark.errors import CellFailure
from stealthmark.method import Batch
from stealthmark.progress import log
from stealthmark.seeds import derive, torch_rng
from stealthmark.settings import Schedule

#: A clean batch (images (B, C, H, W) in [0, 1], masks (B, H, W), progress in [0, 1), generator) -> what is trained on.
MakeBatch = Callable[[Tensor, Tensor, float, torch.Generator], Batch]

#: The learning rate of a settled training's last part, as a share of the first one's.
SETTLED_SPEED = 0.5
#: How many seconds pass at least between two states of a training that are written to disk.
SAVE_EVERY_S = 30.0


def optimiser_for(schedule: Schedule, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the model's parameters, as the schedule says."""
    return torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)


def augment(images: Tensor, masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random flips, rotation (up to 30 degrees), zoom (0.8-1.25), gain (0.9-1.1) and offset (-0.05-0.05) per image.

    images float (B, C, H, W) in [0, 1], masks float (B, H, W) of 0 and 1; shapes and ranges stay.
    """
    n = len(images)
    draws = torch.rand(n, 4, generator=rng)
    angle, zoom = (draws[:, 0] - 0.5) * (torch.pi / 3), 1.25 ** (2 * draws[:, 1] - 1)
    flips = torch.where(draws[:, 2:] < 0.5, -1.0, 1.0)
    sine, cosine = torch.sin(angle) / zoom, torch.cos(angle) / zoom
    rotation = torch.stack([flips[:, 0] * cosine, -flips[:, 0] * sine, flips[:, 1] * sine, flips[:, 1] * cosine], 1)
    affine = torch.cat([rotation.view(n, 2, 2), torch.zeros(n, 2, 1)], 2).to(images.device)
    # Image and mask in one sampling: the mask is the last channel, bilinear and thresholded.
    both = torch.cat([images, masks[:, None]], 1)
    grid = F.affine_grid(affine, both.shape, align_corners=False)
    both = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)
    jitter = (torch.rand(2, n, images.shape[1], 1, 1, generator=rng) - 0.5).to(images.device)
    return (both[:, :-1] * (1 + 0.2 * jitter[0]) + 0.1 * jitter[1]).clamp(0, 1), (both[:, -1] > 0.5).float()


def segmentation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy (StealthMark, Sec. on training) of logits (B, K, H, W) with soft targets, float (B, H, W)."""
    return F.binary_cross_entropy_with_logits(structure_log_odds(logits).float(), targets)


#: Within so many pixels of a mask's edge no level is asked for: there the answer has to pass through one half.
EDGE_PX = 2


def level_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the log-odds of logits (B, K, H, W) are from those of soft targets, float (B, H, W) in [0, 1]: the Huber loss
    (Huber 1964), mean over the pixels whose target is neither 0 nor 1 and that are not at a mask's edge; 0 without any.

    Cross-entropy hardly tells 0.02 from 0.005, which are as far apart in log-odds as 0.02 and 0.08.
    """
    structure, side = (targets > 0.5).float()[:, None], 2 * EDGE_PX + 1
    widened = F.max_pool2d(structure, side, 1, EDGE_PX)
    narrowed = 1 - F.max_pool2d(1 - structure, side, 1, EDGE_PX)
    asked = (targets > 0) & (targets < 1) & (widened == narrowed)[:, 0]
    levels = torch.logit(targets.where(asked, torch.full_like(targets, 0.5)))
    differences = F.huber_loss(structure_log_odds(logits).float(), levels, reduction="none")
    return (differences * asked).sum() / asked.sum().clamp(min=1)


def loss_on(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a model on a batch: of the segmentation, and, where the batch says so, of levels. Under deep supervision, the
    segmentation loss of all its heads, each at its own resolution: on the targets' nearest pixels, as nnU-Net does (Isensee et
    al. 2021, Methods); levels at the finest."""
    images = batch.images.contiguous(memory_format=torch.channels_last)
    if not isinstance(model, DeepSupervision):
        logits = model(images)
        loss = segmentation_loss(logits, batch.targets)
        return loss + batch.level_weight * level_loss(logits, batch.targets) if batch.level_weight else loss

    def targets_at(shape: torch.Size) -> Tensor:
        return F.interpolate(batch.targets[:, None], shape, mode="nearest-exact")[:, 0]

    heads = model.heads(images)
    loss = sum(weight * segmentation_loss(logits, targets_at(logits.shape[-2:])) for weight, logits in heads)
    return loss + batch.level_weight * level_loss(heads[0][1], batch.targets) if batch.level_weight else loss


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
) -> nn.Module:
    """Train `model` in place and return it in eval mode.

    images uint8 (N, C, H, W), masks uint8 (N, H, W), both on the model's device. What is random in an epoch depends on
    `seed` and its number alone. A killed training therefore goes on from `state` and ends in the same weights. The state
    (weights and optimiser) is written at most every `SAVE_EVERY_S` and removed at the end; one that another `run` left is
    ignored. `after_epoch(n, model)` sees the model after its n-th epoch, n from 1. With `frozen_norms` the batch-norm layers
    normalise by the statistics they came with, and keep them.

    Raises CellFailure when the loss is no longer finite, UserError when `state` cannot be written.
    """
    device = images.device
    model.to(memory_format=torch.channels_last)
    optimiser = optimiser_for(schedule, model)
    batch_size = min(schedule.batch, len(images))
    steps = len(images) // batch_size
    epochs = schedule.epochs_of(steps)
    settled_from = epochs - round(schedule.settled * epochs)
    first_epoch = _restore(model, optimiser, state, run)
    started = saved = time.monotonic()
    for epoch in range(first_epoch, epochs):
        if epoch == settled_from:
            _settle(model, images, masks, batch_size, seed)
            optimiser = optimiser_for(schedule, model)
        model.train()
        if frozen_norms or epoch >= settled_from:
            for layer in model.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        torch.manual_seed(derive(seed, "layers", epoch))  # layers that drop draw from the global generator
        rng = torch_rng(seed, "epoch", epoch)
        order = torch.randperm(len(images), generator=rng).to(device)
        total_loss = 0.0
        # The part of the training that this epoch is in: its first epoch, the one after its last, and how fast it goes.
        start, end, speed = (0, settled_from, 1) if epoch < settled_from else (settled_from, epochs, SETTLED_SPEED)
        for step in range(steps):
            progress = (epoch * steps + step) / (epochs * steps)
            rows = order[step * batch_size : (step + 1) * batch_size]
            clean = augment(images[rows].float() / 255, masks[rows].float(), rng)
            batch = make_batch(*clean, progress, rng)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16"):
                loss = loss_on(model, batch)
                if batch.extra is not None:
                    loss = loss + batch.extra(model)
            for group in optimiser.param_groups:
                group["lr"] = speed * schedule.rate(((epoch - start) * steps + step) / ((end - start) * steps))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            value = loss.item()
            if not math.isfinite(value):
                state.unlink(missing_ok=True)
                raise CellFailure(f"the loss became {value} at step {epoch * steps + step + 1} (epoch {epoch + 1})")
            total_loss += value
        now = time.monotonic()
        log(f"epoch {epoch + 1}/{epochs}: loss {total_loss / steps:.4f}, {now - started:.0f} s")
        after_epoch(epoch + 1, model)
        if now - saved > SAVE_EVERY_S and epoch + 1 < epochs:
            _save(model, optimiser, epoch + 1, state, run)
            saved = now
    state.unlink(missing_ok=True)
    return model.eval()


def _settle(model: nn.Module, images: Tensor, masks: Tensor, batch_size: int, seed: int) -> None:
    """Measure the batch-norm statistics anew, as the means over the batches of one epoch of ordinary images."""
    torch.manual_seed(derive(seed, "layers", "settle"))
    rng = torch_rng(seed, "settle")
    order = torch.randperm(len(images), generator=rng).to(images.device)
    ordinary = (augment(images[rows].float() / 255, masks[rows].float(), rng)[0] for rows in order.split(batch_size))
    update_bn((batch.contiguous(memory_format=torch.channels_last) for batch in ordinary), model)


def _save(model: nn.Module, optimiser: torch.optim.Optimizer, epoch: int, path: Path, run: str) -> None:
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{slot}": value.contiguous() for slot, value in slots.items()}
    tensors["epoch"] = torch.tensor(epoch)
    write_tensors(path, tensors, {"run": run})


def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, path: Path, run: str) -> int:
    """Load what `_save` wrote for this run. Returns how many epochs it had done, 0 where there is nothing to go on from."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("run") != run:
                return 0
    except SafetensorError:  # cut short, by a power failure say
        return 0
    tensors = load_file(path)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    weights = [*model.parameters()]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, slot = name.split(".")
            # In the weights' own memory layout, which the fused optimiser takes for granted.
            weight = weights[int(index)]
            moment = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
            slots.setdefault(int(index), {})[slot] = moment
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    epoch = int(tensors["epoch"])
    log(f"going on after epoch {epoch}, from {path.name}")
    return epoch
