"""Kvasir-SEG: 1000 colonoscopy images with polyp masks, downloaded from its publisher on first use."""

from pathlib import Path

import numpy as np

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets._masks import read_pair
from stealthmark.datasets._pairing import paired
from stealthmark.download import Source, obtain
from stealthmark.errors import UserError
from stealthmark.progress import log

FOLDER = "kvasir-seg"
JPEG = frozenset({".jpg"})
SOURCE = Source(
    title="Kvasir-SEG",
    address="https://datasets.simula.no/downloads/kvasir-seg.zip",
    page="https://datasets.simula.no/kvasir-seg/",
    licence="research and education use, cite the paper; commercial use needs prior written permission",
    root="Kvasir-SEG",
    patterns=("images/*.jpg", "masks/*.jpg"),
    # The publisher gives no checksum of the zip (46.2 MB), so this is `contents_digest` over the 2000 files
    # images/*.jpg and masks/*.jpg, computed from a complete copy of the set (1000 pairs, 52402257 bytes).
    # It does not cover the bounding boxes (kavsir_bboxes.json), which nothing reads.
    digest="2a024f362ebc560429a25b5093b34a7aef0aaecf0d2783081a9c3e00b09db1db",
    max_bytes=200_000_000,
    # The server sends its certificate without the intermediate one: browsers fetch that themselves, Python does not.
    incomplete_tls_chain=True,
)


class Dataset(DatasetContract):
    """Kvasir-SEG in the publisher's layout, `<data_root>/kvasir-seg/Kvasir-SEG/{images,masks}/*.jpg`.

    `data_root` may also be a folder that holds `Kvasir-SEG/`, or `images/` and `masks/`. Where the set is absent and
    `download` allows, it is downloaded into `<data_root>/kvasir-seg`. A subset or an altered set is used as it is, with
    a line in the log. Masks are JPEG: thresholded at 127.
    """

    manifest = Manifest(
        title="Kvasir-SEG",
        citation='Jha et al., "Kvasir-SEG: A Segmented Polyp Dataset", MMM 2020',
        licence=SOURCE.licence,
        address=SOURCE.page,
        redistributable=False,
        size="1000 images, 332-1920 px wide",
        foreground="polyp",
        groups="no patient ids are published: each image is its own group",
    )
    channels = 3
    data_root: DataRoot = Path("data")
    download: bool = True

    def present(self) -> bool:
        return self._root() is not None

    def index(self, seed: int) -> list[CaseRef]:
        root = self._root()
        if root is None:
            root = self._download()
        elif not SOURCE.matches(root):
            log(f"kvasir-seg: {root} is not the publisher's complete set of 1000 pairs; using it as it is")
        files = paired(root / "images", root / "masks", JPEG, JPEG)
        return [CaseRef(case, case, pair) for case, pair in files.items()]

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        return read_pair(*ref.source, channels=3)

    def _root(self) -> Path | None:
        """The folder that holds `images/` and `masks/`; one of the two is enough, the other is then reported absent."""
        data = self.data_root.expanduser()
        places = (data / FOLDER / SOURCE.root, data / FOLDER, data / SOURCE.root, data)
        return next((place for place in places if (place / "images").is_dir() or (place / "masks").is_dir()), None)

    def _download(self) -> Path:
        folder = self.data_root.expanduser() / FOLDER
        if not self.download:
            raise UserError(f"Kvasir-SEG is not at {folder} and download is false; {SOURCE.by_hand(folder)}")
        obtain(SOURCE, folder)
        root = self._root()
        if root is None:
            raise UserError(f"{folder} is not empty but holds no images/ and masks/; {SOURCE.by_hand(folder)}")
        return root
