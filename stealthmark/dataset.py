"""Datasets: the contract of a dataset plug-in, the split by group, and the arrays that training reads."""

import contextlib
import hashlib
import inspect
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BeforeValidator

from stealthmark import plugin_code, plugins, stored
from stealthmark.errors import UserError
from stealthmark.files import write_json
from stealthmark.layout import MANIFEST
from stealthmark.plugin import Plugin, make
from stealthmark.progress import Progress, log
from stealthmark.stored import CASES, IMAGES, MASKS, SHARES, Manifest, forget_pages

__all__ = ["SHARES", "Arrays", "CaseRef", "DataRoot", "DatasetContract", "LazyArray", "Manifest", "load", "prepare"]

#: What `prepare` writes. `REQUEST` says what the others were made from.
REQUEST = "request.sha256"
WRITTEN = (IMAGES, MASKS, CASES, MANIFEST, REQUEST)
#: Foreground in more than this share of all pixels is more often what surrounds the structure.
MUCH_FOREGROUND = 0.5
#: How many masks an error describes where all are empty.
DESCRIBED = 3
#: What an id must not hold: control characters, and what stands for the bytes of a file's name that is not UTF-8.
NO_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def _as_text(value: object) -> object:
    """YAML reads `2024-01-05` as a date and `2024` as a number; as the name of a folder they are text."""
    is_text = isinstance(value, int | float) or (isinstance(value, date) and not isinstance(value, datetime))
    return str(value) if is_text and not isinstance(value, bool) else value


#: The type of the option that says where a dataset's files are.
DataRoot = Annotated[Path, BeforeValidator(_as_text)]


@dataclass(frozen=True)
class CaseRef:
    """A case before it is decoded. `source` is whatever the dataset needs to read it (a path, an index)."""

    case_id: str
    group_id: str
    source: object


class DatasetContract(Plugin):
    """A dataset plug-in: list the cases without decoding them, then decode one.

    `channels` is 1 (grey) or 3 (RGB). `index` raises UserError where the data are absent or inconsistent (an image
    without a mask); `read` raises UserError where a file is truncated, sizes differ or a mask has unexpected values.
    """

    manifest: ClassVar[Manifest]
    channels: ClassVar[int] = 3

    def present(self) -> bool:
        """Whether the data are here, without reading them; what is drawn from a seed always is."""
        return True

    def index(self, seed: int) -> list[CaseRef]:
        """All cases, in a fixed order. Procedural sets draw from `seed`; real ones ignore it."""
        raise NotImplementedError

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        """One case: image uint8 (H, W, channels) and mask bool (H, W), at its own size or directly at `size` px."""
        raise NotImplementedError

    def describe_mask(self, ref: CaseRef) -> str:
        """What a case's mask holds before it is read as foreground, for the error that all masks are empty; "" if unknown."""
        return ""


class LazyArray:
    """Some rows of an array, in the order of `rows`, int (n,), as if they were an array of n. They stay where they are, on the
    disk say, until they are asked for."""

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, or those at `chosen`, int (m,), in memory."""
        rows = np.asarray(self._array[self._rows[chosen]])
        forget_pages(self._array)
        return rows


@dataclass(frozen=True)
class Arrays:
    """A prepared dataset. images: uint8 (N, C, S, S); masks: uint8 (N, S, S) of 0 and 1; cases: case_id, group_id, share."""

    images: np.ndarray | LazyArray
    masks: np.ndarray | LazyArray
    cases: pd.DataFrame
    manifest: dict

    def share(self, *names: str) -> "Arrays":
        """The cases of the named shares (`owner`, `calibration`, `attacker`, `test`), in order, in memory."""
        return self.at(self._rows_of(names))

    def lazy_share(self, *names: str) -> "Arrays":
        """As `share`, but images and masks stay on the disk until they are asked for: for a large share, read in `chunks`."""
        rows = self._rows_of(names)
        return Arrays(LazyArray(self.images, rows), LazyArray(self.masks, rows), self._cases_at(rows), self.manifest)

    def part(self, fraction: float, seed: int) -> "Arrays":
        """The cases of that fraction of the groups (one at least), drawn from `seed`, in order, in memory."""
        groups = np.random.default_rng(seed).permutation(sorted(self.cases["group_id"].unique()))
        return self.at(np.flatnonzero(self.cases["group_id"].isin(groups[: max(1, round(fraction * len(groups)))])))

    def at(self, rows: np.ndarray) -> "Arrays":
        """The cases at these rows, in their order, in memory."""
        return Arrays(self.images[rows], self.masks[rows], self._cases_at(rows), self.manifest)

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of at most `size` cases that together are all of them, in order."""
        return (slice(start, min(start + size, len(self.cases))) for start in range(0, len(self.cases), size))

    def _rows_of(self, shares: tuple[str, ...]) -> np.ndarray:
        return np.flatnonzero(self.cases["share"].isin(shares))

    def _cases_at(self, rows: np.ndarray) -> pd.DataFrame:
        return self.cases.iloc[rows].reset_index(drop=True)


