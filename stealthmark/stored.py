"""A prepared dataset on the disk: its files, what they must hold, and the check that nothing in them changed.

The check compares the SHA-256 that the manifest holds with the arrays, which costs a second or two a gigabyte. Every stage
opens the arrays by `dataset.load`, and a study is a hundred stages: so the check is made when they are opened for the first
time, and `checked.json` beside them notes the sizes and times of change of the files that passed. Whoever opens them then
hashes nothing until one of these differs. It is made on opening, not on preparing, since what it is for happens in between:
a copy that broke off, a disk that went bad, a file that was edited.
"""

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stealthmark.errors import UserError
from stealthmark.files import read_json
from stealthmark.layout import MANIFEST
from stealthmark.plugin import describe_error

#: The shares of groups: the owner trains on `owner`, fits detectors on `calibration`; the thief holds `attacker`
#: (a third of all training groups); nobody trains on or chooses by `test`.
SHARES = {"owner": 0.40, "calibration": 0.10, "attacker": 0.25, "test": 0.25}
IMAGES, MASKS, CASES, CHECKED = "images.npy", "masks.npy", "cases.csv", "checked.json"
COLUMNS = ("case_id", "group_id", "share", "foreground")
#: A file that was written less than this before it was checked may change again without its time of change saying so.
SETTLED_NS = 2_000_000_000
#: How much of the arrays is hashed before its pages are let go of, in bytes.
BLOCK = 1 << 26
REMEDY = "prepare it again"


class Manifest(BaseModel):
    """Where a dataset comes from and what may be done with it; printed in the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    citation: str
    licence: str
    address: str
    redistributable: bool
    size: str
    foreground: str
    groups: str
    split: str = "whole groups, drawn from the suite's seed; an official split, where there is one, is not used"
    intensity: str = "8 bit, as stored"


class Written(Manifest):
    """The manifest beside the arrays: with their shape, what is in each share, and their digest."""

    channels: Literal[1, 3]
    pixels: Annotated[int, Field(ge=1)]
    cases: Annotated[int, Field(ge=1)]
    group_count: int
    share_cases: dict[str, int]
    empty_masks: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def manifest_of(source: Manifest, cases: pd.DataFrame, channels: int, pixels: int, digest: str) -> dict[str, Any]:
    """The manifest of arrays whose cases are in `cases` (`COLUMNS`)."""
    return {
        **source.model_dump(),
        "channels": channels,
        "pixels": pixels,
        "cases": len(cases),
        "group_count": int(cases["group_id"].nunique()),
        "share_cases": {name: int((cases["share"] == name).sum()) for name in SHARES},
        "empty_masks": int((cases["foreground"] == 0).sum()),
        "sha256": digest,
    }


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, dict[str, Any]]:
    """images and masks, memory-mapped, cases and manifest of a prepared dataset.

    Raises UserError when the folder is not one that `prepare` wrote, and when anything in it changed since.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        images, masks = (_array(folder / name) for name in (IMAGES, MASKS))
        cases = _cases(folder / CASES)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UserError(f"{folder} is not a prepared dataset: {name} is absent; run prepare first") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise UserError(f"{folder / MANIFEST} is not JSON: it is nested too deep") from None
    try:
        written = Written.model_validate(manifest, strict=True)
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST}: {describe_error(error, Written)}; {REMEDY}") from None
    _check_shapes(folder, images, masks, written)
    _check_cases(folder / CASES, cases, written)
    noted = _noted(folder)
    for name in (CASES, MANIFEST):
        if name in noted and noted[name] != _sha256(folder / name):
            raise UserError(f"{folder / name} has changed since it was written; {REMEDY}")
    if not _is_unchanged(folder, noted):
        _check_arrays(folder, images, masks, cases, written.sha256)
        note(folder)
    return images, masks, cases, manifest


def note(folder: Path) -> None:
    """Write down that what is in a folder was checked, where the folder may be written to."""
    content = {name: _sha256(folder / name) for name in (CASES, MANIFEST)}
    content |= {name: _state(folder / name) for name in (IMAGES, MASKS)}
    with contextlib.suppress(OSError):
        # A name of its own: several stages may open a dataset for the first time at once.
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=CHECKED, suffix=".partial", delete=False) as file:
            json.dump(content, file)
        os.chmod(file.name, 0o644)
        os.replace(file.name, folder / CHECKED)


def forget_pages(array: object) -> None:
    """Let go of the pages of a memory-mapped file that were read: they would count as this process's memory, up to the whole
    file."""
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def _array(file: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, "r")
    except OSError:
        raise
    except Exception as error:  # numpy's parser raises a dozen kinds on damaged headers
        raise UserError(
            f"{file} is not an array: {next(iter(str(error).splitlines()), type(error).__name__)}; {REMEDY}"
        ) from None


