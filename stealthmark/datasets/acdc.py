"""ACDC: cine cardiac MR of 100 patients, short-axis slices at end-diastole and end-systole, obtained by registration."""

import re
from pathlib import Path
from typing import Literal

import numpy as np

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets import _nifti
from stealthmark.datasets._layout import Layout
from stealthmark.errors import UserError
from stealthmark.progress import log

LAYOUT = Layout(
    title="ACDC",
    page="https://humanheart-project.creatis.insa-lyon.fr/database/",
    licence="CC BY-NC-SA 4.0",
    trail=("acdc", "database", "training"),
    patterns=("patient*/patient*_frame[0-9][0-9].nii.gz", "patient*/patient*_frame[0-9][0-9]_gt.nii.gz"),
)
LABELS = {0: "background", 1: "right ventricle", 2: "myocardium", 3: "left-ventricular cavity"}
FOREGROUND = {"lv": (3,), "myocardium": (2,), "rv": (1,), "heart": (1, 2, 3)}
#: The volume's percentiles that become 0 and 255: the scanner's grey levels have no unit, and a few voxels are very bright.
PERCENTILES = (1, 99)
#: The side of the central square, as a share of the shorter side: it holds every left ventricle whole, and the whole heart
#: in 196 of the 200 volumes.
CENTRE = 0.7


class Dataset(DatasetContract):
    """ACDC in the publisher's layout, `<data_root>/acdc/database/training/patientNNN/patientNNN_frameNN{,_gt}.nii.gz`.

    `data_root` may also point deeper. A case is one slice, seen as radiologists do (stored axes transposed: the right
    ventricle on the left, the front at the top). `foreground`: `lv` (cavity, papillary muscles included; the default, what
    ejection fractions are measured on and the cine phantom's foreground), `myocardium`, `rv` (cavity) or `heart` (all
    three). `slices`: `all` (the default; some, at the base and below the apex, have an empty mask) or `with-foreground`.
    `crop`: `none` (the default; a left ventricle is then about 1 % of the picture) or `centre`, the central square of `CENTRE`
    of the shorter side (about 3 %).
    The 4-D series (`*_4d.nii.gz`), `Info.cfg` and the publisher's `testing` folder are not read.
    """

    channels = 1
    data_root: DataRoot = Path("data")
    foreground: Literal["lv", "myocardium", "rv", "heart"] = "lv"
    slices: Literal["all", "with-foreground"] = "all"
    crop: Literal["none", "centre"] = "none"

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            title=LAYOUT.title,
            citation='Bernard et al., "Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and '
            'Diagnosis: Is the Problem Solved?", IEEE TMI 2018',
            licence=LAYOUT.licence,
            address=LAYOUT.page,
            redistributable=False,
            size="100 patients (the training part), 2 volumes each, 1902 slices, 154-512 px wide"
            + (f"; here only the slices with {self.foreground}" if self.slices == "with-foreground" else "")
            + (f"; seen in the central square of {CENTRE:g} of the shorter side" if self.crop == "centre" else ""),
            foreground=" and ".join(LABELS[value] for value in FOREGROUND[self.foreground]),
            groups="patient (all slices of both volumes)",
            intensity=f"percentiles {PERCENTILES[0]} to {PERCENTILES[1]} of each volume become 0 to 255",
        )

    def present(self) -> bool:
        return LAYOUT.find(self.data_root) is not None

    def index(self, seed: int) -> list[CaseRef]:
        root = LAYOUT.require(self.data_root)
        refs, total = [], 0
        for image, truth in _nifti.pairs(file for pattern in LAYOUT.patterns for file in root.glob(pattern)).items():
            stem = image.name.removesuffix(".nii.gz")
            named = re.fullmatch(r"(patient\d+)_frame\d\d", stem)
            if not named or named[1] != image.parent.name:
                raise UserError(f"{image} is not named patientNNN/patientNNN_frameNN.nii.gz after its folder")
            if len(_nifti.shape(image)) != 3:
                raise UserError(f"{image} has the shape {_nifti.shape(image)}; expected: three axes, the last one the slices")
            count = _nifti.shape(image)[2]
            total += count
            slices = range(count)
            if self.slices == "with-foreground":
                slices = np.flatnonzero(self._mask(_labels(truth)).any((0, 1))).tolist()
            refs += [CaseRef(f"{stem}_slice{number:02d}", named[1], (image, truth, number)) for number in slices]
        log(f"acdc: {total} slices of {len({ref.group_id for ref in refs})} patients, {total - len(refs)} left out as empty")
        return refs

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        image, truth, number = ref.source
        pixels, labels = _bytes(image)[:, :, number].T, _labels(truth)[:, :, number].T
        if self.crop == "centre":
            side = round(CENTRE * min(labels.shape))
            top, left = ((whole - side) // 2 for whole in labels.shape)
            pixels, labels = (values[top : top + side, left : left + side] for values in (pixels, labels))
        return pixels[:, :, None], self._mask(labels)

    def _mask(self, labels: np.ndarray) -> np.ndarray:
        return np.isin(labels, FOREGROUND[self.foreground])


# Slices are read in order, so that the last volume decoded is the one that the next slice needs.
@_nifti.remembered(1)
def _bytes(path: Path) -> np.ndarray:
    return _nifti.grey(path, PERCENTILES)


@_nifti.remembered(1)
def _labels(path: Path) -> np.ndarray:
    return _nifti.labels(path, LABELS)
