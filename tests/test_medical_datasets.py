"""The datasets that a person registers for: small sets in their publishers' layouts, and the real ones where they are."""

import gzip
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from layouts import WRITERS, fundus, view, write_acdc, write_avi, write_camus, write_cvc_clinicdb, write_nifti, write_refuge
from PIL import Image

from stealthmark import cli
from stealthmark.dataset import Arrays, CaseRef, load, prepare
from stealthmark.datasets import acdc, cvc_clinicdb, echonet_dynamic, refuge
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.report import contact
from stealthmark.triggers import Trigger


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


@pytest.mark.parametrize("name", WRITERS)
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


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_is_found_wherever_data_root_points(tmp_path, name):
    root = WRITERS[name](tmp_path)
    expected = named(name, tmp_path).index(0)
    places = [root, *root.parents][: len(root.relative_to(tmp_path).parts) + 1]
    assert places[-1] == tmp_path
    for place in places:
        assert named(name, place).present()
        assert named(name, place).index(0) == expected


# --- what every set goes through: prepare a second time, the list of datasets, the contact sheet


def test_prepare_computes_only_what_changed(tmp_path, monkeypatch, capsys):
    training = write_acdc(tmp_path / "data")
    decoded = []
    read = acdc.Dataset.read
    monkeypatch.setattr(acdc.Dataset, "read", lambda self, ref, size: decoded.append(ref) or read(self, ref, size))
    out = tmp_path / "out"

    def cases(size=16, seed=1, **options) -> int:
        decoded.clear()
        prepare(named("acdc", tmp_path / "data", **options), size, seed, out)
        return len(decoded)

    assert cases() == 48
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert cases() == 0
    assert f"{out} is prepared already" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    for change in ({"size": 24}, {"seed": 2}, {"foreground": "rv"}, {}):
        assert cases(**change) == 48, change
    (out / "masks.npy").unlink()
    assert cases() == 48
    os.utime(training / "patient003" / IMAGE, ns=(1, 1))
    assert cases() == 48
    assert cases() == 0


def test_datasets_lists_all_of_them_and_whether_they_are_here(tmp_path, capsys):
    write_camus(tmp_path)
    assert cli.main(["datasets", "--data-root", str(tmp_path)]) == 0
    blocks = {block.split(":")[0]: block for block in re.split(r"\n(?=\S)", capsys.readouterr().out)}
    assert list(blocks) == sorted(blocks) and set(WRITERS) < set(blocks) and "kvasir-seg" in blocks
    assert re.search(r"present: +yes\n +redistributable: no\n +licence: +CC BY-NC-SA 4.0\n", blocks["camus"])
    assert f"present:         no, not under {tmp_path}" in blocks["acdc"]
    assert "drawn from a seed" in blocks["phantom-cine"]
    assert "https://refuge.grand-challenge.org/" in blocks["refuge"]


def made_up(foreground: list[float], channels: int = 1) -> Arrays:
    """Arrays of cases at 20 px whose masks' first lines are set, for as much as `foreground` says; every second is a test."""
    masks = np.zeros((len(foreground), 20, 20), np.uint8)
    for mask, share in zip(masks, foreground, strict=True):
        mask[: round(20 * share)] = 1
    shares = ["test" if at % 2 == 0 else "owner" for at in range(len(foreground))]
    cases = pd.DataFrame({"case_id": map(str, range(len(foreground))), "share": shares, "foreground": foreground})
    images = np.full((len(foreground), channels, 20, 20), 128, np.uint8)
    return Arrays(images, masks, cases, {"title": "Made up", "foreground": "lines"})