def _cases(file: Path) -> pd.DataFrame:
    """The table of cases. Ids are text, whatever they look like: `NA`, `007`, `1e5`."""
    try:
        cases = pd.read_csv(file, dtype=dict.fromkeys(COLUMNS[:3], str), keep_default_na=False)
        if tuple(cases.columns) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(map(str, cases.columns))}; expected: {', '.join(COLUMNS)}")
        if not isinstance(cases.index, pd.RangeIndex):  # how pandas takes a line with more fields than there are columns
            raise ValueError(f"a line has more than {len(COLUMNS)} fields")
    except (ValueError, OverflowError, MemoryError) as error:  # what pandas raises on damaged text is a ValueError
        raise UserError(f"{file} is no table of cases: {next(iter(str(error).splitlines()), '')}; {REMEDY}") from None
    return cases


def _check_shapes(folder: Path, images: np.ndarray, masks: np.ndarray, written: Written) -> None:
    side = written.pixels
    shapes = {IMAGES: (written.cases, written.channels, side, side), MASKS: (written.cases, side, side)}
    for (name, shape), array in zip(shapes.items(), (images, masks), strict=True):
        if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
            raise UserError(
                f"{folder / name} holds {array.dtype} of the shape {array.shape}; by {MANIFEST}: uint8 of {shape}; {REMEDY}"
            )


def _check_cases(file: Path, cases: pd.DataFrame, written: Written) -> None:
    """Raises UserError where the table is not one of these arrays or does not keep groups together."""

    def wrong(what: str) -> UserError:
        return UserError(f"{file} {what}; {REMEDY}")

    if len(cases) != written.cases:
        raise wrong(f"has {len(cases)} lines; by {MANIFEST} there are {written.cases} cases")
    for name in COLUMNS[:2]:
        if (cases[name] == "").any():
            raise wrong(f"has an empty {name}")
    if repeated := cases["case_id"][cases["case_id"].duplicated()].tolist():
        raise wrong(f"has the case_id {repeated[0]!r} more than once")
    if unknown := sorted(set(cases["share"].astype(str)) - SHARES.keys()):
        raise wrong(f"has the share {unknown[0]!r}; allowed: {', '.join(SHARES)}")
    of_group = cases.groupby("group_id")["share"].nunique()
    if (of_group > 1).any():
        raise wrong(f"has the group {of_group.idxmax()!r} in more than one share")
    parts = cases["foreground"]
    if parts.dtype.kind not in "iuf" or not parts.between(0, 1).all():
        raise wrong("has a foreground that is no number from 0 to 1")
    described = manifest_of(written, cases, written.channels, written.pixels, written.sha256)
    for field in ("group_count", "share_cases", "empty_masks"):
        if described[field] != getattr(written, field):
            raise wrong(f"gives the {field} {described[field]}; by {MANIFEST} it is {getattr(written, field)}")


def _check_arrays(folder: Path, images: np.ndarray, masks: np.ndarray, cases: pd.DataFrame, sha256: str) -> None:
    """Raises UserError where arrays do not have their digest, or masks are not of 0 and 1 or not as large as the table says."""
    digest, unread, problem = hashlib.sha256(), 0, ""
    for row, (image, mask, part) in enumerate(zip(images, masks, cases["foreground"].astype(float), strict=True)):
        digest.update(image)
        digest.update(mask)
        if mask.max() > 1:
            problem = problem or f"{folder / MASKS} holds the value {mask.max()}; allowed: 0 and 1"
        if abs(float(mask.mean()) - part) > 1e-9:
            problem = problem or f"{folder / CASES} gives the foreground {part:g} in line {row + 2}; it is {mask.mean():g}"
        unread += image.size + mask.size
        if unread > BLOCK:
            forget_pages(images)
            forget_pages(masks)
            unread = 0
    if digest.hexdigest() != sha256:
        problem = f"{folder / IMAGES} and {MASKS} do not have the SHA-256 in {MANIFEST}: they are damaged"
    if problem:
        raise UserError(f"{problem}; {REMEDY}")


def _noted(folder: Path) -> dict[str, Any]:
    """What was written down when the folder was checked; nothing where that is absent or unreadable."""
    try:
        return read_json(folder / CHECKED)
    except (OSError, UserError, RecursionError):
        return {}


def _is_unchanged(folder: Path, noted: dict[str, Any]) -> bool:
    """Whether the arrays are those that were checked, and had been left alone for a while by then."""
    states = [_state(folder / name) for name in (IMAGES, MASKS)]
    if any(noted.get(name) != state for name, state in zip((IMAGES, MASKS), states, strict=True)):
        return False
    when = (folder / CHECKED).stat().st_mtime_ns
    return all(changed + SETTLED_NS < when for _, changed in states)


def _state(file: Path) -> list[int]:
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
