"""CAMUS: echocardiograms of 500 patients at end-diastole and end-systole, obtained by registration."""

import re
from pathlib import Path
from typing import Literal

import numpy as np

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets import _nifti
from stealthmark.datasets._layout import Layout
from stealthmark.errors import UserError

LICENCE = "CC BY-NC-SA 4.0"
PAGE = "https://humanheart-project.creatis.insa-lyon.fr/database/"
LABELS = {0: "background", 1: "left-ventricular cavity", 2: "myocardium", 3: "left atrium"}
FOREGROUND = {"lv": 1, "myocardium": 2, "atrium": 3}


class Dataset(DatasetContract):
    """CAMUS in the publisher's layout, `<data_root>/camus/CAMUS_public/database_nifti/patientNNNN/*_4CH_{ED,ES}{,_gt}.nii.gz`.

    `data_root` may also point deeper. A case is one frame, seen as on the screen (stored axes transposed: the probe at the
    top). `view`: `4CH` (apical four-chamber, the default) or `2CH`. `foreground`: `lv` (cavity, the default), `myocardium`
    or `atrium`. The publisher's `database_split/*.txt` (training, validation, testing) are not used: this benchmark needs
    four shares, so patients are split as in every other dataset. Half sequences and `Info_*.cfg` are not read.
    """

    channels = 1
    data_root: DataRoot = Path("data")
    view: Literal["4CH", "2CH"] = "4CH"
    foreground: Literal["lv", "myocardium", "atrium"] = "lv"

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            title="CAMUS",
            citation='Leclerc et al., "Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D '
            'Echocardiography", IEEE TMI 2019',
            licence=LICENCE,
            address=PAGE,
            redistributable=False,
            size="500 patients, 2 frames of each view (end-diastole and end-systole)",
            foreground=f"{LABELS[FOREGROUND[self.foreground]]}, view {self.view}",
            groups="patient (both frames)",
            split="whole patients, drawn from the suite's seed; the publisher's lists in database_split are not used",
        )

    @property
    def _layout(self) -> Layout:
        return Layout(
            title=f"CAMUS (view {self.view})",
            page=PAGE,
            licence=LICENCE,
            trail=("camus", "CAMUS_public", "database_nifti"),
            patterns=(f"patient*/patient*_{self.view}_E[DS].nii.gz", f"patient*/patient*_{self.view}_E[DS]_gt.nii.gz"),
        )

    def present(self) -> bool:
        return self._layout.find(self.data_root) is not None

    def index(self, seed: int) -> list[CaseRef]:
        layout = self._layout
        root = layout.require(self.data_root)
        refs = []
        for image, truth in _nifti.pairs(file for pattern in layout.patterns for file in root.glob(pattern)).items():
            stem = image.name.removesuffix(".nii.gz")
            named = re.fullmatch(r"(patient\d+)_\dCH_E[DS]", stem)
            if not named or named[1] != image.parent.name:
                raise UserError(f"{image} is not named patientNNNN/patientNNNN_{self.view}_ED.nii.gz after its folder")
            if len(_nifti.shape(image)) != 2 and _nifti.shape(image)[2:] != (1,):
                raise UserError(f"{image} has the shape {_nifti.shape(image)}; expected: one frame, two axes")
            refs.append(CaseRef(stem, named[1], (image, truth)))
        return refs

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        image, truth = ref.source
        pixels, labels = (frame.reshape(frame.shape[:2]).T for frame in (_nifti.bytes_of(image), _nifti.labels(truth, LABELS)))
        return pixels[:, :, None], labels == FOREGROUND[self.foreground]
