"""Data as people have them: names, layouts, palettes, depths, ids and volumes, each kind written here as somebody had it."""

import gzip
import io
import json
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from stealthmark import cli
from stealthmark.dataset import load, prepare
from stealthmark.datasets import _nifti, _pictures
from stealthmark.datasets._masks import Rule, read_mask
from stealthmark.datasets._pictures import read_image
from stealthmark.errors import UserError
from stealthmark.plugin import make

SIDE, CASES = 24, 9
WHITE_ON_BLACK = [0, 0, 0, 255, 255, 255]
BLACK_ON_WHITE = [255, 255, 255, 0, 0, 0]


def disc(case: int = 0, side: int = SIDE) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.hypot(y - side / 2, x - side / 3 - case % 3) < side / 4


def square(case: int = 0) -> np.ndarray:
    """Another structure, which does not touch the disc."""
    truth = np.zeros((SIDE, SIDE), bool)
    truth[1:4, 18 : 21 + case % 2] = True
    return truth


def pixels(case: int) -> np.ndarray:
    return np.random.default_rng(case).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8))


def indexed(numbers: np.ndarray, palette: list[int]) -> Image.Image:
    image = grey(numbers)
    image.putpalette(palette)
    return image


def saved(path: Path, image: Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def own(root: Path, **options):
    return make("dataset", {"name": "folder", "data_root": root, **options})


def write(root: Path, mask, image: str = "images/case{}.png", name: str = "masks/case{}.png", **options) -> Path:
    """Images of noise, and for each what `mask(case)` draws."""
    for case in range(CASES):
        saved(root / image.format(case), Image.fromarray(pixels(case)))
        saved(root / name.format(case), mask(case), **options)
    return root


def binary(case: int) -> Image.Image:
    return grey(disc(case) * 255)


def masks_of(dataset) -> dict[str, np.ndarray]:
    return {ref.case_id: dataset.read(ref, 16)[1] for ref in dataset.index(0)}


def assert_discs(dataset, truth=disc) -> None:
    masks = masks_of(dataset)
    assert len(masks) == CASES
    for case, mask in enumerate(masks.values()):
        assert np.array_equal(mask, truth(case)), case


def refused(dataset, tmp_path: Path, complaint: str) -> str:
    """Preparing ends in one sentence and leaves nothing."""
    with pytest.raises(UserError, match=complaint) as caught:
        prepare(dataset, 16, 1, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))
    return str(caught.value)


# --- names: which mask is an image's


@pytest.mark.parametrize("suffix", ["_segmentation", "_mask", "-lesion", "_gt", ".ah", " mask", "_seg2d"])
def test_a_masks_suffix_is_found_where_it_is_the_same_for_all(tmp_path, capsys, suffix):
    write(tmp_path, binary, name=f"masks/case{{}}{suffix}.png")
    assert_discs(own(tmp_path))
    assert [ref.case_id for ref in own(tmp_path).index(0)] == [f"case{case}" for case in range(CASES)]
    if suffix != "_seg2d":
        assert f"a mask is named as its image, with {suffix!r} added" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}_training.png", "masks/{}_manual1.png"),
        ("images/image_{:03d}.png", "masks/mask_{:03d}.png"),
        ("images/{}_img.png", "masks/{}.png"),
        ("images/case{}_0000.png", "masks/case{}.png"),
        ("images/P{0}/scan_img.png", "masks/P{0}/scan_label.png"),
        ("images/{}.png", "masks/{}mask.png"),
    ],
)
def test_images_and_masks_are_matched_by_what_their_names_do_not_share(tmp_path, image, mask):
    assert_discs(own(write(tmp_path, binary, image, mask)))


def test_a_suffix_is_given_where_masks_have_several(tmp_path, capsys):
    write(tmp_path, binary, name="masks/case{}_left.png")
    write(tmp_path, lambda case: grey(square(case) * 255), name="masks/case{}_right.png")
    assert "mask_suffix" in refused(own(tmp_path), tmp_path, "the image .*case0.png has no mask")
    assert_discs(own(tmp_path, mask_suffix="_left"))
    assert f"{CASES} masks have other names than an image's and '_left' added; they are left out" in capsys.readouterr().err
    assert_discs(own(tmp_path, mask_suffix=["_left", "_right"]), lambda case: disc(case) | square(case))


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("masks/case{}_mask.png", "masks/case{}_mask_1.png", {}),
        ("masks/case{}_mask.png", "masks/case{}_mask (2).png", {}),
        ("masks/case{}_1.png", "masks/case{}_2.png", {}),
        ("masks/case{0}/nucleus.png", "masks/case{0}/other.png", {}),
        ("masks/case{}.png", "masks/case{}_1.png", {"mask_suffix": ""}),
    ],
)
def test_several_masks_of_an_image_are_united(tmp_path, first, second, options):
    write(tmp_path, binary, name=first)
    write(tmp_path, lambda case: grey(square(case) * 255), name=second)
    assert_discs(own(tmp_path, **options), lambda case: disc(case) | square(case))


def test_a_number_is_no_suffix_unless_it_is_said(tmp_path):
    """The mask `case3_1` may be that of an image that is lost."""
    write(tmp_path, binary)
    saved(tmp_path / "masks/case3_1.png", binary(3))
    refused(own(tmp_path), tmp_path, "the mask .*case3_1.png has no image: .*; a suffix .* the option mask_suffix")


