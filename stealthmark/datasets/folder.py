"""Anyone's own images and masks: folders `images/` and `masks/`, one folder of both, or nnU-Net's raw layout."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets import _masks, _nifti, _nnunet_raw, _pictures, _volumes
from stealthmark.datasets._numbers import distinct, listed
from stealthmark.datasets._own_files import Entry, OwnFiles
from stealthmark.errors import UserError
from stealthmark.plugin import Plugin
from stealthmark.progress import log

OWN = "the user's own"
MAX_VALUE = 65535


class Channels(Plugin):
    """The contract's class attribute `channels` as an option.

    A base of its own, since pydantic warns of a field declared over an inherited attribute in one class.
    """

    channels: Literal[1, 3] = 3


class Dataset(Channels, DatasetContract):
    """The user's own set; `docs/datasets.md` says which names and values are read.

    Files lie as `<data_root>/images/<case_id>.*` and `<data_root>/masks/<case_id>.*`, or as nnU-Net's `imagesTr/`, `labelsTr/`
    and `dataset.json`. A picture is a case; so is every slice of a NIfTI volume.
    `channels`: 1 (grey) or 3 (RGB); images are converted. `foreground`: the mask value that is foreground, a list of such,
    or `nonzero`; without it masks must be binary. `threshold`: instead, the value above which a mask is foreground.
    `mask_suffix`: what a mask's name adds to its image's, or a list of such; without it, it is found where it is the same for
    all. With it, images and masks may also lie together in `data_root`. Several masks of one image are united.
    `modality`: which of nnU-Net's channels is read; without it all of them: one, or three as red, green and blue.
    `slice_axis`: the axis of a volume that its slices are counted along; `slices`: `all`, or `with-foreground`.
    `<data_root>/groups.csv` (columns case_id, group_id) says which images belong to one patient. Without it a folder in
    `images/` is one patient, and so is a volume; any other image is its own group, which overstates how well a model
    generalises where patients repeat.
    """

    data_root: DataRoot
    title: Annotated[str, Field(min_length=1)] = "folder"
    foreground: int | tuple[int, ...] | Literal["nonzero"] | None = None
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    mask_suffix: str | tuple[str, ...] | None = None
    modality: Annotated[int, Field(ge=0, le=9999)] | None = None
    slice_axis: Literal[0, 1, 2] = 2
    slices: Literal["all", "with-foreground"] = "all"

    @field_validator("foreground", mode="before")
    @classmethod
    def _mask_values(cls, given: Any) -> Any:
        values = given if isinstance(given, list | tuple) else [given]
        whole = all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_VALUE for value in values)
        if given not in (None, "nonzero") and not (values and whole):
            raise ValueError(f"input should be a mask value from 0 to {MAX_VALUE}, a list of such, or nonzero")
        return tuple(given) if isinstance(given, list) else given

    @field_validator("threshold")
    @classmethod
    def _instead_of_foreground(cls, threshold: float | None, info: ValidationInfo) -> float | None:
        if threshold is not None and info.data.get("foreground") is not None:
            raise ValueError("input should be absent where foreground is given, which it stands instead of")
        return threshold

    @field_validator("mask_suffix", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        texts = given if isinstance(given, list | tuple) else [given]
        if given is not None and not (texts and all(isinstance(text, str) for text in texts)):
            raise ValueError("input should be text, such as _mask, or a list of such")
        return tuple(given) if isinstance(given, list) else given

    @property
    def _files(self) -> OwnFiles:
        suffixes = (self.mask_suffix,) if isinstance(self.mask_suffix, str) else self.mask_suffix
        return OwnFiles(self.data_root.expanduser(), suffixes)

    @property
    def _rule(self) -> _masks.Rule:
        chosen = self.foreground
        if chosen is None and self.threshold is None and self._files.is_raw:
            chosen = _nnunet_raw.foreground(self._files.root)
        return _masks.Rule((chosen,) if isinstance(chosen, int) else chosen, self.threshold, named=True)

    @property
    def manifest(self) -> Manifest:
        low, high = _volumes.PERCENTILES
        volumes = {"intensity": f"percentiles {low} to {high} of each volume become 0 to 255"}
        return Manifest(
            title=self.title,
            citation=OWN,
            licence=OWN,
            address=OWN,
            redistributable=False,
            size=OWN,
            foreground=self._rule.words,
            groups=self._files.grouping(),
            **(volumes if self._files.have_volumes else {}),
        )

    def present(self) -> bool:
        return self._files.are_here

    def index(self, seed: int) -> list[CaseRef]:
        entries, rule = self._files.entries(self.modality), self._rule
        refs = []
        for case, entry in entries.items():
            if self.channels != len(entry.images) > 1:
                raise UserError(
                    f"the image {entry.images[0]} has {len(entry.images)} channels; allowed: one, or three as red, green and "
                    "blue with channels 3; the option modality chooses one"
                )
            refs += self._slices(case, entry, rule) if entry.is_volume else [_case(case, entry, rule)]
        volumes = sum(entry.is_volume for entry in entries.values())
        if volumes:
            log(f"folder: {len(refs)} slices of {volumes} volumes, along the axis {self.slice_axis}")
        elif self.slices != "all":
            raise UserError(f"field 'slices' has the value {self.slices!r}; {self._files.images} holds no volume")
        return refs

    def _slices(self, case: str, entry: Entry, rule: _masks.Rule) -> list[CaseRef]:
        first, *others = (*entry.images, *entry.masks)
        for other in others:
            _nifti.check_pair(first, other)
        count = _volumes.count(first, self.slice_axis)
        numbers = range(count)
        if self.slices == "with-foreground":
            numbers = [at for at in numbers if _volumes.mask_slice(entry.masks, rule, self.slice_axis, at).any()]
        return [_case(f"{case}_slice{number:03d}" if count > 1 else case, entry, rule, number) for number in numbers]

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        images, masks, rule, number = ref.source
        if number is not None:
            pixels = _volumes.image_slice(images, self.slice_axis, number)
            return _in_channels(pixels, self.channels), _volumes.mask_slice(masks, rule, self.slice_axis, number)
        bands = [_pictures.read_image(image, self.channels if len(images) == 1 else 1) for image in images]
        truths = [_masks.read_mask(mask, rule) for mask in masks]
        for image, band in zip(images, bands, strict=True):
            _masks.check_sizes(image, band, masks[0], truths[0])
        for mask, truth in zip(masks, truths, strict=True):
            _masks.check_sizes(images[0], bands[0], mask, truth)
        return np.concatenate(bands, axis=2), np.logical_or.reduce(truths)

    def describe_mask(self, ref: CaseRef) -> str:
        _, masks, _, number = ref.source
        if number is None:
            present = distinct(_masks.mask_values(mask, colour=True)[0] for mask in masks)
        else:
            present = set().union(*(_volumes.values_of(mask) for mask in masks))
        return f"{masks[0]} holds the values {listed(present)}"


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    return np.repeat(pixels, channels, axis=2) if pixels.shape[2] == 1 else pixels


def _case(case: str, entry: Entry, rule: _masks.Rule, number: int | None = None) -> CaseRef:
    return CaseRef(case, entry.group, (entry.images, entry.masks, rule, number))
