"""nnU-Net's raw layout: `imagesTr/<case>_0000.*`, one file a channel, `labelsTr/<case>.*`, and `dataset.json`."""

import re
from pathlib import Path

from stealthmark.datasets._pairing import check_complete, ending_of, is_hidden, stem_of
from stealthmark.errors import UserError
from stealthmark.files import read_json

IMAGES, LABELS, DESCRIPTION = "imagesTr", "labelsTr", "dataset.json"
CHANNEL = re.compile(r"(.+)_(\d{4})")
BACKGROUND, IGNORED = "background", "ignore"


def is_here(root: Path) -> bool:
    """Whether a folder has this layout."""
    return all((root / name).is_dir() for name in (IMAGES, LABELS))


def cases(root: Path, modality: int | None) -> dict[str, tuple[tuple[Path, ...], Path]]:
    """case -> (the files of its channels, its label file), sorted.

    `modality`: the one channel to read; None: all of them. A file without a channel's number is a case's only one. Raises
    UserError where a label, an image or a channel is absent, or where cases differ in their channels.
    """
    ending = read_json(root / DESCRIPTION).get("file_ending") if (root / DESCRIPTION).is_file() else None
    labels = {stem_of(file): file for file in _files(root / LABELS, ending)}
    channels: dict[str, dict[int, Path]] = {}
    for file in _files(root / IMAGES, ending):
        numbered = CHANNEL.fullmatch(stem_of(file))
        case, number = (stem_of(file), 0) if stem_of(file) in labels or not numbered else (numbered[1], int(numbered[2]))
        channels.setdefault(case, {})[number] = file
    images = {case: next(iter(files.values())) for case, files in channels.items()}
    check_complete(images, labels, {case: case for case in labels if case in images}, root / IMAGES, root / LABELS)
    if not images:
        raise UserError(f"{root / IMAGES} holds no images{f' that end in {ending}' if ending else ''}")
    present = {case: sorted(files) for case, files in channels.items()}
    first = next(iter(present.values()))
    for case, numbers in present.items():
        if numbers != first:
            raise UserError(f"{images[case]} has the channels {numbers}, others have {first}; allowed: the same for all cases")
    if modality is not None and modality not in first:
        raise UserError(f"field 'modality' has the value {modality}; {root / IMAGES} has the channels {first}")
    chosen = first if modality is None else [modality]
    return {case: (tuple(channels[case][number] for number in chosen), labels[case]) for case in sorted(channels)}


def foreground(root: Path) -> int:
    """The label that is foreground, where `dataset.json` names only one. Raises UserError where it names others."""
    if not (root / DESCRIPTION).is_file():
        raise UserError(f"there is no {root / DESCRIPTION}, which names the labels")
    labels = read_json(root / DESCRIPTION).get("labels")
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{root / DESCRIPTION} has the labels {labels!r}; expected: a mapping such as background: 0, tumour: 1")
    named = {str(name): value for name, value in labels.items()}
    if all(name.isdecimal() for name in named):  # as before nnU-Net 2, and in the Medical Segmentation Decathlon
        named = {str(name): int(number) for number, name in named.items()}
    if IGNORED in named:
        raise UserError(f"{root / DESCRIPTION} has a label {IGNORED!r} for what nobody labelled; allowed: masks without")
    others = {name: value for name, value in named.items() if name.lower() != BACKGROUND and value != 0}
    if len(others) == 1 and isinstance(value := next(iter(others.values())), int):
        return value
    names = ", ".join(f"{value} ({name})" for name, value in others.items())
    raise UserError(
        f"{root / DESCRIPTION} has the labels {names or 'none'}; the option foreground chooses one of them, a list, or nonzero"
    )


def _files(folder: Path, ending: str | None) -> list[Path]:
    """The files of a folder, sorted. Raises UserError for one that is none or has another ending than `dataset.json` says."""
    files = [file for file in sorted(folder.iterdir()) if not is_hidden(file)]
    for file in files:
        if not file.is_file() or (ending and ending_of(file) != str(ending).lower()):
            raise UserError(f"{file} is not a file{f' that ends in {ending}, as {DESCRIPTION} says' if ending else ''}")
    return files