def split(group_ids: Iterable[str], seed: int) -> dict[str, str]:
    """group -> share. Whole groups only; the order is drawn from `seed`; sizes follow `SHARES` to the nearest group.

    Raises UserError when there are fewer than 8 groups: every share then needs at least one.
    """
    groups = sorted(set(group_ids))
    if len(groups) < 8:
        raise UserError(f"a split by group needs at least 8 groups, found {len(groups)}")
    order = np.random.default_rng(seed).permutation(len(groups))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(groups)).astype(int)
    names = list(SHARES)
    return {groups[group]: names[int(np.searchsorted(ends, rank, side="right"))] for rank, group in enumerate(order)}


def resize(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 (H, W, C) -> (C, size, size) by area-weighted averaging; mask bool (H, W) -> uint8, foreground where
    at least half of the new pixel's area was."""
    if image.shape[:2] != (size, size):
        grey = image.shape[2] == 1
        shrinks = min(image.shape[:2]) >= size
        picture = Image.fromarray(image[:, :, 0] if grey else image)
        picture = picture.resize((size, size), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
        image = np.asarray(picture)[:, :, None] if grey else np.asarray(picture)
        area = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
        mask = np.asarray(area) >= 0.5
    return np.ascontiguousarray(image.transpose(2, 0, 1)), mask.astype(np.uint8)


def prepare(dataset: DatasetContract, size: int, seed: int, out: Path) -> None:
    """Decode the source once, into the arrays `images.npy`, `masks.npy`, and `cases.csv`, `manifest.json`, all in `out`.

    Cases are written one by one into memory-mapped files, so memory does not grow with the dataset. The folder appears whole
    or not at all. The function returns at once when the folder holds, undamaged, what these options, size, seed, source files
    and code give. Raises UserError for absent or inconsistent data, when all masks are empty, and when the disk is full.
    """
    refs = dataset.index(seed)
    _check_ids(refs)
    shares = split((ref.group_id for ref in refs), seed)
    request = _request(dataset, refs, size, seed)
    if _is_prepared(out, request):
        log(f"{out} is prepared already, with these options, size, seed, source files and code")
        return
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        needed = len(refs) * size * size * (dataset.channels + 1)
        if shutil.disk_usage(partial).free < needed:
            raise UserError(f"no disk space for {out}: {needed / 1e6:.0f} MB are needed")
        _write(dataset, refs, shares, size, partial)
        (partial / REQUEST).write_text(request)
        out.mkdir(parents=True, exist_ok=True)
        for name in (REQUEST, stored.CHECKED):  # what follows replaces file by file
            (out / name).unlink(missing_ok=True)
        for name in WRITTEN:
            os.replace(partial / name, out / name)
        stored.note(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_prepared(out: Path, request: str) -> bool:
    """Whether a folder holds what was asked for, undamaged."""
    with contextlib.suppress(OSError):
        if (out / REQUEST).read_bytes() == request.encode():
            try:
                stored.read(out)
                return True
            except UserError as error:
                log(f"{error}: that is done now")
    return False


def _check_ids(refs: list[CaseRef]) -> None:
    """Raises UserError for a case_id that occurs twice, and for an id that cannot be written as text."""
    seen: set[str] = set()
    for ref in refs:
        if ref.case_id in seen:
            raise UserError(f"the case_id {ref.case_id!r} occurs more than once")
        seen.add(ref.case_id)
        for text in (ref.case_id, ref.group_id):
            if not text or NO_TEXT.search(text):
                raise UserError(f"the id {text!r} is empty, or not text in UTF-8 on one line")


def code_of(name: str) -> list[Path]:
    """The files that hold the code which makes a dataset's arrays: this module, the plug-in's own, and the ones beside it that
    it imports. Torch is not imported."""
    return [Path(__file__), *plugin_code.code_of("dataset", name)]


def _request(dataset: DatasetContract, refs: list[CaseRef], size: int, seed: int) -> str:
    """SHA-256 (hex) of all that the arrays depend on: options, size, seed, the cases with their files' sizes and times of
    change, and the code that reads them."""
    code = [Path(__file__), *plugin_code.code_files("dataset", Path(inspect.getfile(type(dataset))))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in code))
    digest.update(repr((dataset.options(), size, seed, SHARES)).encode())
    for ref in refs:
        digest.update(repr(ref).encode())
        for file in _files_of(ref.source):
            digest.update(repr((file.stat().st_size, file.stat().st_mtime_ns)).encode())
    return digest.hexdigest()


def _files_of(source: object) -> Iterator[Path]:
    """The files in a case's source."""
    if isinstance(source, Path):
        yield source
    elif isinstance(source, tuple):
        for part in source:
            yield from _files_of(part)


def _write(dataset: DatasetContract, refs: list[CaseRef], shares: dict[str, str], size: int, folder: Path) -> None:
    channels = dataset.channels
    images = np.lib.format.open_memmap(folder / IMAGES, "w+", np.uint8, (len(refs), channels, size, size))
    masks = np.lib.format.open_memmap(folder / MASKS, "w+", np.uint8, (len(refs), size, size))
    digest, levels = hashlib.sha256(), np.zeros(256, np.int64)
    progress = Progress("prepare", len(refs), "cases")
    for row, ref in enumerate(refs):
        image, mask = dataset.read(ref, size)
        if image.shape[:2] != mask.shape:
            raise UserError(f"case {ref.case_id}: the image is {image.shape[:2]} px and its mask {mask.shape} px")
        images[row], masks[row] = resize(image, mask, size)
        digest.update(images[row].tobytes() + masks[row].tobytes())
        levels += np.bincount(images[row].ravel(), minlength=256)
        progress.step(row + 1)
    images.flush()
    masks.flush()
    cases = pd.DataFrame(
        {
            "case_id": [ref.case_id for ref in refs],
            "group_id": [ref.group_id for ref in refs],
            "share": [shares[ref.group_id] for ref in refs],
            "foreground": [float(mask.mean()) for mask in masks],
        }
    )
    _describe(dataset, refs, cases, np.flatnonzero(levels), size)
    cases.to_csv(folder / CASES, index=False)
    write_json(folder / MANIFEST, stored.manifest_of(dataset.manifest, cases, channels, size, digest.hexdigest()))


def _describe(dataset: DatasetContract, refs: list[CaseRef], cases: pd.DataFrame, levels: np.ndarray, size: int) -> None:
    """Say in one line what the whole set holds: what is wrong with all of its masks shows in no single one.

    Raises UserError when all masks are empty.
    """
    parts = cases["foreground"]
    if (parts == 0).all():
        described = "; ".join(filter(None, (dataset.describe_mask(ref) for ref in refs[:DESCRIBED])))
        rule = dataset.manifest.foreground
        raise UserError(
            f"all {len(cases)} masks are empty at {size} px (foreground: {rule}){': ' * bool(described)}{described}"
        )
    log(
        f"prepare: {len(cases)} cases in {cases['group_id'].nunique()} groups; foreground {parts.mean():.1%} of all pixels, "
        f"{(parts == 0).sum()} empty masks; {len(levels)} grey levels, from {levels[0]} to {levels[-1]}"
    )
    if parts.mean() > MUCH_FOREGROUND:
        log(f"WARNING: foreground is {parts.mean():.1%} of all pixels, more than half: it may be what surrounds the structure")


def load(folder: Path) -> Arrays:
    """A prepared dataset, memory-mapped.

    Raises UserError when the folder is not one that `prepare` wrote, or when something in it changed since; the module
    `stealthmark.stored` says what is checked, and when.
    """
    return Arrays(*stored.read(folder))


def listing(data_root: Path) -> str:
    """Every dataset plug-in as text: title, licence, address, and whether it is under `data_root`."""
    blocks = []
    for name in plugins.known("dataset"):
        has_files = "data_root" in plugins.load("dataset", name).model_fields
        dataset = make("dataset", {"name": name, **({"data_root": data_root} if has_files else {})})
        manifest = dataset.manifest
        presence = "yes" if dataset.present() else f"no, not under {data_root}"
        blocks.append(
            f"{name}: {manifest.title}\n"
            f"  present:         {presence if has_files else 'drawn from a seed'}\n"
            f"  redistributable: {'yes' if manifest.redistributable else 'no'}\n"
            f"  licence:         {manifest.licence}\n"
            f"  address:         {manifest.address}"
        )
    return "\n".join(blocks)
