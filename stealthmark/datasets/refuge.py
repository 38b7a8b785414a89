"""REFUGE: 400 fundus photographs with optic disc and cup, obtained by joining the challenge."""

from pathlib import Path
from typing import Literal

import numpy as np

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets._layout import Layout
from stealthmark.datasets._masks import check_sizes, mask_values
from stealthmark.datasets._pairing import paired
from stealthmark.datasets._pictures import read_image
from stealthmark.errors import UserError

CLASSES = ("Glaucoma", "Non-Glaucoma")
LAYOUT = Layout(
    title="REFUGE",
    page="https://refuge.grand-challenge.org/",
    licence="challenge terms: non-commercial research, cite the paper",
    trail=("refuge",),
    patterns=("Training400/*Glaucoma/*.jpg", "Annotation-Training400/Disc_Cup_Masks/*Glaucoma/*.bmp"),
)
CUP, RIM, BACKGROUND = 0, 128, 255
FOREGROUND = {"disc": (CUP, RIM), "cup": (CUP,)}
#: A disc narrower than this share of the picture is one in a full field (there about 0.2), which is then cropped ...
FULL_FIELD = 0.4
#: ... to a square around the disc whose side is this many times the disc's larger extent.
CROP = 1.6


class Dataset(DatasetContract):
    """REFUGE's training set in the publisher's layout, `<data_root>/refuge/Training400/{Glaucoma,Non-Glaucoma}/*.jpg` and
    `<data_root>/refuge/Annotation-Training400/Disc_Cup_Masks/{Glaucoma,Non-Glaucoma}/*.bmp`.

    `foreground`: `disc` (cup and rim, the default) or `cup`. A full-field photograph, where the disc is narrower than
    `FULL_FIELD` of the picture, is cropped to a square around the annotated disc, as a disc detector would do before;
    what is cropped already is used whole.
    """

    channels = 3
    data_root: DataRoot = Path("data")
    foreground: Literal["disc", "cup"] = "disc"

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            title=LAYOUT.title,
            citation='Orlando et al., "REFUGE Challenge: A Unified Framework for Evaluating Automated Methods for Glaucoma '
            'Assessment from Fundus Photographs", Medical Image Analysis 2020',
            licence=LAYOUT.licence,
            address=LAYOUT.page,
            redistributable=False,
            size=f"400 photographs (the training part), 2124 x 2056 px; seen in a square of {CROP:g} times the disc's extent "
            "around the annotated disc unless cropped already",
            foreground="optic disc, cup included" if self.foreground == "disc" else "optic cup",
            groups="no patient ids are published: each image is its own group",
        )

    def present(self) -> bool:
        return LAYOUT.find(self.data_root) is not None

    def index(self, seed: int) -> list[CaseRef]:
        root = LAYOUT.require(self.data_root)
        files: dict[str, tuple[Path, Path]] = {}
        for name in CLASSES:
            masks = root / "Annotation-Training400" / "Disc_Cup_Masks" / name
            of_class = paired(root / "Training400" / name, masks, frozenset({".jpg"}), frozenset({".bmp"}))
            if shared := files.keys() & of_class.keys():
                one, other = of_class[min(shared)][0], files[min(shared)][0]
                raise UserError(f"{one} and {other} have the same stem, which is the case_id")
            files |= of_class
        return [CaseRef(case, case, pair) for case, pair in files.items()]

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = ref.source
        pixels, (values, _) = read_image(image, 3), mask_values(mask)
        check_sizes(image, pixels, mask, values)
        unexpected = sorted(set(np.unique(values).tolist()) - {CUP, RIM, BACKGROUND})
        if unexpected:
            raise UserError(f"the mask {mask} holds the value {unexpected[0]}; allowed: 0 (cup), 128 (rim), 255 (background)")
        disc = values != BACKGROUND
        if not disc.any():
            raise UserError(f"the mask {mask} has no disc: all its values are 255 (background)")
        window = around(disc)
        return pixels[window], np.isin(values[window], FOREGROUND[self.foreground])


def around(disc: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square crop around a disc, bool (H, W), moved where it would leave the picture; all of them
    where the disc is no narrower than `FULL_FIELD` of the picture."""
    spans = [np.flatnonzero(disc.any(axis))[[0, -1]] for axis in (1, 0)]
    extent = max(int(last - first) + 1 for first, last in spans)
    if extent >= FULL_FIELD * min(disc.shape):
        return slice(None), slice(None)
    side = round(CROP * extent)
    starts = [
        min(max((int(first + last) + 1 - side) // 2, 0), whole - side)
        for (first, last), whole in zip(spans, disc.shape, strict=True)
    ]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)
