"""The network that nnU-Net plans by itself for images of this size (Isensee et al. 2021, Nature Methods)."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from stealthmark.architecture import ArchitectureContract, DeepSupervision
from stealthmark.errors import UserError

NAME = "Dataset001_benchmark"
#: How many images the planner is told that there are.
CASES = 1000


class Architecture(ArchitectureContract):
    """Whatever `nnunetv2`'s own planner makes of the dataset's fingerprint: after `prepare` that is its number of channels,
    2-D images of one size and a spacing of one. It is trained by the benchmark's loop, not by nnU-Net's, with nnU-Net's deep
    supervision; for a mark inside nnU-Net's own training see docs/nnunet.md.

    One logit for the foreground, as nnU-Net's own training on regions has. `gpu_memory_gb`: what the planner may fill, 8
    being nnU-Net's default.
    """

    multiple: ClassVar[int] = 8

    gpu_memory_gb: float = Field(default=8, gt=0)

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        with torch.random.fork_rng(devices=[]):  # the planner builds networks to see how large they are
            planned = plan(channels, size, self.gpu_memory_gb)["architecture"]
        strides = [stride for stride, _ in planned["arch_kwargs"]["strides"]]
        whole = torch.tensor(strides).prod().item()
        if size % whole:
            raise UserError(
                f"nnU-Net plans {len(strides)} resolutions for images of {size} px, which must then be a multiple of {whole}: "
                f"{size // whole * whole} or {-(-size // whole) * whole}"
            )
        network = get_network_from_plans(
            planned["network_class_name"],
            planned["arch_kwargs"],
            planned["_kw_requires_import"],
            input_channels=channels,
            output_channels=1,
            deep_supervision=True,
        )
        _name_each_layer_once(network)
        return _Supervised(network)


def _name_each_layer_once(network: nn.Module) -> None:
    """nnU-Net's modules hold each layer under up to four names, and a checkpoint would hold it as often."""
    del network.decoder.encoder
    for block in network.modules():
        if hasattr(block, "all_modules"):  # which is what `forward` runs
            for name in set(block._modules) - {"all_modules"}:
                delattr(block, name)


class _Supervised(DeepSupervision):
    """A planned network behind nnU-Net's default normalisation: each channel of each image has mean 0 and deviation 1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def heads(self, images: Tensor) -> list[tuple[float, Tensor]]:
        """Half the weight at every halving of the resolution, none for the coarsest head, one in all."""
        mean, std = images.mean((-2, -1), keepdim=True), images.std((-2, -1), correction=0, keepdim=True)
        logits = self.network((images - mean) / std.clamp(min=1e-8))
        weights = [2.0**-i for i in range(max(1, len(logits) - 1))]
        return [(weight / sum(weights), head) for weight, head in zip(weights, logits, strict=False)]


def plan(channels: int, size: int, gpu_memory_gb: float = 8) -> dict:
    """nnU-Net's 2-D configuration (patch, batch, architecture, ...) for `CASES` images (channels, size, size)."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    dataset = {
        "channel_names": {str(i): f"channel {i}" for i in range(channels)},
        "labels": {"background": 0, "foreground": 1},
        "numTraining": CASES,
        "file_ending": ".png",
        "dataset": {},
    }
    fingerprint = {
        "spacings": [[999.0, 1.0, 1.0]],
        "shapes_after_crop": [[1, size, size]],
        "median_relative_size_after_cropping": 1.0,
    }
    with _folders() as folder:
        for name, content in (("dataset", dataset), ("dataset_fingerprint", fingerprint)):
            (folder / NAME / f"{name}.json").write_text(json.dumps(content))
        planner = ExperimentPlanner(NAME, gpu_memory_target_in_gb=gpu_memory_gb)
        return planner.get_plans_for_configuration((1.0, 1.0), (size, size), "2d", CASES * size**2, {})


@contextmanager
def _folders() -> Iterator[Path]:
    """A folder that the planner, which reads its input from the folders named in the environment, takes for both of them."""
    with TemporaryDirectory() as folder:
        (Path(folder) / NAME).mkdir()
        # The last is a number of threads, which a user may have set to none: planning fails on that.
        ours = {"nnUNet_raw": folder, "nnUNet_preprocessed": folder, "nnUNet_n_proc_DA": "1"}
        before = {name: os.environ[name] for name in ours if name in os.environ}
        os.environ.update(ours)
        try:
            yield Path(folder)
        finally:
            for name in ours:
                del os.environ[name]
            os.environ.update(before)