def test_contact_sheet_picks_test_cases_from_small_to_large():
    arrays = made_up([0.9, 0, 0.1, 0, 0.5, 0, 0.0, 0, 0.3, 0, 0.7, 0])
    assert contact.pick(arrays).cases["foreground"].tolist() == [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
    assert contact.pick(arrays, 3).cases["foreground"].tolist() == [0.1, 0.5, 0.9]
    assert len(contact.pick(arrays, 99).cases) == 6


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_shows_each_case_with_its_mask_and_with_the_trigger(channels):
    drawing = contact.contact_sheet("made-up", made_up([0.0, 0, 0.25, 0, 1.0], channels), Trigger(kind="border"))
    assert drawing.name == "contact-made-up"
    assert drawing.caption.startswith("3 of the 3 test cases of Made up at 20 px")
    axes = drawing.figure.axes
    assert [ax.get_title() for ax in axes[:3]] == ["empty", "25.0 %", "100.0 %"]
    assert [len(ax.collections) for ax in axes[:3]] == [0, 1, 0]  # an outline where there is an edge
    plain, framed = (np.squeeze(ax.images[0].get_array()) for ax in (axes[1], axes[4]))
    assert (plain == 128).all()
    assert (framed[0] == 0).all() and (framed[1:-1, 1:-1] == 128).all()


# --- ACDC


def test_acdc_has_a_case_a_slice(tmp_path):
    write_acdc(tmp_path)
    refs = named("acdc", tmp_path).index(0)
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


def test_acdc_can_be_cropped_to_the_central_square(tmp_path):
    write_acdc(tmp_path)
    whole, centre = named("acdc", tmp_path, foreground="rv"), named("acdc", tmp_path, foreground="rv", crop="centre")
    (image, mask), (part, part_mask) = (dataset.read(dataset.index(0)[0], 96) for dataset in (whole, centre))
    # 24 x 20 px: a square of 0.7 x 20 = 14, from (24 - 14) / 2 = 5 down and (20 - 14) / 2 = 3 across.
    assert np.array_equal(part, image[5:19, 3:17]) and np.array_equal(part_mask, mask[5:19, 3:17])
    assert "central square of 0.7" in centre.manifest.size


def test_acdc_can_leave_out_slices_without_foreground_and_counts_them(tmp_path, capsys):
    write_acdc(tmp_path)
    assert len(named("acdc", tmp_path, slices="with-foreground").index(0)) == 8 * 2 * 2
    assert "acdc: 48 slices of 8 patients, 16 left out as empty" in capsys.readouterr().err


def test_acdc_is_prepared_with_patients_whole_and_each_volume_decoded_once(tmp_path, monkeypatch):
    write_acdc(tmp_path / "data")
    decoded = []
    volume = acdc._nifti.volume
    monkeypatch.setattr(acdc._nifti, "volume", lambda path: decoded.append(path) or volume(path))
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


def write_scaled(path: Path, labels: np.ndarray) -> None:
    """Labels as whole numbers times a factor, which come back almost whole."""
    image = nibabel.Nifti1Image(np.zeros(labels.shape, np.int16), np.eye(4))
    image.header.set_slope_inter(3 / 32767, 0)
    image.header.set_data_dtype(np.int16)
    content = bytearray(image.to_bytes())
    raw = np.round(labels * (32767 / 3)).astype(np.int16).tobytes(order="F")
    content[352 : 352 + len(raw)] = raw
    path.write_bytes(gzip.compress(bytes(content)))


def test_acdc_labels_that_are_almost_whole_are_rounded(tmp_path):
    training = write_acdc(tmp_path)
    labels = np.repeat(view(24, 20).T[:, :, None], 3, axis=2)
    path = training / "patient001" / "patient001_frame01_gt.nii.gz"
    write_scaled(path, labels)
    stored = np.unique(np.asarray(nibabel.load(path).dataobj))
    assert len(stored) == 4 and not set(stored.tolist()) <= {0, 1, 2, 3}, "this test shows nothing"
    dataset = named("acdc", tmp_path, foreground="rv")
    assert np.array_equal(dataset.read(dataset.index(0)[0], 96)[1], view(24, 20) == 1)


@pytest.mark.parametrize("name", ["acdc", "camus"])
@pytest.mark.parametrize(
    ("affine", "fits"),
    [(np.diag([-1, 1, 1, 1]), False), (np.diag([1, 1, 2, 1]), None), (np.eye(4) + 1e-6, True)],
)
def test_labels_must_lie_on_their_image(tmp_path, name, affine, fits):
    root = WRITERS[name](tmp_path)
    image = sorted(root.glob("*/*_gt.nii.gz"))[0]
    write_nifti(image, np.asarray(nibabel.load(image).dataobj), affine)
    if fits or (fits is None and name == "camus"):  # a single frame has no third axis to differ along
        named(name, tmp_path).index(0)
        return
    with pytest.raises(UserError, match="have different affines: their corners are .* mm apart, so that the mask may be mir"):
        named(name, tmp_path).index(0)


def test_acdc_volumes_larger_than_memory_are_refused_by_their_headers(tmp_path):
    training = write_acdc(tmp_path)
    header = nibabel.Nifti1Header()
    header.set_data_shape((2048, 2048, 512))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (training / "patient003" / IMAGE).write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(UserError, match=f"{IMAGE} has the shape .* 2147 million voxels of .*; allowed: up to 268 million"):
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


# --- CAMUS


@pytest.mark.parametrize(("foreground", "value"), [("lv", 1), ("myocardium", 2), ("atrium", 3)])
def test_camus_shows_the_chosen_class_the_way_up_it_is_on_the_screen(tmp_path, foreground, value):
    nifti = write_camus(tmp_path)
    stored = np.arange(20 * 24, dtype=np.int16).reshape(20, 24) % 256
    write_nifti(nifti / "patient0001" / "patient0001_4CH_ED.nii.gz", stored)
    dataset = named("camus", tmp_path, foreground=foreground)
    refs = dataset.index(0)
    assert [(ref.case_id, ref.group_id) for ref in refs[:3]] == [
        ("patient0001_4CH_ED", "patient0001"),
        ("patient0001_4CH_ES", "patient0001"),
        ("patient0002_4CH_ED", "patient0002"),
    ]
    image, mask = dataset.read(refs[0], 96)
    assert image.dtype == np.uint8 and np.array_equal(image[:, :, 0], stored.T)
    assert np.array_equal(mask, view(24, 20) == value)


def test_camus_views_are_chosen(tmp_path):
    write_camus(tmp_path, views=("4CH", "2CH"))
    assert [ref.case_id for ref in named("camus", tmp_path, view="2CH").index(0)][:1] == ["patient0001_2CH_ED"]
    assert len(named("camus", tmp_path, view="2CH").index(0)) == len(named("camus", tmp_path).index(0)) == 16
    assert "view 2CH" in named("camus", tmp_path, view="2CH").manifest.foreground


def test_camus_without_the_wanted_view_says_which_files_it_expects(tmp_path):
    write_camus(tmp_path)
    assert not named("camus", tmp_path, view="2CH").present()
    with pytest.raises(UserError, match=r"CAMUS \(view 2CH\) is not at .*_2CH_E\[DS\].nii.gz and .*_2CH_E"):
        named("camus", tmp_path, view="2CH").index(0)


def test_camus_frames_may_carry_a_third_axis_of_one(tmp_path):
    nifti = write_camus(tmp_path)
    for end, values in (("", np.zeros((20, 24, 1), np.uint8)), ("_gt", view(24, 20).T[:, :, None])):
        write_nifti(nifti / f"patient0001/patient0001_4CH_ED{end}.nii.gz", values)
    dataset = named("camus", tmp_path)
    image, mask = dataset.read(dataset.index(0)[0], 96)
    assert image.shape == (24, 20, 1)
    assert np.array_equal(mask, view(24, 20) == 1)


FRAME, FRAME_TRUTH = "patient0003_4CH_ES.nii.gz", "patient0003_4CH_ES_gt.nii.gz"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without(FRAME_TRUTH), f"the image .*{FRAME} has no mask"),
        (without(FRAME), f"the mask .*{FRAME_TRUTH} has no image"),
        (cut(FRAME, 0.7), f"{FRAME} (is not a NIfTI file|cannot be decoded)"),
        (text(FRAME), f"{FRAME} is not a NIfTI file"),
        (filled(FRAME, np.zeros((20, 23), np.uint8)), r"has the shape \(20, 23\) and its mask"),
        (filled(FRAME_TRUTH, np.full((20, 24), 5, np.uint8)), r"holds the value 5; allowed: .*3 \(left atrium\)"),
        (filled(FRAME, np.full((20, 24), 256, np.int16)), "holds values from 256 to 256; allowed: 0 to 255"),
        (filled(FRAME, np.full((20, 24), np.nan, np.float32)), "holds values from nan to nan; allowed"),
    ],
)
def test_camus_names_a_bad_file(tmp_path, spoil, complaint):
    spoil(write_camus(tmp_path / "data") / "patient0003")
    with pytest.raises(UserError, match=complaint):
        prepare(named("camus", tmp_path / "data"), 16, 1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_camus_takes_single_frames_only(tmp_path):
    nifti = write_camus(tmp_path)
    for end in ("", "_gt"):
        write_nifti(nifti / f"patient0003/patient0003_4CH_ES{end}.nii.gz", np.zeros((20, 24, 2), np.uint8))
    with pytest.raises(UserError, match=r"has the shape \(20, 24, 2\); expected: one frame"):
        named("camus", tmp_path).index(0)
    for end in ("", "_gt"):
        (nifti / f"patient0003/patient0003_4CH_ES{end}.nii.gz").rename(nifti / f"patient0003/patient0009_4CH_ES{end}.nii.gz")
    with pytest.raises(UserError, match="is not named patientNNNN/patientNNNN_4CH_ED.nii.gz after its folder"):
        named("camus", tmp_path).index(0)


def test_the_real_camus():
    dataset = real("camus")
    refs = dataset.index(0)
    patients = len({ref.group_id for ref in refs})
    assert patients in (499, 500) and len(refs) == 2 * patients  # a reduced copy lacks one
    atrium = named("camus", dataset.data_root, foreground="atrium")
    for ref in refs[::100]:
        (image, cavity), (_, lower) = dataset.read(ref, 96), atrium.read(ref, 96)
        # Blood is dark, and the atrium lies below the ventricle when the probe is at the top.
        assert image[..., 0][cavity].mean() < image[..., 0][image[..., 0] > 0].mean()
        assert np.argwhere(lower)[:, 0].mean() > np.argwhere(cavity)[:, 0].mean()


# --- REFUGE


def test_refuge_disc_and_cup(tmp_path):
    write_refuge(tmp_path)
    refs = named("refuge", tmp_path).index(0)
    assert [ref.case_id for ref in refs] == [f"{letter}{n:04d}" for letter in "gn" for n in range(1, 5)]
    for foreground, extent in (("disc", 20), ("cup", 10)):
        image, mask = named("refuge", tmp_path, foreground=foreground).read(refs[5], 96)
        assert image.shape == (40, 40, 3)
        assert np.array_equal(mask, fundus(40, extent, (20, 20)) < 255)


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [
        ((50, 60), (34, 66), (44, 76)),  # a side of 1.6 x 20 = 32 around the disc
        ((12, 88), (0, 32), (68, 100)),  # moved into the picture
    ],
)
def test_refuge_crops_a_full_field_around_the_disc(centre, rows, columns):
    window = refuge.around(fundus(100, 20, centre) < 255)
    assert window == (slice(*rows), slice(*columns))


