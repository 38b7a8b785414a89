"""The datasets that a person registers for: small sets in their publishers' layouts, and the real ones where they are."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from layouts import view, write_acdc, write_nifti

from stealthmark.dataset import load, prepare
from stealthmark.datasets import acdc
from stealthmark.errors import UserError
from stealthmark.plugin import make


def named(name: str, root: Path, **options):
    return make("dataset", {"name": name, "data_root": root, **options})


def real(name: str, **options):
    """The dataset on the publisher's files under STEALTHMARK_DATA_ROOT; skips where there are none."""
    root = os.environ.get("STEALTHMARK_DATA_ROOT")
    if not root:
        pytest.skip(f"STEALTHMARK_DATA_ROOT is not set: the real {name} is not tested")
    dataset = named(name, Path(root), **options)
    if not dataset.present():
        pytest.skip(f"STEALTHMARK_DATA_ROOT does not hold {name}")
    return dataset


@pytest.mark.parametrize("name", ["acdc"])
def test_an_absent_set_says_where_to_register_and_how_its_files_lie(tmp_path, name):
    dataset = named(name, tmp_path)
    assert not dataset.present()
    with pytest.raises(UserError) as caught:
        prepare(dataset, 16, 1, tmp_path / "out")
    message = str(caught.value)
    manifest = dataset.manifest
    for part in (manifest.title, "register at", manifest.address, manifest.licence, str(tmp_path / name), "exist"):
        assert part in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


# --- ACDC


@pytest.mark.parametrize("up", range(4))
def test_acdc_is_found_wherever_data_root_points(tmp_path, up):
    training = write_acdc(tmp_path)
    dataset = named("acdc", [training, *training.parents][up])
    refs = dataset.index(0)
    assert dataset.present()
    assert len(refs) == 8 * 2 * 3
    assert [ref.case_id for ref in refs[:4]] == [
        "patient001_frame01_slice00",
        "patient001_frame01_slice01",
        "patient001_frame01_slice02",
        "patient001_frame12_slice00",
    ]
    assert {ref.group_id for ref in refs} == {f"patient{n:03d}" for n in range(1, 9)}


@pytest.mark.parametrize(("foreground", "values"), [("rv", [1]), ("myocardium", [2]), ("lv", [3]), ("heart", [1, 2, 3])])
def test_acdc_shows_the_chosen_class_the_way_up_it_is_viewed(tmp_path, foreground, values):
    write_acdc(tmp_path)
    dataset = named("acdc", tmp_path, foreground=foreground)
    refs = dataset.index(0)
    image, mask = dataset.read(refs[0], 96)
    assert (image.shape, image.dtype, mask.dtype) == ((24, 20, 1), np.uint8, bool)
    assert np.array_equal(mask, np.isin(view(24, 20), values))
    assert not dataset.read(refs[2], 96)[1].any()


def test_acdc_percentiles_of_the_volume_become_0_and_255(tmp_path):
    training = write_acdc(tmp_path)
    ramp = np.broadcast_to(np.arange(101, dtype=np.int16)[:, None, None] * 10, (101, 4, 3))
    image, truth = (training / f"patient001/patient001_frame01{end}.nii.gz" for end in ("", "_gt"))
    write_nifti(image, ramp)
    write_nifti(truth, np.zeros(ramp.shape, np.uint8))
    dataset = named("acdc", tmp_path)
    pixels = dataset.read(dataset.index(0)[0], 96)[0]
    assert pixels.shape == (4, 101, 1)
    # The percentiles 1 and 99 are 10 and 990, so a step of 10 is 255 / 98.
    assert pixels[0, [0, 1, 2, 50, 99, 100], 0].tolist() == [0, 0, 3, 128, 255, 255]


def test_acdc_can_leave_out_slices_without_foreground_and_counts_them(tmp_path, capsys):
    write_acdc(tmp_path)
    assert len(named("acdc", tmp_path, slices="with-foreground").index(0)) == 8 * 2 * 2
    assert "acdc: 48 slices of 8 patients, 16 left out as empty" in capsys.readouterr().err


