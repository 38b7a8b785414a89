"""Mark: model -> marked model + key. Of a fingerprint, which marks nothing: model -> the same model + key."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from stealthmark import architecture as architectures
from stealthmark import dataset
from stealthmark.access import WEIGHTS, at_access
from stealthmark.detection import ask, fit_detector
from stealthmark.errors import UserError
from stealthmark.layout import CLEAN
from stealthmark.method import Answers, BlackBoxMethod, Detector, Key, MethodContract, Owner, Trained, WhiteBoxMark, digest_of
from stealthmark.plugin import make
from stealthmark.seeds import secret
from stealthmark.settings import Marking
from stealthmark.stages.train import float_images, float_masks, train_with
from stealthmark.suspects.checkpoint import from_model


def mark(
    data: Path,
    clean: Path,
    method: dict,
    schedule: Marking,
    access: Iterable[str],
    seed: int,
    out: Path,
    key_file: Path,
    device: torch.device,
    share: str = "owner",
    null: Path | None = None,
    replace_key: bool = False,
) -> None:
    """A marked model and its key, from a clean model (or, where the method says so, from scratch), trained on one share.

    The key's detectors, one an access level, are fitted on the calibration share; `null` is the model that stands there for all
    that are not the owner's, the clean model where none is given. The key also holds the digest of the test share's images,
    which are what suspects are queried with, and lies in a file of its own with its commitment beside it. It is written when
    the model is there, and last of all.

    Raises UserError, before anything is computed, where there is a key already, unless it is to be replaced: the model that was
    marked with it could never be claimed again.
    """
    if key_file.exists() and not replace_key:
        raise UserError(f"there is a key at {key_file}, without which its model can never be claimed; give another name")
    marking: MethodContract = make("method", method)
    arrays = dataset.load(data)
    clean_model, card = architectures.load(clean, device)
    null_model = clean_model if null is None else architectures.load(null, device)[0]
    calibration = arrays.share("calibration")
    images = float_images(calibration.images)
    owner = Owner(clean_model, from_model(clean_model, device), images, float_masks(calibration.masks))
    key = marking.make_key(secret(seed, "key"), (card["channels"], card["size"], card["size"]), owner)
    for level in access:  # an unknown one ends before the training
        at_access(owner.predictor, level)
    if isinstance(marking, Trained):
        if marking.epochs:
            schedule = schedule.model_copy(update={"epochs": marking.epochs, "steps": None})
        start = clean if marking.start == CLEAN else None
        model, card = train_with(marking, key, data, share, card["architecture"], schedule, seed, out, device, start)
    else:
        model = clean_model
    # Questions of the method's own, and bits, belong to no patient.
    asks_with_images = isinstance(marking, BlackBoxMethod) and marking.questions(key) is None
    groups = calibration.cases["group_id"].to_numpy(dtype=str) if asks_with_images else None
    detectors = _fit_detectors(marking, key, model, null_model, access, images, groups, device)
    queried = digest_of(arrays.lazy_share("test").images)
    architectures.save(model, card, out)
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key.model_copy(update={"detectors": detectors, "images": queried}).write(key_file)


def _fit_detectors(
    method: MethodContract,
    key: Key,
    model: torch.nn.Module,
    null: torch.nn.Module,
    access: Iterable[str],
    images: torch.Tensor,
    groups: np.ndarray | None,
    device: torch.device,
) -> dict[str, Detector]:
    """A detector for every access level; of a mark in the weights, one for these. groups: those of the images, where these are
    what is asked with."""

    def answers(network: torch.nn.Module) -> dict[str, Answers]:
        if isinstance(method, WhiteBoxMark):
            return {WEIGHTS: method.inspect(network, key)}
        predictor = from_model(network, device)
        return ask(method, key, {level: at_access(predictor, level) for level in access}, [images])

    own, other = answers(model), answers(null)
    return {level: fit_detector(own[level], other[level], groups) for level in own}