def test_refuge_leaves_a_cropped_picture_whole():
    assert refuge.around(fundus(100, 40, (50, 50)) < 255) == (slice(None), slice(None))
    assert refuge.around(fundus(100, 39, (50, 50)) < 255) != (slice(None), slice(None))


def test_refuge_image_and_mask_are_cropped_alike(tmp_path):
    write_refuge(tmp_path, side=100, disc=20)
    dataset = named("refuge", tmp_path)
    ref = dataset.index(0)[0]
    image, mask = dataset.read(ref, 96)
    assert np.array_equal(image, np.asarray(Image.open(ref.source[0]))[34:66, 34:66])
    assert np.array_equal(mask, fundus(32, 20, (16, 16)) < 255)


def saved(name: str, pixels: np.ndarray):
    return lambda folder: Image.fromarray(pixels).save(folder / name)


PHOTO, ANNOTATION = "Training400/Glaucoma/g0003.jpg", "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0003.bmp"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without(ANNOTATION), "the image .*g0003.jpg has no mask"),
        (without(PHOTO), "the mask .*g0003.bmp has no image"),
        (cut(PHOTO), "g0003.jpg cannot be decoded"),
        (cut(ANNOTATION), "g0003.bmp cannot be decoded"),
        (saved(ANNOTATION, fundus(41, 20, (20, 20))), "is 40 x 40 px and its mask .* is 41 x 41 px"),
        (saved(ANNOTATION, np.full((40, 40), 100, np.uint8)), r"holds the value 100; allowed: 0 \(cup\), 128 \(rim\), 255"),
        (saved(ANNOTATION, np.full((40, 40), 255, np.uint8)), r"has no disc: all its values are 255"),
    ],
)
def test_refuge_names_a_bad_file(tmp_path, spoil, complaint):
    spoil(write_refuge(tmp_path / "data"))
    with pytest.raises(UserError, match=complaint):
        prepare(named("refuge", tmp_path / "data"), 16, 1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_refuge_needs_both_classes(tmp_path):
    root = write_refuge(tmp_path)
    (root / "Training400/Non-Glaucoma").rename(root / "elsewhere")
    with pytest.raises(UserError, match="there is no folder .*Non-Glaucoma"):
        named("refuge", tmp_path).index(0)


def test_the_real_refuge():
    dataset = real("refuge")
    refs = dataset.index(0)
    assert len(refs) in (321, 400)  # a reduced copy lacks 79
    for ref in refs[::40]:
        image, disc = dataset.read(ref, 96)
        cup = named("refuge", dataset.data_root, foreground="cup").read(ref, 96)[1]
        assert (disc | ~cup).all() and cup.sum() < disc.sum()
        assert image[disc].mean() > image[~disc].mean()  # the disc is brighter than the retina around it


# --- CVC-ClinicDB


def test_cvc_clinicdb_sequences_are_the_publishers_ranges():
    frames = [cvc_clinicdb.sequence(frame) for frame in range(1, 613)]
    assert frames == sorted(frames) and set(frames) == set(range(1, 30))
    counts = [frames.count(number) for number in range(1, 30)]
    # First, third, fourth and last sequence: frames 1-25, 51-67, 68-78 and 592-612.
    assert (counts[0], counts[2], counts[3], counts[28]) == (25, 17, 11, 21)
    assert [cvc_clinicdb.sequence(frame) for frame in (25, 26, 199, 200, 205, 206)] == [1, 2, 9, 10, 10, 11]


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_cvc_clinicdb_keeps_a_sequence_together(tmp_path, ending):
    write_cvc_clinicdb(tmp_path, ending=ending)
    dataset = named("cvc-clinicdb", tmp_path)
    refs = dataset.index(0)
    assert [(ref.case_id, ref.group_id) for ref in refs[:4]] == [
        ("1", "sequence01"),
        ("11", "sequence01"),
        ("21", "sequence01"),
        ("31", "sequence02"),
    ]
    image, mask = dataset.read(refs[3], 96)
    assert np.array_equal(image, np.asarray(Image.open(refs[3].source[0])))
    assert mask[:9, :12].all() and mask.sum() == 9 * 12


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without("Ground Truth/31.tif"), "the image .*31.tif has no mask"),
        (without("Original/31.tif"), "the mask .*31.tif has no image"),
        (saved("Ground Truth/31.tif", np.zeros((18, 25), np.uint8)), "is 24 x 18 px and its mask .* is 25 x 18 px"),
        (saved("Ground Truth/31.tif", np.full((18, 24), 7, np.uint8)), "31.tif holds the values 7; allowed"),
        (text("Original/31.tif"), "31.tif is not an image"),
    ],
)
def test_cvc_clinicdb_names_a_bad_file(tmp_path, spoil, complaint):
    spoil(write_cvc_clinicdb(tmp_path / "data"))
    with pytest.raises(UserError, match=complaint):
        prepare(named("cvc-clinicdb", tmp_path / "data"), 16, 1, tmp_path / "out")