def test_acdc_is_prepared_with_patients_whole_and_each_volume_decoded_once(tmp_path, monkeypatch):
    write_acdc(tmp_path / "data")
    decoded = []
    voxels = acdc._nifti.voxels
    monkeypatch.setattr(acdc._nifti, "voxels", lambda path: decoded.append(path) or voxels(path))
    prepare(named("acdc", tmp_path / "data"), 16, 1, tmp_path / "out")
    assert len(decoded) == len(set(decoded)) == 8 * 2 * 2
    arrays = load(tmp_path / "out")
    assert arrays.images.shape == (48, 1, 16, 16)
    assert arrays.cases.groupby("group_id")["share"].nunique().max() == 1
    assert arrays.manifest["empty_masks"] == 16
    assert arrays.manifest["foreground"] == "left-ventricular cavity"
    assert "percentiles 1 to 99" in arrays.manifest["intensity"]


def without(*names: str):
    def spoil(folder: Path):
        for name in names:
            (folder / name).unlink()

    return spoil


def cut(name: str, share: float = 0.5):
    def spoil(folder: Path):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return spoil


def filled(name: str, values: np.ndarray):
    return lambda folder: write_nifti(folder / name, values)


def text(name: str):
    return lambda folder: (folder / name).write_text("<html>sign in</html>")


IMAGE, TRUTH = "patient003_frame12.nii.gz", "patient003_frame12_gt.nii.gz"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without(TRUTH), f"the image .*{IMAGE} has no mask: there is no .*{TRUTH}"),
        (without(IMAGE), f"the mask .*{TRUTH} has no image"),
        (cut(IMAGE), f"{IMAGE} cannot be decoded: "),
        (cut(TRUTH, 0.9), f"{TRUTH} cannot be decoded: "),
        (cut(TRUTH, 0), f"{TRUTH} is not a NIfTI file"),
        (text(IMAGE), f"{IMAGE} is not a NIfTI file"),
        (filled(TRUTH, np.zeros((20, 24, 4), np.uint8)), r"has the shape \(20, 24, 3\) and its mask .* has \(20, 24, 4\)"),
        (filled(TRUTH, np.full((20, 24, 3), 4, np.uint8)), r"holds the value 4; allowed: 0 \(background\), 1 \(right"),
        (filled(TRUTH, np.full((20, 24, 3), 2.5, np.float32)), "holds the value 2.5; allowed"),
        (filled(IMAGE, np.full((20, 24, 3), 7, np.int16)), r"has no contrast: its percentiles \(1, 99\) are 7 and 7"),
        (filled(IMAGE, np.full((20, 24, 3), np.nan, np.float32)), "has no contrast"),
        (lambda f: (f / IMAGE).with_name("patient004_frame12.nii.gz").write_bytes((f / IMAGE).read_bytes()), "has no mask"),
    ],
)
def test_acdc_names_a_bad_file_and_prepare_leaves_nothing(tmp_path, spoil, complaint):
    spoil(write_acdc(tmp_path / "data") / "patient003")
    with pytest.raises(UserError, match=complaint) as caught:
        prepare(named("acdc", tmp_path / "data"), 16, 1, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_acdc_folders_and_files_must_agree(tmp_path):
    training = write_acdc(tmp_path)
    (training / "patient003").rename(training / "patient030")
    with pytest.raises(UserError, match="is not named patientNNN/patientNNN_frameNN.nii.gz after its folder"):
        named("acdc", tmp_path).index(0)


def test_acdc_volumes_have_three_axes(tmp_path):
    training = write_acdc(tmp_path)
    for end in ("", "_gt"):
        write_nifti(training / f"patient003/patient003_frame12{end}.nii.gz", np.zeros((20, 24), np.uint8))
    with pytest.raises(UserError, match=re.escape("has the shape (20, 24); expected: three axes")):
        named("acdc", tmp_path).index(0)


def test_the_real_acdc():
    dataset = real("acdc")
    refs = dataset.index(0)
    assert len(refs) == 1902
    assert len({ref.group_id for ref in refs}) == 100
    cases = [dataset.read(ref, 96) for ref in refs[::50]]
    assert all(image.shape == (*mask.shape, 1) for image, mask in cases)
    assert 0.8 < np.mean([mask.any() for _, mask in cases]) <= 1
    # Blood is bright: the cavity lies where the chosen class should only if the mask is aligned with the image.
    bright = [image[..., 0][mask].mean() > image[..., 0].mean() for image, mask in cases if mask.any()]
    assert np.mean(bright) > 0.95
