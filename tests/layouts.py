"""Small made-up datasets in their publishers' layouts, for the tests that read files."""

from pathlib import Path

import nibabel
import numpy as np

#: ACDC's labels, one in each quadrant of every slice but the last; the view has the right ventricle (1) at the top left.
QUADRANTS = [[1, 2], [3, 0]]


def write_nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def view(height: int, width: int) -> np.ndarray:
    """Labels uint8 (height, width) as a person looks at them."""
    return np.kron(QUADRANTS, np.ones((height // 2, width // 2))).astype(np.uint8)


def write_acdc(root: Path, patients: int = 8, slices: int = 3) -> Path:
    """`root/acdc/database/training`: two volumes a patient, 20 x 24 px; the last slice of each is without labels."""
    training = root / "acdc" / "database" / "training"
    for patient in range(1, patients + 1):
        for frame in (1, 12):
            stem = training / f"patient{patient:03d}" / f"patient{patient:03d}_frame{frame:02d}"
            rng = np.random.default_rng([patient, frame])
            labels = np.repeat(view(24, 20).T[:, :, None], slices, axis=2)
            labels[:, :, -1] = 0
            write_nifti(stem.with_name(f"{stem.name}_gt.nii.gz"), labels)
            grey = 400 * labels.astype(np.int16) + rng.integers(0, 99, labels.shape, np.int16)
            write_nifti(stem.with_name(f"{stem.name}.nii.gz"), grey)
        write_nifti(stem.with_name(f"patient{patient:03d}_4d.nii.gz"), np.zeros((20, 24, slices, 2), np.int16))
        (stem.parent / "Info.cfg").write_text("ED: 1\nES: 12\n")
    return training


WRITERS = {"acdc": write_acdc}