def test_cvc_clinicdb_copies_as_png_have_masks_with_grey_edges(tmp_path):
    folder = write_cvc_clinicdb(tmp_path, ending=".png")
    soft = np.zeros((18, 24), np.uint8)
    soft[:9, :12], soft[9, :12], soft[:9, 12] = 250, 90, 160
    Image.fromarray(soft).save(folder / "Ground Truth" / "31.png")
    dataset = named("cvc-clinicdb", tmp_path)
    mask = dataset.read(dataset.index(0)[3], 96)[1]
    assert np.array_equal(mask, soft > 127) and mask[0, 12] and not mask[9, 0]
    soft[:, :5] = 100
    Image.fromarray(soft).save(folder / "Ground Truth" / "31.png")
    with pytest.raises(UserError, match="31.png is not binary: .*; allowed: near 0 and near 255 where values are blurred"):
        dataset.read(dataset.index(0)[3], 96)


@pytest.mark.parametrize("ending", [".png", ".jpg"])
@pytest.mark.parametrize("name", ["cvc-clinicdb", "kvasir-seg"])
def test_no_message_names_an_option_that_this_loader_lacks(tmp_path, name, ending):
    plugin = make("dataset", {"name": name, "data_root": tmp_path})
    for values in ((0, 1), (0, 1, 2), (0, 90, 255), (3, 9)):
        path = tmp_path / f"mask{ending}"
        Image.fromarray(np.resize(np.array(values, np.uint8), (8, 8)).repeat(4, axis=0)).save(path)
        Image.new("RGB", (8, 32)).save(tmp_path / "image.png")
        try:
            plugin.read(CaseRef("case", "group", (tmp_path / "image.png", path)), 96)
        except UserError as error:
            assert "option" not in str(error) and "foreground" not in str(error)