@pytest.mark.parametrize("lost", ["images/case10.png", "masks/case10_mask.png"])
def test_an_image_is_not_given_anothers_mask(tmp_path, lost):
    for case in (1, 10, *range(20, 28)):
        saved(tmp_path / f"images/case{case}.png", Image.fromarray(pixels(case)))
        saved(tmp_path / f"masks/case{case}_mask.png", binary(case))
    (tmp_path / lost).unlink()
    refused(own(tmp_path), tmp_path, "case10.* has no (image|mask)")


def test_united_masks_must_be_of_the_images_size(tmp_path):
    write(tmp_path, binary, name="masks/case{}_mask.png")
    saved(tmp_path / "masks/case4_mask_1.png", grey(disc(side=30) * 255))
    refused(own(tmp_path), tmp_path, "case4.png is 24 x 24 px and its mask .*case4_mask_1.png is 30 x 30 px")


def test_images_and_masks_may_lie_together_where_a_suffix_tells_them_apart(tmp_path):
    """As in sets with a folder a patient."""
    write(tmp_path, binary, "P{0}/scan_{0}.png", "P{0}/scan_{0}_mask.png")
    (tmp_path / "groups.csv").write_text("case_id,group_id\n" + "".join(f"P{n}/scan_{n},p{n}\n" for n in range(CASES)))
    assert_discs(own(tmp_path, mask_suffix="_mask"))
    assert own(tmp_path, mask_suffix="_mask").present() and not own(tmp_path).present()
    (tmp_path / "P3/scan_3_mask.png").unlink()
    refused(own(tmp_path, mask_suffix="_mask"), tmp_path, "the image .*scan_3.png has no mask: .* and '_mask' added")


# --- groups and ids


def test_a_folder_in_images_is_a_patient(tmp_path):
    write(tmp_path / "data", binary, "images/P{0}/a.png", "masks/P{0}/a_mask.png")
    write(tmp_path / "data", binary, "images/P{0}/day2/b.png", "masks/P{0}/day2/b_mask.png")
    refs = own(tmp_path / "data").index(0)
    assert [(ref.case_id, ref.group_id) for ref in refs[:3]] == [("P0/a", "P0"), ("P0/day2/b", "P0"), ("P1/a", "P1")]
    prepare(own(tmp_path / "data"), 16, 1, tmp_path / "out")
    assert load(tmp_path / "out").manifest["groups"] == "the folders that the images lie in"


def test_folders_that_are_classes_need_groups(tmp_path):
    for kind in ("benign", "malignant"):
        write(tmp_path, binary, f"images/{kind}/{{}}.png", f"masks/{kind}/{{}}.png")
    refused(own(tmp_path), tmp_path, "benign, malignant, are read as groups .* at least 8; .*groups.csv can say otherwise")
    cases = [ref for kind in ("benign", "malignant") for ref in (f"{kind}/{n}" for n in range(CASES))]
    (tmp_path / "groups.csv").write_text("case_id,group_id\n" + "".join(f"{case},{case[-1]}\n" for case in cases))
    assert {ref.group_id for ref in own(tmp_path).index(0)} == set(map(str, range(CASES)))


def test_a_folder_that_leads_back_is_refused(tmp_path):
    write(tmp_path, binary, "images/P{0}/a.png", "masks/P{0}/a.png")
    (tmp_path / "images/P0/up").symlink_to(tmp_path / "images")
    refused(own(tmp_path), tmp_path, "leads back")


IDS = ("NA", "null", "007", "1e5", "nan", "True", "1.0", "2024-01-05", "None", "7")


@pytest.mark.parametrize("what", ["case", "group"])
def test_ids_are_text_wherever_they_are_read(tmp_path, what):
    for name in IDS:
        saved(tmp_path / f"data/images/{name}.png", Image.fromarray(pixels(1)))
        saved(tmp_path / f"data/masks/{name}.png", binary(1))
    if what == "group":
        (tmp_path / "data/groups.csv").write_text("case_id,group_id\n" + "".join(f"{name},{name}\n" for name in IDS))
    prepare(own(tmp_path / "data"), 16, 1, tmp_path / "out")
    cases = load(tmp_path / "out").cases
    assert sorted(cases["case_id"]) == sorted(cases["group_id"]) == sorted(IDS)
    assert sum(len(load(tmp_path / "out").share(share).cases) for share in ("owner", "calibration", "attacker", "test")) == len(
        IDS
    )


def test_an_id_that_cannot_be_written_down_is_refused(tmp_path):
    write(tmp_path, binary)
    for kind in ("images", "masks"):
        (tmp_path / kind / "case3.png").rename(tmp_path / kind / "ca\nse.png")
    refused(own(tmp_path), tmp_path, r"the id 'ca\\nse' is empty, or not text in UTF-8 on one line")


@pytest.mark.parametrize("name", ["2024-01-05", "2024", "1.5", "NA"])
def test_a_data_root_that_looks_like_a_date_or_a_number_is_its_text(tmp_path, monkeypatch, name):
    write(tmp_path / name, binary)
    monkeypatch.chdir(tmp_path)
    argv = ["prepare", "--dataset", f"{{name: folder, data_root: {name}}}", "--size", "16", "--out", "out"]
    assert cli.main(argv) == 0
    assert len(load(tmp_path / "out").cases) == CASES


