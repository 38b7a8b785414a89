"""CVC-ClinicDB: 612 colonoscopy frames with polyp masks, from 29 sequences, obtained from its publisher by hand."""

import bisect
from pathlib import Path

import numpy as np

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets._layout import Layout
from stealthmark.datasets._masks import Rule, read_pair
from stealthmark.datasets._pairing import paired
from stealthmark.errors import UserError

LAYOUT = Layout(
    title="CVC-ClinicDB",
    page="https://polyp.grand-challenge.org/CVCClinicDB/",
    licence="research and education use, cite the paper; commercial use is forbidden",
    trail=("cvc-clinicdb", "CVC-ClinicDB"),
    patterns=("Original/*.*", "Ground Truth/*.*"),
)
ENDINGS = frozenset({".tif", ".tiff", ".png"})
FRAMES = 612
#: The first frame of each sequence, as the publisher's page lists them; a sequence ends where the next one begins.
STARTS = (1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298)
STARTS += (318, 343, 364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592)


#: The masks of copies as PNG have grey edges: 138 of 612.
MASKS = Rule(blurred=True)


class Dataset(DatasetContract):
    """CVC-ClinicDB in the publisher's layout, `<data_root>/cvc-clinicdb/CVC-ClinicDB/{Original,Ground Truth}/N.tif`.

    `data_root` may also point deeper; copies as PNG are read too, their masks above half of white. Frames of one sequence show
    one polyp and stay together.
    """

    manifest = Manifest(
        title=LAYOUT.title,
        citation='Bernal et al., "WM-DOVA Maps for Accurate Polyp Highlighting in Colonoscopy: Validation vs. Saliency Maps '
        'from Physicians", Computerized Medical Imaging and Graphics 2015',
        licence=LAYOUT.licence,
        address=LAYOUT.page,
        redistributable=False,
        size="612 frames of 384 x 288 px",
        foreground="polyp",
        groups="sequence: 29 of them, by the publisher's ranges of frames",
    )
    channels = 3
    data_root: DataRoot = Path("data")

    def present(self) -> bool:
        return LAYOUT.find(self.data_root) is not None

    def index(self, seed: int) -> list[CaseRef]:
        root = LAYOUT.require(self.data_root)
        files = paired(root / "Original", root / "Ground Truth", ENDINGS, ENDINGS)
        for case, (image, _) in files.items():
            if not case.isdecimal() or not 1 <= int(case) <= FRAMES:
                raise UserError(f"{image} is not named after a frame; allowed: 1 to {FRAMES}")
        return [CaseRef(case, f"sequence{sequence(int(case)):02d}", files[case]) for case in sorted(files, key=int)]

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        return read_pair(*ref.source, channels=3, rule=MASKS)


def sequence(frame: int) -> int:
    """The sequence, 1 to 29, of a frame, 1 to 612."""
    return bisect.bisect_right(STARTS, frame)