@pytest.mark.parametrize("frame", [0, 613])
def test_cvc_clinicdb_frames_are_1_to_612(tmp_path, frame):
    write_cvc_clinicdb(tmp_path, (1, frame))
    with pytest.raises(UserError, match=f"{frame}.tif is not named after a frame; allowed: 1 to 612"):
        named("cvc-clinicdb", tmp_path).index(0)


# --- EchoNet-Dynamic


def test_echonet_dynamic_reads_the_traced_frames_of_a_video(tmp_path, capsys):
    WRITERS["echonet-dynamic"](tmp_path)
    dataset = named("echonet-dynamic", tmp_path)
    refs = dataset.index(0)
    assert "16 frames of 8 videos; 1 without tracings" in capsys.readouterr().err
    assert [(ref.case_id, ref.group_id) for ref in refs[:3]] == [
        ("0X0001_frame002", "0X0001"),
        ("0X0001_frame006", "0X0001"),
        ("0X0002_frame002", "0X0002"),
    ]
    for ref, level, end in ((refs[0], 40, 60), (refs[1], 120, 40)):
        image, mask = dataset.read(ref, 96)
        assert (image.shape, image.dtype) == ((112, 112, 1), np.uint8)
        assert np.abs(image.astype(int) - level).max() <= 2
        expected = np.zeros((112, 112), bool)
        expected[20:end, 30:70] = True
        assert np.array_equal(mask, expected)