# --- masks: values, palettes, depths


@pytest.mark.parametrize(("inner", "values"), [(1, "0, 1"), (2, "0, 1, 2")])
def test_jpeg_masks_of_small_numbers_are_refused_by_their_values(tmp_path, inner, values):
    write(tmp_path, lambda case: grey(disc(case) * inner), name="masks/case{}.jpg", quality=90)
    message = refused(own(tmp_path), tmp_path, f"the mask .*case0.jpg holds the values {values}[,;]? ?")
    assert "near 0 and near 255" in message and "the option threshold" in message and "foreground says" not in message


def test_jpeg_masks_are_read_above_half_and_may_be_empty(tmp_path):
    write(tmp_path, lambda case: grey((disc(case) & (case > 0)) * 255), name="masks/case{}.jpg", quality=95)
    assert_discs(own(tmp_path), lambda case: disc(case) & (case > 0))


def test_all_masks_empty_is_an_error_that_names_the_values(tmp_path):
    write(tmp_path, binary)
    refused(
        own(tmp_path, foreground=1),
        tmp_path,
        r"all 9 masks are empty at 16 px \(foreground: mask value 1\): .*0.png holds the values 0, 255; ",
    )
    assert_discs(own(tmp_path, foreground=255))


@pytest.mark.parametrize("swapped", ["none", "all", "some"])
@pytest.mark.parametrize("ending", [".png", ".gif", ".bmp", ".tif"])
def test_a_grey_palette_is_read_by_its_colour(tmp_path, swapped, ending):
    def mask(case: int) -> Image.Image:
        turned = swapped == "all" or (swapped == "some" and case % 2)
        return indexed(disc(case) != bool(turned), BLACK_ON_WHITE if turned else WHITE_ON_BLACK)

    assert_discs(own(write(tmp_path, mask, name=f"masks/case{{}}{ending}")))


def test_a_coloured_palette_is_read_by_its_index(tmp_path):
    colours = [0, 0, 0, 128, 0, 0, 255, 255, 255]
    write(tmp_path, lambda case: indexed(disc(case) + 2 * square(case), colours))
    refused(own(tmp_path), tmp_path, "holds the values 0, 1, 2; allowed: .*, unless the option foreground says")
    assert_discs(own(tmp_path, foreground=1))
    assert_discs(own(tmp_path, foreground=2), square)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_in_which_0_is_white_is_read_as_it_looks(tmp_path, kind):
    top = np.iinfo(kind).max
    tifffile.imwrite(tmp_path / "mask.tif", np.where(disc(), 0, top).astype(kind), photometric="miniswhite")
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), disc())
    ramp = np.arange(256).reshape(16, 16).astype(kind)
    tifffile.imwrite(tmp_path / "image.tif", ramp, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "image.tif", 1)[:, :, 0], 255 - ramp)


