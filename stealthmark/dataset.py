"""Datasets: the contract of a dataset plug-in, the split by group, and the arrays that training reads."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BaseModel, ConfigDict

from stealthmark import plugins
from stealthmark.download import log
from stealthmark.errors import UserError
from stealthmark.plugin import Plugin, make
from stealthmark.progress import Progress

#: The shares of groups: the owner trains on `owner`, fits detectors on `calibration`; the thief holds `attacker`
#: (a third of all training groups); nobody trains on or chooses by `test`.
SHARES = {"owner": 0.40, "calibration": 0.10, "attacker": 0.25, "test": 0.25}
#: What `prepare` writes; `REQUEST` says what the others were made from.
ARRAYS, REQUEST = ("images.npy", "masks.npy", "cases.csv", "manifest.json"), "request.sha256"


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


@dataclass(frozen=True)
class Arrays:
    """A prepared dataset. images: uint8 (N, C, S, S); masks: uint8 (N, S, S) of 0 and 1; cases: case_id, group_id, share."""

    images: np.ndarray
    masks: np.ndarray
    cases: pd.DataFrame
    manifest: dict

    def share(self, *names: str) -> "Arrays":
        """The cases of the named shares (`owner`, `calibration`, `attacker`, `test`), in order."""
        return self.at(np.flatnonzero(self.cases["share"].isin(names)))

    def part(self, fraction: float, seed: int) -> "Arrays":
        """The cases of that fraction of the groups (one at least), drawn from `seed`, in order."""
        groups = np.random.default_rng(seed).permutation(sorted(self.cases["group_id"].unique()))
        return self.at(np.flatnonzero(self.cases["group_id"].isin(groups[: max(1, round(fraction * len(groups)))])))

    def at(self, keep: np.ndarray) -> "Arrays":
        """The cases at these rows, in their order, in memory."""
        return Arrays(self.images[keep], self.masks[keep], self.cases.iloc[keep].reset_index(drop=True), self.manifest)


def split(group_ids: Iterable[str], seed: int) -> dict[str, str]:
    """group -> share. Whole groups only; the order is drawn from `seed`; sizes follow `SHARES` to the nearest group.

    Raises UserError when there are fewer than 8 groups: every share then needs at least one.
    """
    groups = sorted(set(group_ids))
    if len(groups) < 8:
        raise UserError(f"a split by group needs at least 8 groups, found {len(groups)}")
    order = np.random.default_rng(seed).permutation(len(groups))
    edges = np.round(np.cumsum(list(SHARES.values())) * len(groups)).astype(int)
    names = list(SHARES)
    return {groups[g]: names[int(np.searchsorted(edges, rank, side="right"))] for rank, g in enumerate(order)}


def resize(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 (H, W, C) -> (C, size, size) by area-weighted averaging; mask bool (H, W) -> uint8, foreground where
    at least half of the new pixel's area was."""
    if image.shape[:2] != (size, size):
        grey = image.shape[2] == 1
        picture = Image.fromarray(image[:, :, 0] if grey else image)
        image = np.asarray(
            picture.resize((size, size), Image.Resampling.BOX if min(image.shape[:2]) >= size else Image.Resampling.BILINEAR)
        )
        image = image[:, :, None] if grey else image
        soft = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
        mask = np.asarray(soft) >= 0.5
    return np.ascontiguousarray(image.transpose(2, 0, 1)), mask.astype(np.uint8)


def prepare(dataset: DatasetContract, size: int, seed: int, out: Path) -> None:
    """Source -> arrays, decoded once: `images.npy`, `masks.npy`, `cases.csv`, `manifest.json` in `out`.

    Case by case into memory-mapped files, so memory does not grow with the dataset. The folder appears whole or not at
    all. Returns at once when it holds what these options, size, seed and source files give. Raises UserError for absent or
    inconsistent data and when the disk is full.
    """
    refs = dataset.index(seed)
    ids = [ref.case_id for ref in refs]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"the case_id {twice!r} occurs more than once")
    shares = split((ref.group_id for ref in refs), seed)
    request = _request(dataset, refs, size, seed)
    if all((out / name).exists() for name in (*ARRAYS, REQUEST)) and (out / REQUEST).read_text() == request:
        log(f"{out} is prepared already, with these options, size, seed and source files")
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
        (out / REQUEST).unlink(missing_ok=True)  # what follows replaces file by file
        for name in (*ARRAYS, REQUEST):
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _request(dataset: DatasetContract, refs: list[CaseRef], size: int, seed: int) -> str:
    """SHA-256 (hex) of all that the arrays depend on: options, size, seed, the cases with their files' sizes and times of
    change, and the code that reads them."""
    code = [Path(__file__), *sorted((Path(__file__).parent / "datasets").glob("*.py"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in code))
    digest.update(repr((dataset.options(), size, seed, SHARES)).encode())
    for ref in refs:
        digest.update(repr(ref).encode())
        parts = ref.source if isinstance(ref.source, tuple) else (ref.source,)
        for file in (part for part in parts if isinstance(part, Path)):
            digest.update(repr((file.stat().st_size, file.stat().st_mtime_ns)).encode())
    return digest.hexdigest()


def _write(dataset: DatasetContract, refs: list[CaseRef], shares: dict[str, str], size: int, folder: Path) -> None:
    channels = dataset.channels
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(refs), channels, size, size))
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, (len(refs), size, size))
    digest = hashlib.sha256()
    progress = Progress("prepare", len(refs), "cases")
    for row, ref in enumerate(refs):
        image, mask = dataset.read(ref, size)
        if image.shape[:2] != mask.shape:
            raise UserError(f"case {ref.case_id}: the image is {image.shape[:2]} px and its mask {mask.shape} px")
        images[row], masks[row] = resize(image, mask, size)
        digest.update(images[row].tobytes() + masks[row].tobytes())
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
    cases.to_csv(folder / "cases.csv", index=False)
    manifest = {
        **dataset.manifest.model_dump(),
        "channels": channels,
        "pixels": size,
        "cases": len(refs),
        "group_count": int(cases["group_id"].nunique()),
        "share_cases": {name: int((cases["share"] == name).sum()) for name in SHARES},
        "empty_masks": int((cases["foreground"] == 0).sum()),
        "sha256": digest.hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def load(folder: Path) -> Arrays:
    """A prepared dataset, memory-mapped. Raises UserError when the folder is not one that `prepare` wrote."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r")
        masks = np.load(folder / "masks.npy", mmap_mode="r")
        cases = pd.read_csv(folder / "cases.csv", dtype={"case_id": str, "group_id": str})
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not a prepared dataset: {Path(error.filename).name} is absent; run prepare first"
        ) from None
    return Arrays(images, masks, cases, manifest)


def listing(data_root: Path) -> str:
    """Every dataset plug-in as text: title, licence, address, and whether it is under `data_root`."""
    blocks = []
    for name in plugins.known("dataset"):
        read = "data_root" in plugins.load("dataset", name).model_fields
        dataset = make("dataset", {"name": name, **({"data_root": data_root} if read else {})})
        manifest = dataset.manifest
        here = "yes" if dataset.present() else f"no, not under {data_root}"
        blocks.append(
            f"{name}: {manifest.title}\n"
            f"  present:         {here if read else 'drawn from a seed'}\n"
            f"  redistributable: {'yes' if manifest.redistributable else 'no'}\n"
            f"  licence:         {manifest.licence}\n"
            f"  address:         {manifest.address}"
        )
    return "\n".join(blocks)