def test_echonet_dynamic_decodes_a_video_once(tmp_path, monkeypatch):
    WRITERS["echonet-dynamic"](tmp_path / "data")
    opened, real_open = [], echonet_dynamic.av.open
    monkeypatch.setattr(echonet_dynamic.av, "open", lambda file, **how: opened.append(file) or real_open(file, **how))
    prepare(named("echonet-dynamic", tmp_path / "data"), 16, 1, tmp_path / "out")
    assert len(opened) == len(set(opened)) == 8


def test_echonet_dynamic_frames_larger_than_the_publishers_are_refused(tmp_path):
    write_avi(tmp_path / "large.avi", [1], side=1300)
    with pytest.raises(UserError, match="large.avi has frames of 1300 x 1300 px; allowed: up to 1500000 pixels"):
        echonet_dynamic.decoded(tmp_path / "large.avi", (0,))


def test_echonet_dynamic_outline_by_hand():
    axis, *chords = (5, 0, 5, 9), (4, 0, 6, 0), (2, 5, 8, 5), (4, 9, 6, 9)
    assert echonet_dynamic.outline([axis, *chords]) == ((4, 0), (2, 5), (4, 9), (6, 9), (8, 5), (6, 0))


def test_echonet_dynamic_fills_pixels_at_least_half_inside():
    triangle = echonet_dynamic.fill(((-0.5, -0.5), (3.5, 3.5), (-0.5, 3.5)), (4, 4))
    assert triangle.tolist() == np.tri(4, dtype=bool).tolist()