def test_foreground_is_a_value_a_list_or_nonzero(tmp_path):
    write(tmp_path, lambda case: grey(disc(case) + 2 * square(case)))
    refused(own(tmp_path), tmp_path, "holds the values 0, 1, 2; allowed: 0 and 1, or 0 and 255")
    both = [own(tmp_path, foreground=chosen) for chosen in ([1, 2], "nonzero")]
    for dataset in both:
        assert_discs(dataset, lambda case: disc(case) | square(case))
    assert_discs(own(tmp_path, foreground=[2]), square)
    words = [dataset.manifest.foreground for dataset in (*both, own(tmp_path, foreground=2), own(tmp_path, threshold=1))]
    assert words == ["mask values 1, 2", "every mask value but 0", "mask value 2", "mask values above 1"]
    assert all(make("dataset", json.loads(json.dumps(dataset.options()))) == dataset for dataset in both)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"foreground": []}, r"field 'foreground' has the value \[\]: input should be a mask value from 0 to 65535, a list"),
        ({"foreground": [1, -1]}, r"field 'foreground' has the value \[1, -1\]"),
        ({"foreground": "all"}, "field 'foreground' has the value 'all'"),
        ({"foreground": True}, "field 'foreground' has the value True"),
        ({"foreground": 1, "threshold": 0.5}, "field 'threshold' has the value 0.5: .* absent where foreground is given"),
        ({"threshold": float("nan")}, "field 'threshold'"),
        ({"mask_suffix": 1}, "field 'mask_suffix' has the value 1: input should be text"),
        ({"data_root": True}, "field 'data_root' has the value True"),
    ],
)
def test_options_are_checked(tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        make("dataset", {"name": "folder", "data_root": tmp_path, **options})


def test_colour_is_foreground_where_nonzero_is(tmp_path):
    coloured = np.zeros((SIDE, SIDE, 3), np.uint8)
    coloured[disc(), 1], coloured[square(), 2] = 200, 90
    path = saved(tmp_path / "mask.png", Image.fromarray(coloured))
    assert np.array_equal(read_mask(path, Rule("nonzero")), disc() | square())
    with pytest.raises(UserError, match="is in colour"):
        read_mask(path)


def faded(truth: np.ndarray, side: int = 96) -> np.ndarray:
    """A mask as it comes out of a program that smooths edges when it resizes."""
    return np.asarray(grey(truth * 255).resize((side, side), Image.Resampling.BICUBIC))


def test_masks_with_grey_edges_are_read_above_half(tmp_path):
    soft = faded(disc(side=64))
    assert len(np.unique(soft)) > 5
    path = saved(tmp_path / "mask.png", grey(soft))
    assert np.array_equal(read_mask(path), soft > 127)


@pytest.mark.parametrize(
    "values",
    [
        np.where(disc(side=64), 128, 0) + 127 * disc(side=64)[:, ::-1] * ~disc(side=64),  # classes
        np.where(disc(side=64), 1, 255),  # a class, and what nobody labelled
        np.where(disc(side=64), 255, np.arange(64)),  # grey far away from an edge
        faded(disc(side=64)) // 2,  # not up to white
        np.where(square(), 255, 0) + np.where(square()[:, ::-1], 60, 0),  # a pale structure
    ],
)
def test_what_is_not_only_grey_at_edges_is_refused(tmp_path, values):
    path = saved(tmp_path / "mask.png", grey(values))
    with pytest.raises(UserError, match="holds the values"):
        read_mask(path)
    assert np.array_equal(read_mask(path, Rule(threshold=100)), values > 100)


def test_masks_of_real_numbers(tmp_path):
    probabilities = np.where(disc(), 0.75, 0.25).astype(np.float32)
    tifffile.imwrite(tmp_path / "soft.tif", probabilities)
    with pytest.raises(UserError, match="holds the values 0.25; allowed"):
        read_mask(tmp_path / "soft.tif")
    assert np.array_equal(read_mask(tmp_path / "soft.tif", Rule(threshold=0.5)), disc())
    for kind in (np.float32, np.float64, np.int16, np.int32, np.uint32):
        tifffile.imwrite(tmp_path / "mask.tif", (disc() * 3 + (1e-7 if kind is np.float64 else 0)).astype(kind))
        assert np.array_equal(read_mask(tmp_path / "mask.tif", Rule((3,))), disc())
    tifffile.imwrite(tmp_path / "nan.tif", np.where(disc(), np.nan, 0).astype(np.float32))
    for rule in (Rule(), Rule("nonzero"), Rule(threshold=0.5)):
        with pytest.raises(UserError, match="holds values that are no finite numbers"):
            read_mask(tmp_path / "nan.tif", rule)


def test_16_bit_masks_of_black_and_white(tmp_path):
    saved(tmp_path / "mask.png", Image.fromarray(disc().astype(np.uint16) * 65535))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), disc())
    colour = np.repeat((disc() * 255).astype(np.uint16)[:, :, None], 3, axis=2)
    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(colour))
    assert np.array_equal(read_mask(tmp_path / "colour.png"), disc())


def netpbm(kind: str, values: np.ndarray, white: int) -> bytes:
    height, width = values.shape[:2]
    raster = values.astype(">u2" if white > 255 else np.uint8)
    text = kind in ("P2", "P3")
    body = " ".join(map(str, values.ravel())).encode() if text else raster.tobytes()
    return f"{kind}\n# a comment\n{width} {height}\n{white}\n".encode() + body


@pytest.mark.parametrize(("kind", "white"), [("P5", 255), ("P5", 4), ("P2", 255), ("P2", 4), ("P5", 4095), ("P2", 4095)])
def test_netpbm_masks_hold_what_they_say(tmp_path, kind, white):
    (tmp_path / "mask.pgm").write_bytes(netpbm(kind, disc() * 3, white))
    assert np.array_equal(read_mask(tmp_path / "mask.pgm", Rule((3,))), disc())


def test_gif_ppm_pgm_and_pbm_are_read(tmp_path):
    write(tmp_path, binary, "images/case{}.ppm", "masks/case{}.pbm.pgm")
    assert_discs(own(tmp_path))
    image = own(tmp_path).read(own(tmp_path).index(0)[2], 16)[0]
    assert np.array_equal(image, pixels(2))
    saved(tmp_path / "mask.gif", binary(0))
    saved(tmp_path / "mask.pbm", binary(0).convert("1"))
    assert np.array_equal(read_mask(tmp_path / "mask.gif"), disc())
    assert np.array_equal(read_mask(tmp_path / "mask.pbm"), disc())
    frames = [grey(disc(case) * 255) for case in range(3)]
    saved(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="holds several pictures; allowed: one"):
        read_mask(tmp_path / "moving.gif")


# --- images: depths


def deep_colour(bits: int) -> np.ndarray:
    return (np.random.default_rng(3).integers(0, 1 << bits, (SIDE, SIDE, 3)) + 100).clip(0, 65535).astype(np.uint16)


