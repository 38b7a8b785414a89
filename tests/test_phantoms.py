"""The procedural datasets: reproducible, whatever the number of patients, and as varied as they claim."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from stealthmark.dataset import prepare
from stealthmark.datasets.phantom_endoscopy import radius, texture, wobble
from stealthmark.plugin import make

#: name -> channels, smallest and largest share of foreground in a mask that is not empty
PHANTOMS = {"phantom-endoscopy": (3, 0.005, 0.35), "phantom-cine": (1, 0.0005, 0.2)}
MODULES = {name: import_module(f"stealthmark.datasets.{name.replace('-', '_')}") for name in PHANTOMS}
by_phantom = pytest.mark.parametrize("name", PHANTOMS)


def case(name: str, row: int, size: int = 48, seed: int = 1, **options):
    dataset = make("dataset", {"name": name, **options})
    return dataset.read(dataset.index(seed)[row], size)


def is_framed(patient) -> bool:
    return patient.aperture != "none" if hasattr(patient, "aperture") else bool(patient.margins.any())


def test_contour_with_known_coefficients():
    angle = np.array([0, np.pi / 2, np.pi], np.float32)
    assert radius(np.zeros(3, np.complex64), angle) == pytest.approx([1, 1, 1])
    assert radius(np.array([0.1, 0.02], np.complex64), angle) == pytest.approx([1.12, 0.98, 0.92])


def test_contour_has_the_stated_spread():
    rng = np.random.default_rng(0)
    at_zero = [radius(wobble(rng, 0.1), np.zeros(1, np.float32))[0] for _ in range(2000)]
    assert np.mean(at_zero) == pytest.approx(1, abs=0.01)
    assert np.std(at_zero) == pytest.approx(0.1, rel=0.1)


def test_texture_is_limited_to_its_band():
    field = texture(np.random.default_rng(0), 4, 8)
    spectrum = np.abs(np.fft.fft(field, axis=0)) ** 2
    assert field.std() == pytest.approx(1, rel=1e-3)
    assert spectrum[9:-8].sum() < 1e-6 * spectrum.sum()


@by_phantom
@pytest.mark.parametrize("size", [32, 96, 256])
def test_shapes_and_types(name, size):
    image, mask = case(name, 5, size)
    assert (image.shape, image.dtype) == ((size, size, PHANTOMS[name][0]), np.uint8)
    assert (mask.shape, mask.dtype) == ((size, size), bool)
    assert image.std() > 10


@by_phantom
def test_the_seed_alone_decides(name):
    image, mask = case(name, 6)
    again, mask_again = case(name, 6)
    other, _ = case(name, 6, seed=2)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(image, other)


@by_phantom
def test_more_patients_or_frames_leave_a_case_as_it_is(name):
    few = make("dataset", {"name": name, "groups": 8, "cases_per_group": 2})
    many = make("dataset", {"name": name, "groups": 20, "cases_per_group": 3})
    later = {ref.case_id: ref for ref in many.index(1)}
    refs = few.index(1)
    assert len(refs) == 16
    assert len(later) == 60
    assert all(later[ref.case_id] == ref for ref in refs)
    assert np.array_equal(few.read(refs[3], 48)[0], many.read(later["p001-f1"], 48)[0])


@by_phantom
def test_a_case_is_the_same_picture_at_another_size(name):
    for row in range(0, 40, 8):
        large, mask_large = case(name, row, 128)
        small, mask_small = case(name, row, 64)
        blocks = large.reshape(64, 2, 64, 2, -1).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.95
        assert abs(mask_large.mean() - mask_small.mean()) < 0.005


@by_phantom
def test_foreground_stays_in_range(name):
    _, least, most = PHANTOMS[name]
    dataset = make("dataset", {"name": name, "cases_per_group": 1})
    shares = np.array([dataset.read(ref, 48)[1].mean() for ref in dataset.index(3)])
    present = shares[shares > 0]
    assert present.min() > least
    assert present.max() < most
    assert present.std() > 0.25 * present.mean()
    empty = 1 - len(present) / len(shares)
    assert 0 < empty < 0.07 if name == "phantom-cine" else empty == 0


@by_phantom
def test_frames_of_a_patient_share_their_looks_and_differ(name):
    frames = np.array([[case(name, 4 * group + frame)[0] for frame in range(4)] for group in range(12)], float)
    means = frames.mean(axis=(3, 4))
    assert not np.array_equal(frames[0, 0], frames[0, 1])
    assert means.mean(axis=1).std(axis=0).mean() > means.std(axis=1).mean()


@by_phantom
def test_about_a_quarter_of_patients_has_a_dark_frame_and_about_a_quarter_text(name):
    patients = [MODULES[name].patient(1, group) for group in range(200)]
    assert 0.15 < np.mean([is_framed(p) for p in patients]) < 0.35
    assert 0.15 < np.mean([bool(p.text) for p in patients]) < 0.35
    assert len({p.text_corner for p in patients}) == 4
    assert not any("TEST" in line for p in patients for line in p.text)


@by_phantom
def test_text_is_drawn_in_its_corner_and_nowhere_else(name):
    module = MODULES[name]
    group = next(g for g in range(50) if module.patient(1, g).text)
    who = module.patient(1, group)
    image, plain = (module.render(p, 1, group, 0, 96)[0] for p in (who, replace(who, text=())))
    changed = (image != plain).reshape(96, 96, -1).any(axis=2)
    corner = changed[:48] if who.text_corner[1] == "a" else changed[48:]
    corner = corner[:, :48] if who.text_corner[0] == "l" else corner[:, 48:]
    assert corner.sum() == changed.sum() > 50


@by_phantom
def test_dark_frame_is_drawn_and_holds_no_foreground(name):
    module = MODULES[name]
    group = next(g for g in range(50) if is_framed(module.patient(1, g)))
    who = module.patient(1, group)
    bare = replace(who, aperture="none") if name == "phantom-endoscopy" else replace(who, margins=np.zeros(4))
    (image, mask), (plain, _) = (module.render(p, 1, group, 0, 96) for p in (who, bare))
    darkened = (image < plain - 0.05).reshape(96, 96, -1).any(axis=2)
    assert darkened.mean() > 0.02
    assert not darkened[30:66, 30:66].any()
    assert image[darkened].mean() < 0.2
    assert not (mask & darkened).any()


@by_phantom
def test_prepare_twice_gives_the_same_arrays(name, tmp_path):
    dataset = make("dataset", {"name": name, "groups": 8, "cases_per_group": 2})
    manifests = []
    for folder in ("once", "twice"):
        prepare(dataset, 32, 1, tmp_path / folder)
        manifests.append(json.loads((tmp_path / folder / "manifest.json").read_text()))
    assert manifests[0]["sha256"] == manifests[1]["sha256"]
    assert (manifests[0]["cases"], manifests[0]["channels"]) == (16, PHANTOMS[name][0])