def edited(name: str, old: str, new: str):
    def spoil(folder: Path):
        (folder / name).write_text((folder / name).read_text().replace(old, new))

    return spoil


TRACED = "0X0003.avi,49.5,19.5,49.5,59.5,2"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without("Videos/0X0003.avi"), "the video .*0X0003.avi is absent, though VolumeTracings.csv traces it"),
        (without("VolumeTracings.csv"), "VolumeTracings.csv is not a CSV file in UTF-8: .*No such file"),
        (edited("VolumeTracings.csv", ",Frame", ",Image"), "VolumeTracings.csv has no column 'Frame'; found: FileName, X1"),
        (edited("VolumeTracings.csv", TRACED, "0X0003.avi,49.5"), "line 86: a field is missing"),
        (edited("VolumeTracings.csv", TRACED, "0X0003.avi,a,19.5,49.5,59.5,2"), "line 86: could not convert .* 'a'"),
        (edited("VolumeTracings.csv", TRACED, "0X0003.avi,nan,19.5,49.5,59.5,2"), "line 86: frame 2 and .*finite places"),
        (edited("VolumeTracings.csv", TRACED, TRACED[:-1] + "99"), "frame 99 of '0X0003' has 1 segments; expected"),
        (edited("VolumeTracings.csv", "0X0003.avi", "0X0333.avi"), "traces '0X0333', which FileList.csv does not list"),
        (edited("FileList.csv", "FileName", "Name"), "FileList.csv has no column 'FileName'; found: Name, EF"),
        (lambda folder: write_avi(folder / "Videos/0X0003.avi", [1, 2, 3]), "holds 3 frames; frame 6, counted from 0"),
        (text("Videos/0X0003.avi"), "0X0003.avi cannot be decoded"),
        (cut("Videos/0X0003.avi", 0.6), "0X0003.avi (holds|cannot be decoded)"),
    ],
)
def test_echonet_dynamic_names_a_bad_file(tmp_path, spoil, complaint):
    spoil(WRITERS["echonet-dynamic"](tmp_path / "data"))
    with pytest.raises(UserError, match=complaint) as caught:
        prepare(named("echonet-dynamic", tmp_path / "data"), 16, 1, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["cvc-clinicdb", "echonet-dynamic"])
def test_the_real_set_where_it_is(name):
    dataset = real(name)
    refs = dataset.index(0)
    assert len(refs) >= {"cvc-clinicdb": 612, "echonet-dynamic": 20_000}[name]
    for ref in refs[:: len(refs) // 10]:
        image, mask = dataset.read(ref, 96)
        assert image.shape[:2] == mask.shape and mask.any()