def write_deep(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(values))
    elif path.suffix == ".ppm":
        path.write_bytes(netpbm("P6", values, 65535))
    else:
        tifffile.imwrite(path, values, photometric="rgb", compression="zlib" if "packed" in path.name else None)
    return path


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("name", ["i.png", "i.tif", "packed.tif", "i.ppm"])
def test_deep_colour_is_stretched_as_deep_grey_is(tmp_path, name, bits):
    values = deep_colour(bits)
    low, high = values.min(), values.max()
    expected = np.rint((values.astype(float) - low) * (255 / (high - low))).astype(np.uint8)
    path = write_deep(tmp_path / name, values)
    assert np.array_equal(read_image(path, 3), expected)
    assert np.array_equal(read_image(path, 1)[:, :, 0], np.asarray(Image.fromarray(expected).convert("L")))


def test_deep_pictures_with_transparency_lose_it(tmp_path):
    values = deep_colour(12)
    opaque = np.full((SIDE, SIDE, 1), 65535, np.uint16)
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(np.concatenate([values, opaque], axis=2)))
    write_deep(tmp_path / "rgb.png", values)
    assert np.array_equal(read_image(tmp_path / "rgba.png", 3), read_image(tmp_path / "rgb.png", 3))
    (tmp_path / "la.png").write_bytes(imagecodecs.png_encode(np.concatenate([values[:, :, :1], opaque], axis=2)))
    saved(tmp_path / "l.png", Image.fromarray(values[:, :, 0]))
    assert np.array_equal(read_image(tmp_path / "la.png", 3), read_image(tmp_path / "l.png", 3))


def test_planes_apart_are_colour_as_well(tmp_path):
    values = deep_colour(12)
    tifffile.imwrite(tmp_path / "apart.tif", values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(tmp_path / "apart.tif", 3), read_image(write_deep(tmp_path / "i.png", values), 3))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float16, np.float32, np.float64])
def test_signed_and_real_tiff_are_stretched(tmp_path, kind):
    values = np.array([[-1000, 0], [500, 1000]]).astype(kind)
    tifffile.imwrite(tmp_path / "i.tif", values)
    assert read_image(tmp_path / "i.tif", 1)[:, :, 0].tolist() == [[0, 128], [191, 255]]
    tifffile.imwrite(tmp_path / "flat.tif", np.full((2, 2), 7, kind))
    assert not read_image(tmp_path / "flat.tif", 3).any()


def test_a_real_tiff_from_0_to_1_is_not_black(tmp_path):
    tifffile.imwrite(tmp_path / "i.tif", np.array([[0, 0.25], [0.5, 0.5]], np.float32))
    assert read_image(tmp_path / "i.tif", 1)[:, :, 0].tolist() == [[0, 128], [255, 255]]


@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
def test_images_of_no_numbers_are_refused(tmp_path, worst):
    tifffile.imwrite(tmp_path / "i.tif", np.array([[0, worst]], np.float32))
    with pytest.raises(UserError, match="allowed: finite numbers"):
        read_image(tmp_path / "i.tif", 1)


def test_complex_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "i.tif", np.ones((4, 4), np.complex64))
    with pytest.raises(UserError, match="has the pixel type MINISBLACK of complex64; allowed"):
        read_image(tmp_path / "i.tif", 1)


# --- nnU-Net's raw layout


def write_raw(root: Path, channels: int = 1, labels: dict | None = None, ending: str = ".png") -> Path:
    for case in range(CASES):
        for channel in range(channels):
            saved(root / f"imagesTr/case{case}_{channel:04d}{ending}", grey(pixels(case)[:, :, channel]))
        saved(root / f"labelsTr/case{case}{ending}", grey(disc(case) + 2 * square(case) * bool(labels and len(labels) > 2)))
    description = {"channel_names": {}, "labels": labels or {"background": 0, "tumour": 1}, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_nnunets_raw_layout_is_read(tmp_path):
    write_raw(tmp_path / "data")
    dataset = own(tmp_path / "data", channels=1)
    assert dataset.present()
    assert_discs(dataset)
    assert [ref.case_id for ref in dataset.index(0)][:2] == ["case0", "case1"]
    assert dataset.manifest.foreground == "mask value 1"
    prepare(dataset, 16, 1, tmp_path / "out")


def test_nnunets_channels_are_red_green_and_blue_or_one_of_them(tmp_path):
    write_raw(tmp_path, channels=3)
    ref = own(tmp_path).index(0)[4]
    assert np.array_equal(own(tmp_path).read(ref, 16)[0], pixels(4))
    one = own(tmp_path, channels=1, modality=2)
    assert np.array_equal(one.read(one.index(0)[4], 16)[0][:, :, 0], pixels(4)[:, :, 2])
    refused(own(tmp_path, channels=1), tmp_path, "has 3 channels; allowed: one, or three .* the option modality")
    refused(own(tmp_path, modality=3), tmp_path, r"field 'modality' has the value 3; .*imagesTr has the channels \[0, 1, 2\]")


def test_nnunets_labels_are_named_where_there_are_several(tmp_path):
    write_raw(tmp_path, labels={"background": 0, "tumour": 1, "cyst": 2})
    refused(own(tmp_path, channels=1), tmp_path, r"has the labels 1 \(tumour\), 2 \(cyst\); the option foreground")
    assert_discs(own(tmp_path, channels=1, foreground=2), square)


@pytest.mark.parametrize("labels", [{"0": "background", "1": "tumour"}, {"background": 0, "Tumour": 1}])
def test_labels_as_older_sets_write_them(tmp_path, labels):
    assert_discs(own(write_raw(tmp_path, labels=labels), channels=1))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: (root / "labelsTr/case3.png").unlink(), "the image .*case3_0000.png has no mask"),
        (lambda root: [(root / f"imagesTr/case3_{n:04d}.png").unlink() for n in (0, 1)], "the mask .*case3.png has no image"),
        (lambda root: (root / "imagesTr/case3_0001.png").unlink(), r"has the channels \[0\], others have \[0, 1\]"),
        (lambda root: (root / "imagesTr/notes.txt").write_text("x"), "notes.txt is not a file that ends in .png"),
        (lambda root: (root / "dataset.json").unlink(), "there is no .*dataset.json, which names the labels"),
        (lambda root: (root / "dataset.json").write_text("[]"), "dataset.json is not a mapping"),
        (lambda root: (root / "dataset.json").write_text('{"labels": 3}'), "has the labels 3; expected: a mapping"),
        (lambda root: (root / "dataset.json").write_text('{"labels": {"a": 1, "ignore": 2}}'), "a label 'ignore'"),
        (
            lambda root: (root / "dataset.json").write_text('{"labels": {"whole": [1, 2]}}'),
            r"has the labels \[1, 2\] \(whole\)",
        ),
    ],
)
def test_a_raw_layout_that_does_not_fit(tmp_path, spoil, complaint):
    spoil(write_raw(tmp_path, channels=2))
    refused(own(tmp_path, channels=1, modality=0), tmp_path, complaint)


