"""Small made-up datasets in their publishers' layouts, for the tests that read files."""

from pathlib import Path

import av
import nibabel
import numpy as np
from PIL import Image

#: ACDC's labels, one in each quadrant of every slice but the last; the view has the right ventricle (1) at the top left.
QUADRANTS = [[1, 2], [3, 0]]


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


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


def write_camus(root: Path, patients: int = 8, views: tuple[str, ...] = ("4CH",)) -> Path:
    """`root/camus/CAMUS_public/database_nifti`: two frames a patient and view, 20 x 24 px, stored transposed."""
    nifti = root / "camus" / "CAMUS_public" / "database_nifti"
    for patient in range(1, patients + 1):
        folder = nifti / f"patient{patient:04d}"
        for view_name in views:
            for moment in ("ED", "ES"):
                rng = np.random.default_rng([patient, moment == "ED"])
                stem = f"{folder.name}_{view_name}_{moment}"
                write_nifti(folder / f"{stem}.nii.gz", rng.integers(0, 256, (20, 24), np.uint8))
                write_nifti(folder / f"{stem}_gt.nii.gz", view(24, 20).T)
            write_nifti(folder / f"{folder.name}_{view_name}_half_sequence.nii.gz", np.zeros((20, 24, 5), np.uint8))
    return nifti


def fundus(side: int, disc: int, centre: tuple[int, int]) -> np.ndarray:
    """A mask (side, side) of the REFUGE kind: a square disc `disc` px wide around `centre` (row, column), half of it cup."""
    mask = np.full((side, side), 255, np.uint8)
    for value, extent in ((128, disc), (0, disc // 2)):
        top, left = (at - extent // 2 for at in centre)
        mask[top : top + extent, left : left + extent] = value
    return mask


def write_refuge(root: Path, cases: int = 4, side: int = 40, disc: int = 20) -> Path:
    """`root/refuge`: `cases` photographs with and as many without glaucoma, `side` px, and their masks."""
    for name, letter in (("Glaucoma", "g"), ("Non-Glaucoma", "n")):
        images = root / "refuge" / "Training400" / name
        masks = root / "refuge" / "Annotation-Training400" / "Disc_Cup_Masks" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for case in range(1, cases + 1):
            pixels = np.random.default_rng(case).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{letter}{case:04d}.jpg")
            Image.fromarray(fundus(side, disc, (side // 2, side // 2))).save(masks / f"{letter}{case:04d}.bmp")
    return root / "refuge"


def write_cvc_clinicdb(root: Path, frames: tuple[int, ...] = tuple(range(1, 613, 10)), ending: str = ".tif") -> Path:
    """`root/cvc-clinicdb/CVC-ClinicDB`: some of the frames, 24 x 18 px, the polyp at the top left."""
    folder = root / "cvc-clinicdb" / "CVC-ClinicDB"
    mask = np.zeros((18, 24), np.uint8)
    mask[:9, :12] = 255
    for kind in ("Original", "Ground Truth"):
        (folder / kind).mkdir(parents=True)
    for frame in frames:
        pixels = np.random.default_rng(frame).integers(0, 256, (18, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "Original" / f"{frame}{ending}")
        Image.fromarray(mask).save(folder / "Ground Truth" / f"{frame}{ending}")
    return folder


def write_avi(path: Path, levels: list[int], side: int = 112) -> None:
    """A Motion-JPEG video whose frames are each of one grey level."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=50)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((side, side), level, np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


#: Frames of every video below; frame n has the grey level 20 n.
ECHONET_FRAMES = 8
ECHONET_TRACED = (2, 6)


def write_echonet_dynamic(root: Path, videos: int = 8) -> Path:
    """`root/echonet-dynamic/EchoNet-Dynamic`: the left ventricle of every video is the square of the pixels 30 to 69 across
    and 20 to 59 down, but in frame 6 it ends at 39 down. One more video is listed without a tracing."""
    folder = root / "echonet-dynamic" / "EchoNet-Dynamic"
    (folder / "Videos").mkdir(parents=True)
    names = [f"0X{number:04X}" for number in range(1, videos + 1)]
    lines = ["FileName,X1,Y1,X2,Y2,Frame"]
    for name in names:
        write_avi(folder / "Videos" / f"{name}.avi", [20 * frame for frame in range(ECHONET_FRAMES)])
        for frame, end in zip(ECHONET_TRACED, (59.5, 39.5), strict=True):
            lines.append(f"{name}.avi,49.5,19.5,49.5,{end},{frame}")
            lines += [f"{name}.avi,29.5,{y},69.5,{y},{frame}" for y in np.linspace(19.5, end, 20)]
    (folder / "VolumeTracings.csv").write_text("\n".join(lines) + "\n")
    listed = [f"{name},60.1,30.2,75.7,112,112,50,{ECHONET_FRAMES},TRAIN" for name in [*names, "0XFFFF"]]
    header = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
    (folder / "FileList.csv").write_text("\n".join([header, *listed]) + "\n")
    return folder


WRITERS = {
    "acdc": write_acdc,
    "camus": write_camus,
    "refuge": write_refuge,
    "cvc-clinicdb": write_cvc_clinicdb,
    "echonet-dynamic": write_echonet_dynamic,
}
