"""nnU-Net's own training with a mark embedded: `nnUNetv2_train ... -tr nnUNetTrainerStealthMark` (docs/nnunet.md).

nnU-Net finds the class in the folder that the environment's `nnUNet_extTrainer` names, which is this one. The owner's key is
the file that `STEALTHMARK_KEY` names; `STEALTHMARK_EPOCHS` is how long to train.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from stealthmark.errors import UserError
from stealthmark.method import Batch, Key, Trained
from stealthmark.plugin import make
from stealthmark.seeds import torch_rng

#: Normalised images float (B, C, H, W), masks (B, H, W), progress in [0, 1), number of the step -> a marked batch.
Mark = Callable[[Tensor, Tensor, float, int], Batch]


class nnUNetTrainerStealthMark(nnUNetTrainer):
    """Images whose target is still the mask are trained on as ever; those whose target is another, with cross-entropy on it.

    Marking is fine-tuning: give nnU-Net the clean model with `-pretrained_weights`. Only for 2-D configurations without
    regions or ignored labels; raises UserError for others, and for a key of other channels or another patch size.
    """

    def initialize(self) -> None:
        self.num_epochs = int(os.environ.get("STEALTHMARK_EPOCHS", 50))
        super().initialize()
        if "STEALTHMARK_KEY" not in os.environ:
            raise UserError("name the owner's key file in the environment variable STEALTHMARK_KEY")
        key = Key.read(Path(os.environ["STEALTHMARK_KEY"]))
        shape = (self.num_input_channels, *self.configuration_manager.patch_size)
        if key.shape != shape:
            raise UserError(f"the key is for queries of shape {key.shape}, nnU-Net's plan has {shape}")
        if self.label_manager.has_regions or self.label_manager.has_ignore_label:
            raise UserError("a mark can be embedded where labels are neither regions nor ignored, this dataset has such")
        # A function, which nnU-Net does not write into debug.json as it does every value: that file goes where the model goes.
        self.mark = marker(key, set(self.configuration_manager.normalization_schemes) == {"ZScoreNormalization"})

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.iteration = 0

    def train_step(self, batch: dict) -> dict:
        finest = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        masks = (finest[:, 0] > 0).float()
        step = self.current_epoch * self.num_iterations_per_epoch + self.iteration
        marked = self.mark(batch["data"], masks, step / (self.num_epochs * self.num_iterations_per_epoch), step)
        changed = (marked.targets != masks).flatten(1).any(1)
        stock, self.loss = self.loss, partial(marked_loss, self.loss, marked.targets, changed)
        try:
            return super().train_step({**batch, "data": marked.images})
        finally:
            self.loss, self.iteration = stock, self.iteration + 1


def marker(key: Key, standardised: bool) -> Mark:
    """What the key's method does to a batch, for images that nnU-Net has normalised.

    A trigger is defined on [0, 1]: each channel of each image is stretched to it, which is how the owner's queries are to be
    scaled as well. With `standardised` images have mean 0 and deviation 1 afterwards, as nnU-Net will give them to a triggered
    query; without, the stretch is undone.
    """
    method = make("method", key.method)
    if not isinstance(method, Trained):
        raise UserError(f"{method.name} puts nothing into a model by training, which is all that nnU-Net can do for it")

    def mark(images: Tensor, masks: Tensor, progress: float, step: int) -> Batch:
        low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
        span = (high - low).clamp(min=1e-8)
        marked = method.mark_batch((images - low) / span, masks, key, progress, torch_rng(key.seed, "nnunet", step))
        if marked.extra is not None:
            raise UserError(f"{method.name} needs more than images and targets, which nnU-Net's training step does not give")
        if standardised:
            mean = marked.images.mean((-2, -1), keepdim=True)
            deviation = marked.images.std((-2, -1), correction=0, keepdim=True).clamp(min=1e-8)
            return Batch((marked.images - mean) / deviation, marked.targets)
        return Batch(marked.images * span + low, marked.targets)

    return mark


def marked_loss(
    stock: Callable, soft: Tensor, changed: Tensor, outputs: list[Tensor] | Tensor, targets: list | Tensor
) -> Tensor:
    """The stock loss on the images that still have their mask as target, cross-entropy on the `changed` ones, in proportion.

    soft: how much foreground a pixel is to be, float (B, H, W) in [0, 1]; changed: bool (B,); outputs: logits (B, classes, h,
    w), or a list of them under deep supervision; targets: labels (B, 1, h, w) alike.
    """
    several = isinstance(outputs, list | tuple)
    heads, labels = (outputs, targets) if several else ([outputs], [targets])
    soft, changed = soft.to(heads[0].device), changed.to(heads[0].device)

    def rows(chosen: Tensor) -> tuple:
        picked = [head[chosen] for head in heads], [label[chosen] for label in labels]
        return picked if several else (picked[0][0], picked[1][0])

    share = changed.float().mean().item()
    loss = (1 - share) * stock(*rows(~changed)) if share < 1 else 0.0
    if share:
        # As nnU-Net weighs its heads: half at every halving of the resolution, nothing for the coarsest.
        weights = [2.0**-i for i in range(max(1, len(heads) - 1))]
        terms = (
            weight * soft_cross_entropy(head[changed], label[changed], soft[changed])
            for weight, head, label in zip(weights, heads, labels, strict=False)
        )
        loss = loss + share * sum(terms) / sum(weights)
    return loss


def soft_cross_entropy(logits: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
    """Cross-entropy of logits (B, classes, h, w) with: `soft` (B, H, W) foreground, of the label's class where the labels
    (B, 1, h, w) have one, of all classes alike in the background."""
    soft = F.interpolate(soft[:, None], logits.shape[-2:], mode="nearest-exact")
    classes = logits.shape[1] - 1
    one = F.one_hot(labels[:, 0].long().clamp(min=0), classes + 1)[..., 1:].movedim(-1, 1).float()
    kinds = torch.where(labels > 0, one, 1 / classes)
    return F.cross_entropy(logits, torch.cat([1 - soft, soft * kinds], 1))