def test_options_of_one_layout_are_refused_in_another(tmp_path):
    write_raw(tmp_path / "raw")
    refused(own(tmp_path / "raw", mask_suffix="_x"), tmp_path, "field 'mask_suffix' has the value .* nnU-Net's masks")
    write(tmp_path / "own", binary)
    refused(own(tmp_path / "own", modality=0), tmp_path, "field 'modality' has the value 0; .* is not in nnU-Net's raw layout")
    refused(own(tmp_path / "own", slices="with-foreground"), tmp_path, "field 'slices' .* holds no volume")


# --- NIfTI volumes

AFFINE = np.diag([0.8, 0.8, 5, 1])


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, **header) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    for name, value in header.items():
        getattr(image.header, f"set_{name}")(value)
    nibabel.save(image, path)
    return path


def volume_truth(case: int) -> np.ndarray:
    """(20, 24, 4): the last slice is empty."""
    truth = np.stack([disc(case)[:20]] * 3 + [np.zeros((20, SIDE), bool)], axis=2)
    return truth


def write_volumes(root: Path, image: str = "images/{}.nii.gz", mask: str = "masks/{}.nii.gz", top: int = 1) -> Path:
    for case in range(CASES):
        truth = volume_truth(case)
        noise = np.random.default_rng(case).integers(-1000, 1000, truth.shape).astype(np.int16)
        write_volume(root / image.format(case), noise)
        write_volume(root / mask.format(case), (truth * top).astype(np.uint8))
    return root


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.nii.gz", "masks/{}.nii.gz"),
        ("images/{}.nii", "masks/{}_seg.nii.gz"),
        ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
        ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"),
    ],
)
def test_every_slice_of_a_volume_is_a_case(tmp_path, image, mask):
    root = write_volumes(tmp_path / "data", image, mask)
    (root / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}')
    dataset = own(root, channels=1)
    refs = dataset.index(0)
    assert len(refs) == 4 * CASES and len({ref.group_id for ref in refs}) == CASES
    assert [ref.case_id for ref in refs[:2]] == [f"{ref.group_id}_slice{n:03d}" for n, ref in enumerate(refs[:2])]
    for number, ref in enumerate(refs[4:8]):
        pixels, truth = dataset.read(ref, 16)
        assert (pixels.shape, pixels.dtype) == ((SIDE, 20, 1), np.uint8)
        assert np.array_equal(truth, volume_truth(1)[:, :, number].T)
        assert pixels.min() == 0 and pixels.max() == 255
    prepare(dataset, 16, 1, tmp_path / "out")
    manifest = load(tmp_path / "out").manifest
    assert manifest["groups"] == "none given: each volume is its own group"
    assert manifest["intensity"] == "percentiles 1 to 99 of each volume become 0 to 255"


def test_slices_along_another_axis_and_only_those_with_foreground(tmp_path, capsys):
    write_volumes(tmp_path)
    dataset = own(tmp_path, slice_axis=0)
    refs = dataset.index(0)
    assert len(refs) == 20 * CASES
    assert np.array_equal(dataset.read(refs[9], 16)[1], volume_truth(0)[9].T)
    assert len(own(tmp_path, slices="with-foreground").index(0)) == 3 * CASES
    assert f"folder: {3 * CASES} slices of {CASES} volumes, along the axis 2" in capsys.readouterr().err


def test_groups_csv_names_volumes(tmp_path):
    write_volumes(tmp_path)
    (tmp_path / "groups.csv").write_text("case_id,group_id\n" + "".join(f"{n},P{n // 2}\n" for n in range(CASES)))
    assert {ref.group_id for ref in own(tmp_path).index(0)} == {"P0", "P1", "P2", "P3", "P4"}


