"""How a person's own files lie: which images, masks and groups there are in a folder."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stealthmark.datasets import _nnunet_raw, _pairing, _volumes
from stealthmark.datasets._groups import read_groups
from stealthmark.datasets._nifti import ENDINGS as VOLUMES
from stealthmark.datasets._pictures import ENDINGS as PICTURES
from stealthmark.errors import UserError
from stealthmark.progress import log

ENDINGS = PICTURES | set(VOLUMES)
IMAGES, MASKS, GROUPS = "images", "masks", "groups.csv"
#: A split needs as many groups.
FEWEST_GROUPS = 8


@dataclass(frozen=True)
class Entry:
    """Files that belong together: the channels of an image, and all its masks. `group`: the patient that they are of."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    group: str

    @property
    def is_volume(self) -> bool:
        return _volumes.is_volume(self.images[0])


@dataclass(frozen=True)
class OwnFiles:
    """A folder of images and masks in one of three layouts. `suffixes`: what masks' names add; None: to be found."""

    root: Path
    suffixes: tuple[str, ...] | None

    @property
    def is_raw(self) -> bool:
        """Whether the layout is nnU-Net's."""
        return _nnunet_raw.is_here(self.root)

    @property
    def images(self) -> Path:
        """The folder of the images."""
        if self.is_raw:
            return self.root / _nnunet_raw.IMAGES
        return self.root if self._are_together else self.root / IMAGES

    @property
    def are_here(self) -> bool:
        return self.is_raw or all((self.root / kind).is_dir() for kind in (IMAGES, MASKS)) or self._are_together

    @property
    def _are_together(self) -> bool:
        """Whether images and masks lie in one folder, told apart by a suffix."""
        return self.suffixes is not None and self.root.is_dir() and not (self.root / IMAGES).is_dir()

    @property
    def have_volumes(self) -> bool:
        """Whether an image is a NIfTI volume."""
        return any(map(_volumes.is_volume, _below(self.images)))

    def grouping(self) -> str:
        """Where the groups come from, for a manifest."""
        if (self.root / GROUPS).is_file():
            return f"from {GROUPS}"
        if any(file.parent != self.images for file in _below(self.images)):
            return "the folders that the images lie in"
        return f"none given: each {'volume' if self.have_volumes else 'image'} is its own group"

    def entries(self, modality: int | None) -> dict[str, Entry]:
        """case -> its files, sorted by case. `modality`: of nnU-Net's channels, the one that is read.

        Raises UserError for files that do not belong together, and for `groups.csv` where it does not fit them.
        """
        if modality is not None and not self.is_raw:
            raise UserError(f"field 'modality' has the value {modality}; {self.root} is not in nnU-Net's raw layout")
        if self.is_raw and self.suffixes is not None:
            raise UserError(f"field 'mask_suffix' has the value {self.suffixes}; nnU-Net's masks in {self.root} have none")
        files = _raw(self.root, modality) if self.is_raw else self._together() if self._are_together else self._apart()
        groups_csv = self.root / GROUPS
        if groups_csv.exists():
            groups = read_groups(groups_csv, files)
        else:
            groups = {case: case.partition("/")[0] for case in files}
            self._check(groups)
        entries = {case: Entry(*files[case], groups[case]) for case in sorted(files)}
        for entry in entries.values():
            if len({_volumes.is_volume(file) for file in (*entry.images, *entry.masks)}) > 1:
                raise UserError(f"the image {entry.images[0]} and its mask {entry.masks[0]} are not both NIfTI volumes")
        return entries

    def _check(self, groups: dict[str, str]) -> None:
        folders = {group for case, group in groups.items() if case != group}
        if folders and len(set(groups.values())) < FEWEST_GROUPS:
            raise UserError(
                f"the folders in {self.images}, {', '.join(sorted(folders))}, are read as groups (patients), of which a split "
                f"needs at least {FEWEST_GROUPS}; {self.root / GROUPS} can say otherwise which images belong together"
            )

    def _apart(self) -> dict[str, tuple[tuple[Path, ...], tuple[Path, ...]]]:
        image_folder, mask_folder = self.root / IMAGES, self.root / MASKS
        images = _pairing.listed(image_folder, mask_folder, ENDINGS, nested=True)
        masks = _pairing.listed(mask_folder, image_folder, ENDINGS, nested=True)
        if self.suffixes is None:
            image_of, words = _pairing.by_name(images, masks)
            hint = "; a suffix that masks' names add is given by the option mask_suffix"
        else:
            image_of, words = _pairing.by_suffix(images, masks, self.suffixes), ""
            hint = f" and {' or '.join(map(repr, self.suffixes))} added"
            if image_of and len(image_of) < len(masks):
                words = f"{len(masks) - len(image_of)} masks have other names than an image's{hint}; they are left out"
                masks = {mask: masks[mask] for mask in image_of}
        _pairing.check_complete(images, masks, image_of, image_folder, mask_folder, hint)
        if not images:
            raise UserError(f"{image_folder} holds no images; allowed endings: {', '.join(sorted(ENDINGS))}")
        if words:
            log(f"folder: {words}")
        return _united(images, masks, image_of)

    def _together(self) -> dict[str, tuple[tuple[Path, ...], tuple[Path, ...]]]:
        files = _pairing.listed(self.root, self.root, ENDINGS, nested=True, but=GROUPS)
        added = "|".join(re.escape(suffix) for suffix in self.suffixes or () if suffix)
        is_mask = re.compile(f".+({added})({_pairing.COUNTER})?") if added else None
        masks = {stem: file for stem, file in files.items() if is_mask and is_mask.fullmatch(stem)}
        images = {stem: file for stem, file in files.items() if stem not in masks}
        image_of = _pairing.by_suffix(images, masks, self.suffixes or ())
        hint = f" and {' or '.join(map(repr, self.suffixes or ()))} added"
        _pairing.check_complete(images, masks, image_of, self.root, self.root, hint)
        if not images:
            raise UserError(f"{self.root} holds no images; allowed endings: {', '.join(sorted(ENDINGS))}")
        return _united(images, masks, image_of)


def _raw(root: Path, modality: int | None) -> dict[str, tuple[tuple[Path, ...], tuple[Path, ...]]]:
    return {case: (images, (label,)) for case, (images, label) in _nnunet_raw.cases(root, modality).items()}


def _united(
    images: dict[str, Path], masks: dict[str, Path], image_of: dict[str, str]
) -> dict[str, tuple[tuple[Path, ...], tuple[Path, ...]]]:
    masks_of: dict[str, list[Path]] = {}
    for mask in sorted(image_of):
        masks_of.setdefault(image_of[mask], []).append(masks[mask])
    return {image: ((images[image],), tuple(masks_of[image])) for image in images}


def _below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it; none where it is absent."""
    return (file for file in folder.rglob("*") if file.is_file() and not _pairing.is_hidden(file))
