"""A results folder of nnU-Net as a suspect: what nnU-Net's own predictor answers, image by image."""

import contextlib
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stealthmark.errors import UserError
from stealthmark.files import read_json
from stealthmark.suspects.querier import Source

PLANS, DATASET = "plans.json", "dataset.json"
#: How a checkpoint that was saved under numpy 1 names the function that numpy 2 calls `numpy._core.multiarray.scalar`.
SCALAR_OF_NUMPY_1 = "numpy.core.multiarray.scalar"
#: Where the classes that a plan names may come from: a suspect's files may name any.
TRUSTED = ("dynamic_network_architectures.", "torch.nn.")


def source(
    folder: Path,
    shape: tuple[int, int, int],
    device: torch.device,
    fold: int | str = 0,
    checkpoint: str = "checkpoint_final.pth",
    white: float = 255.0,
    mirroring: bool = False,
) -> Source:
    """The model in nnU-Net's results folder (`Dataset.../Trainer__Plans__2d`), for images of `shape` (C, H, W).

    It answers with the probability of any foreground. Images go through nnU-Net's whole pipeline, as 2-D images whose
    brightest value is `white`. With `mirroring` answers are averaged over mirrored images, nnU-Net's default, under which a
    trigger with a place is seen in one of four.

    A checkpoint is a pickle: it is opened as tensors and plain values only. Raises UserError when it holds anything else, when
    its plan names classes from outside nnU-Net and torch, when a file is absent, when weights and plan do not agree, or when
    the model takes another number of channels.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset, plans = _described(folder / DATASET), _described(folder / PLANS)
    file = checkpoint_of(folder, fold, checkpoint)
    stored, digest = _opened(file)
    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(stored["init_args"]["configuration"])
        labels = manager.get_label_manager(dataset)
        name, options = configuration.network_arch_class_name, configuration.network_arch_init_kwargs
        classes = [name, *(options[key] for key in configuration.network_arch_init_kwargs_req_import)]
        foreign = [each for each in classes if each is not None and not str(each).startswith(TRUSTED)]
        if foreign:
            raise UserError(f"{folder / PLANS} names {foreign[0]!r}, which is neither nnU-Net's nor torch's; not loaded")
        channels = determine_num_input_channels(manager, configuration, dataset)
        network = get_network_from_plans(
            name,
            options,
            configuration.network_arch_init_kwargs_req_import,
            channels,
            labels.num_segmentation_heads,
            deep_supervision=False,
        )
        network.load_state_dict(stored["network_weights"])
        axes, trainer = stored["inference_allowed_mirroring_axes"], stored["trainer_name"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} and the plan beside it are not one nnU-Net model: {str(error).splitlines()[0]}") from None
    if labels.has_regions or len(configuration.patch_size) != 2:
        raise UserError(f"{folder} is a model of regions or of volumes; only 2-D models of labels can be examined")
    if channels != shape[0]:
        raise UserError(f"the model in {folder} does not take images of shape {shape}; allowed: {channels} channels")
    with contextlib.redirect_stdout(io.StringIO()):  # on a CPU it says that it changes what it was not asked for
        predictor = nnUNetPredictor(
            use_mirroring=mirroring, perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
        )
    predictor.manual_initialization(network, manager, configuration, [network.state_dict()], dataset, trainer, axes)

    def answer(image: Tensor) -> Tensor:
        slices = (image[:, None] * white).numpy().astype(np.float32)  # (C, 1, H, W)
        _, probabilities = predictor.predict_single_npy_array(slices, {"spacing": [999.0, 1.0, 1.0]}, None, None, True)
        return torch.as_tensor(np.asarray(probabilities), dtype=torch.float32)[1:, 0].sum(0)

    def ask(images: Tensor) -> np.ndarray:
        return torch.stack([answer(image) for image in images]).numpy()

    return Source(ask, str(folder), "nnunet", sha256=digest)


def checkpoint_of(folder: Path, fold: int | str = 0, checkpoint: str = "checkpoint_final.pth") -> Path:
    """The file with a fold's weights."""
    return folder / f"fold_{fold}" / checkpoint


def _described(file: Path) -> dict:
    try:
        return read_json(file)
    except FileNotFoundError:
        raise UserError(f"{file.parent} is not an nnU-Net model folder: {file.name} is absent") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _opened(file: Path) -> tuple[dict, str]:
    """nnU-Net's checkpoint, which holds tensors, plain values and numpy's numbers (of its training curves), and its SHA-256."""
    scalar: Any = np.float64().__reduce__()[0]  # what makes a number of numpy's from its bytes
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)]
    numbers = [scalar, (scalar, SCALAR_OF_NUMPY_1), np.dtype, *kinds]
    try:
        with file.open("rb") as stream, torch.serialization.safe_globals(numbers):
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=True), digest
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint at {file}") from None
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise UserError(
            f"{file} is a pickle that holds more than tensors and numbers; it was not opened: {reason.strip()}"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{file} is not a checkpoint: {str(error).splitlines()[0]}") from None