def test_channels_of_volumes_are_colours_and_their_masks_are_united(tmp_path):
    for channel in range(3):
        write_volumes(tmp_path, f"imagesTr/{{}}_{channel:04d}.nii.gz", "labelsTr/{}.nii.gz")
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}}')
    dataset = own(tmp_path)
    assert dataset.read(dataset.index(0)[0], 16)[0].shape == (SIDE, 20, 3)
    write_volumes(tmp_path / "two", mask="masks/{}_mask_1.nii.gz")
    for case in range(CASES):
        write_volume(tmp_path / f"two/masks/{case}_mask_2.nii.gz", np.ones((20, SIDE, 4), np.uint8))
    assert own(tmp_path / "two").read(own(tmp_path / "two").index(0)[0], 16)[1].all()


def test_single_frames_keep_their_names(tmp_path):
    for case in range(CASES):
        write_volume(tmp_path / f"images/{case}.nii.gz", pixels(case)[:, :, :1].astype(np.int16))
        write_volume(tmp_path / f"masks/{case}.nii.gz", disc(case)[:, :, None].astype(np.uint8))
    assert [ref.case_id for ref in own(tmp_path).index(0)] == [str(case) for case in range(CASES)]


@pytest.mark.parametrize("top", [2, 300])
def test_labels_of_volumes_are_chosen_as_those_of_pictures(tmp_path, top):
    for case in range(CASES):
        truth = volume_truth(case)
        write_volume(tmp_path / f"images/{case}.nii.gz", np.random.default_rng(case).normal(size=truth.shape))
        write_volume(tmp_path / f"masks/{case}.nii.gz", (truth * top).astype(np.int16) + (truth[:, ::-1] & ~truth))
    refused(own(tmp_path), tmp_path, f"holds the values 0, 1, {top}; allowed: .*the option foreground")
    dataset = own(tmp_path, foreground=top)
    assert np.array_equal(dataset.read(dataset.index(0)[0], 16)[1], volume_truth(0)[:, :, 0].T)


def test_a_picture_is_no_mask_of_a_volume(tmp_path):
    write_volumes(tmp_path)
    (tmp_path / "masks/3.nii.gz").unlink()
    saved(tmp_path / "masks/3.png", binary(3))
    refused(own(tmp_path), tmp_path, "the image .*3.nii.gz and its mask .*3.png are not both NIfTI volumes")


def test_volumes_of_four_axes_are_refused(tmp_path):
    write_volumes(tmp_path)
    for kind in ("images", "masks"):
        write_volume(tmp_path / kind / "3.nii.gz", np.zeros((4, 4, 4, 2), np.uint8))
    refused(own(tmp_path), tmp_path, r"has the shape \(4, 4, 4, 2\); allowed: two or three axes")


MIRRORED = np.array([[-0.8, 0, 0, 0.8 * 19], [0, 0.8, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]])
SHIFTED, NEAR = (AFFINE + [[0, 0, 0, by], [0] * 4, [0] * 4, [0] * 4] for by in (0.5, 0.3))


@pytest.mark.parametrize(
    ("affine", "fits"),
    [(MIRRORED, False), (SHIFTED, False), (AFFINE * [[1.2], [1.2], [1.2], [1]], False), (NEAR, True)],
)
def test_image_and_labels_must_lie_on_each_other(tmp_path, affine, fits):
    write_volumes(tmp_path)
    write_volume(tmp_path / "masks/3.nii.gz", volume_truth(3).astype(np.uint8), affine)
    if fits:
        own(tmp_path).index(0)
    else:
        refused(own(tmp_path), tmp_path, "3.nii.gz have different affines: their corners are .* mm apart")


# --- what claims to be larger than memory


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A picture of zeros of which only the header is of this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def deep_tiff(side: int) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 8), np.uint16))
    content = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as read:
        for name in ("ImageWidth", "ImageLength"):
            tag = read.pages[0].tags[name]
            content[tag.offset + 2 : tag.offset + 4] = (4).to_bytes(2, "little")  # LONG
            content[tag.offset + 8 : tag.offset + 12] = side.to_bytes(4, "little")
    return bytes(content)


FRAME = struct.pack("<HHHHB", 0, 0, 12_000, 12_000, 0) + b"\x08\x01\x00\x00"
GIF = b"GIF89a" + struct.pack("<HHBBB", 12_000, 12_000, 0, 0, 0) + b"\x2c" + FRAME + b"\x3b"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("i.png", png(12_000, 12_000), "is 12000 x 12000 px with 4 bytes each; allowed: up to 100 megapixels and 800 MB"),
        ("i.png", png(60_000, 60_000), "is too large; allowed: up to 100 megapixels"),
        ("i.png", png(12_000, 12_000, 16), "is 12000 x 12000 px"),
        ("i.tif", deep_tiff(50_000), "is 50000 x 50000 px with 2 bytes each"),
        ("i.ppm", b"P6 12000 12000 65535\n", "is 12000 x 12000 px"),
        ("i.gif", GIF, "is 12000 x 12000 px"),
    ],
)
def test_pictures_larger_than_memory_are_refused_by_their_headers(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (lambda path: read_image(path, 3), read_mask):
            with pytest.raises(UserError, match=f"{name} {complaint}"):
                read(tmp_path / name)


def claim(shape: tuple[int, ...], kind: type = np.int16, offset: int = 352) -> bytes:
    """A volume's header."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(kind)
    header.set_sform(np.eye(4))
    header["vox_offset"], header["magic"] = offset, b"n+1"
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            claim((1024, 1024, 1024)),
            r"has the shape \(1024, 1024, 1024\), 1074 million voxels of 2 bytes; allowed: up to 268 m",
        ),
        (claim((1024, 1024, 128), np.float64), r"134 million voxels of 8 bytes; allowed: .* and 800 MB"),
        (claim((32767,) * 7), "million voxels"),
        (claim((4, 4, 4), offset=10**9), "its voxels after 1000000000 bytes; allowed"),
        (claim((4, 4, 4), np.complex64), "numbers of the type complex64"),
        (claim((4, 4, 4)).replace(b"n+1", b"ni1"), "its voxels lie in another file"),
        (claim((512, 512, 512)), "cannot be decoded: it holds 0 of 268435456 bytes of voxels"),
        (b"", "is not a NIfTI file"),
        (b"\0" * 400, "is not a NIfTI file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_volumes_larger_than_memory_are_refused_by_their_headers(tmp_path, content, complaint, packed):
    path = tmp_path / ("v.nii.gz" if packed else "v.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=complaint) as caught:
        _nifti.volume(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("surplus", "fits"), [(0, True), (900, True), (10**7, False)])
def test_hardly_more_of_a_volume_is_inflated_than_its_header_says(tmp_path, monkeypatch, surplus, fits):
    taken = []
    monkeypatch.setattr(_nifti, "BLOCK", 50)
    monkeypatch.setattr(_nifti, "MAX_SURPLUS", 1000)
    real = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: taken.append(size) or real(self, size))
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(claim((4, 4, 4), np.uint8) + bytes(64 + surplus)))
    if fits:
        assert len(_nifti.volume(tmp_path / "v.nii.gz").raw) == 64
    else:
        with pytest.raises(UserError, match="cannot be decoded: it holds more bytes than its header says"):
            _nifti.volume(tmp_path / "v.nii.gz")
    assert sum(taken) < 3000 and min(taken) >= 0


def test_damage_that_makes_a_volume_longer_is_told_as_well(tmp_path):
    content = bytearray(gzip.compress(claim((8, 8, 8), np.uint8) + bytes(600)))
    content[-8:-4] = bytes(4)
    (tmp_path / "v.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be decoded: CRC check failed"):
        _nifti.volume(tmp_path / "v.nii.gz")


def test_a_damaged_volume_is_told_by_gzips_checksum(tmp_path):
    content = bytearray(gzip.compress(claim((8, 8, 8), np.uint8) + np.random.default_rng(0).bytes(512), mtime=0))
    content[-6] ^= 1
    (tmp_path / "v.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be decoded: CRC check failed"):
        _nifti.volume(tmp_path / "v.nii.gz")


def test_a_volume_that_is_read_again_after_a_change_is_not_the_old_one(tmp_path):
    path = write_volume(tmp_path / "v.nii", np.zeros((4, 4, 4), np.uint8))
    assert _nifti.shape(path) == (4, 4, 4)
    write_volume(path, np.zeros((4, 4, 5), np.uint8))
    assert _nifti.shape(path) == (4, 4, 5)


def test_a_large_volumes_percentiles_are_those_of_some_of_its_voxels(tmp_path, monkeypatch):
    values = np.arange(8 * 8 * 8, dtype=np.int16).reshape((8, 8, 8), order="F")
    path = write_volume(tmp_path / "v.nii", values)
    whole = _nifti.grey(path, (1, 99))
    monkeypatch.setattr(_nifti, "SAMPLED_VOXELS", 100)
    monkeypatch.setattr(_nifti, "BLOCK", 7)
    assert np.abs(_nifti.grey(path, (1, 99)).astype(int) - whole).max() <= 3
    monkeypatch.setattr(_nifti, "SAMPLED_VOXELS", 512)
    assert np.array_equal(_nifti.grey(path, (1, 99)), whole)


def test_pictures_are_stretched_alike_in_blocks_of_any_size(tmp_path, monkeypatch):
    path = write_deep(tmp_path / "i.png", deep_colour(12))
    whole = read_image(path, 3)
    monkeypatch.setattr(_pictures, "BLOCK", 50)
    assert np.array_equal(read_image(path, 3), whole)


# --- nnU-Net's checkpoints


def test_a_checkpoint_saved_under_numpy_1_is_opened(tmp_path):
    from stealthmark.suspects import nnunet

    stored = {"best": np.float64(0.5), "curve": [np.float32(0.25)], "epoch": np.int64(3), "weights": torch.ones(2)}
    torch.save(stored, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    for name in ("new", "old"):
        opened, _ = nnunet._opened(tmp_path / f"{name}.pth")
        assert (opened["best"], opened["curve"], opened["epoch"]) == (0.5, [0.25], 3)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_any_other_object_in_a_checkpoint_is_not_opened(tmp_path, capsys):
    from stealthmark.suspects import nnunet

    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="holds more than tensors and numbers; it was not opened"):
        nnunet._opened(tmp_path / "evil.pth")
    assert "run" not in capsys.readouterr().out
