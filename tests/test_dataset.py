"""What every prepared dataset goes through: the code that it is made from, and shares that are read when they are asked for."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stealthmark import architecture, dataset, plugin_code, plugins, stored
from stealthmark.dataset import Arrays, load, prepare
from stealthmark.errors import UserError
from stealthmark.plugin import make

# --- the code that a plug-in's results depend on


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("acdc", ["acdc.py", "_layout.py", "_nifti.py", "_numbers.py"]),
        ("cvc-clinicdb", ["cvc_clinicdb.py", "_layout.py", "_masks.py", "_numbers.py", "_pairing.py", "_pictures.py"]),
        ("kvasir-seg", ["kvasir_seg.py", "_masks.py", "_numbers.py", "_pairing.py", "_pictures.py"]),
        ("phantom-cine", ["phantom_cine.py", "_drawing.py"]),
    ],
)
def test_a_datasets_code_is_its_file_and_what_that_imports_beside_it(name, files):
    assert names(dataset.code_of(name)) == ["dataset.py", *files]
    assert all(file.is_file() for file in dataset.code_of(name))


def test_an_architectures_code_is_its_file_and_its_helpers():
    assert names(architecture.code_of("unet")) == ["unet.py", "_lite0.py"]
    assert names(architecture.code_of("sam")) == ["sam.py"]


def test_an_unknown_plug_in_has_no_code():
    with pytest.raises(UserError, match="unknown dataset 'acdd'; known: acdc, camus"):
        dataset.code_of("acdd")


def test_code_of_another_package_is_followed_in_its_own_folder_and_into_the_librarys(tmp_path):
    """By relative and absolute imports, at any depth and in any order, also inside of functions; not by those of others."""
    folder = tmp_path / "rivals" / "sets"
    (folder / "_parts").mkdir(parents=True)
    content = {
        "rivals/__init__.py": "",
        "rivals/sets/__init__.py": "",
        "rivals/sets/mine.py": "import os, numpy\nfrom . import _one\nfrom stealthmark.datasets._layout import Layout\n",
        "rivals/sets/_one.py": "def late():\n    from ._parts import edge\n    import rivals.sets._two\n",
        "rivals/sets/_two.py": "from rivals.sets import _one, mine\nfrom rivals import shared\n",
        "rivals/sets/_parts/__init__.py": "from .edge import EDGE\n",
        "rivals/sets/_parts/edge.py": "EDGE = 1\n",
        "rivals/sets/_other.py": "",
        "rivals/shared.py": "",
    }
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    mine, *imported = plugin_code.code_files("dataset", folder / "mine.py")
    assert mine == folder / "mine.py"
    own = {"_one.py", "_two.py", "_parts/__init__.py", "_parts/edge.py"}
    assert set(imported) == {folder / name for name in own} | {plugins.LIBRARY / "datasets" / "_layout.py"}


WATCH_REQUESTS = """
import json
from pathlib import Path
from stealthmark import dataset
from stealthmark.plugin import make

folder = Path(dataset.__file__).parent / "datasets"
sets = [make("dataset", {"name": name, "data_root": "data"}) for name in ("acdc", "camus", "kvasir-seg")]
requests = []
for name, line in ((None, ""), ("newcomer.py", "X = 1\\n"), ("_nifti.py", "X = 1\\n"), ("_masks.py", "X = 1\\n")):
    if name:
        with (folder / name).open("a") as file:
            file.write(line)
    requests.append([dataset._request(one, [], 16, 1) for one in sets])
print(json.dumps(requests))
"""


def test_a_new_dataset_or_another_ones_helper_makes_no_prepared_set_stale(tmp_path):
    """In a copy of the library, whose files may be edited."""
    shutil.copytree(plugins.LIBRARY, tmp_path / "stealthmark", ignore=shutil.ignore_patterns("__pycache__"))
    argv = [sys.executable, "-c", WATCH_REQUESTS]
    ran = subprocess.run(argv, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    before, newcomer, nifti, masks = json.loads(ran.stdout)
    assert len(set(before)) == 3
    assert newcomer == before
    assert [new != old for new, old in zip(nifti, newcomer, strict=True)] == [True, True, False]
    assert [new != old for new, old in zip(masks, nifti, strict=True)] == [False, False, True]


# --- shares


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Arrays:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    prepare(make("dataset", {"name": "phantom-endoscopy", "groups": 12, "cases_per_group": 3}), 32, 1, folder)
    return load(folder)


def assert_same(one: Arrays, other: Arrays) -> None:
    assert np.array_equal(one.images, other.images) and np.array_equal(one.masks, other.masks)
    pd.testing.assert_frame_equal(one.cases, other.cases)
    assert one.manifest == other.manifest


def test_a_lazy_share_is_the_share_read_chunk_by_chunk(prepared):
    share, lazy = prepared.share("test", "owner"), prepared.lazy_share("test", "owner")
    pd.testing.assert_frame_equal(lazy.cases, share.cases)
    assert lazy.images.shape == share.images.shape and lazy.masks.shape == share.masks.shape
    assert len(lazy.images) == len(share.images) and lazy.images.dtype == np.uint8
    chunks = list(lazy.chunks(7))
    assert [chunk.stop - chunk.start for chunk in chunks] == [7, 7, 7, 3]
    assert np.array_equal(np.concatenate([lazy.images[chunk] for chunk in chunks]), share.images)
    assert np.array_equal(np.concatenate([lazy.masks[chunk] for chunk in chunks]), share.masks)


def mapped_memory(file: Path) -> int:
    """Bytes of this process's memory that are pages of a mapped file."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [at for at, line in enumerate(lines) if line.endswith(str(file))]
    return sum(int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]) * 1024 for at in starts)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_a_lazy_share_takes_no_more_memory_however_much_is_read(tmp_path):
    count, shape = 64, (3, 128, 128)
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (count, *shape))
    images[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images.flush()
    del images
    cases = pd.DataFrame({"case_id": map(str, range(count)), "share": "test"})
    arrays = Arrays(np.load(tmp_path / "images.npy", mmap_mode="r"), np.zeros((count, 1, 1), np.uint8), cases, {})
    lazy = arrays.lazy_share("test")
    for chunk in lazy.chunks(16):
        part = lazy.images[chunk]
        assert part[:, 0, 0, 0].tolist() == list(range(chunk.start, chunk.stop))
        assert mapped_memory(tmp_path / "images.npy") < 100_000
    arrays.share("test")
    assert mapped_memory(tmp_path / "images.npy") > 3_000_000, "this test measures nothing"


def test_parts_of_a_lazy_share_are_loaded(prepared):
    share, lazy = prepared.share("test"), prepared.lazy_share("test")
    rows = np.array([4, 0, 2])
    assert isinstance(lazy.at(rows).images, np.ndarray)
    assert_same(lazy.at(rows), share.at(rows))
    assert_same(lazy.part(0.5, 3), share.part(0.5, 3))
    assert np.array_equal(lazy.lazy_share("test").images[rows], share.images[rows])


def test_a_lazy_share_of_arrays_in_memory():
    images, masks = np.arange(4 * 3 * 4, dtype=np.uint8).reshape(4, 3, 2, 2), np.zeros((4, 2, 2), np.uint8)
    cases = pd.DataFrame({"case_id": list("abcd"), "share": ["test", "owner", "test", "test"]})
    lazy = Arrays(images, masks, cases, {}).lazy_share("test")
    assert lazy.cases["case_id"].tolist() == ["a", "c", "d"]
    assert np.array_equal(lazy.images[slice(1, 9)], images[2:])


@pytest.mark.parametrize(("size", "chunks"), [(2, [(0, 2), (2, 4)]), (3, [(0, 3), (3, 4)]), (9, [(0, 4)])])
def test_chunks_are_all_cases_in_order(size, chunks):
    arrays = Arrays(np.zeros((4, 1, 2, 2)), np.zeros((4, 2, 2)), pd.DataFrame({"case_id": list("abcd")}), {})
    assert [(chunk.start, chunk.stop) for chunk in arrays.chunks(size)] == chunks
    assert list(Arrays(np.zeros((0, 1, 2, 2)), np.zeros((0, 2, 2)), pd.DataFrame({"case_id": []}), {}).chunks(size)) == []


# --- what lies on the disk


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    """A folder as `prepare` left it, some time ago."""
    source = Path(prepared.images.filename).parent
    shutil.copytree(source, tmp_path / "data")
    (tmp_path / "data" / stored.CHECKED).unlink()
    age(tmp_path / "data")
    return tmp_path / "data"


def age(folder: Path) -> None:
    for file in folder.iterdir():
        state = file.stat()
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns - 10**10))


def changed(file: str, old: bytes, new: bytes):
    def spoil(folder: Path) -> None:
        content = (folder / file).read_bytes()
        assert old in content
        (folder / file).write_bytes(content.replace(old, new, 1))

    return spoil


def byte(file: str, at: int, value: int):
    def spoil(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[at] = value
        (folder / file).write_bytes(content)

    return spoil


def array(file: str, values: np.ndarray):
    return lambda folder: np.save(folder / file, values)


def field(name: str, value: object):
    """A manifest that holds something else, and no seal."""

    def spoil(folder: Path) -> None:
        manifest = {**json.loads((folder / "manifest.json").read_text()), name: value}
        manifest.pop("seal", None)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def table(change):
    def spoil(folder: Path) -> None:
        cases = pd.read_csv(folder / "cases.csv", dtype=str)
        change(cases).to_csv(folder / "cases.csv", index=False)

    return spoil


def with_value(column: str, row: int, value: object):
    return table(lambda cases: cases.assign(**{column: [value if at == row else old for at, old in enumerate(cases[column])]}))


def text(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def with_masks_of_2(folder: Path) -> None:
    """Somebody else's folder, whose digest fits."""
    images, masks = (np.load(folder / name) for name in ("images.npy", "masks.npy"))
    np.save(folder / "masks.npy", 2 * masks)
    digest = hashlib.sha256(b"".join(image.tobytes() + mask.tobytes() for image, mask in zip(images, 2 * masks, strict=True)))
    field("sha256", digest.hexdigest())(folder)


DAMAGE = [
    (lambda folder: (folder / "masks.npy").unlink(), "is not a prepared dataset: masks.npy is absent; run prepare first"),
    (text("images.npy", ""), "images.npy is not an array: "),
    (text("images.npy", "<html>"), "images.npy is not an array: "),
    (byte("masks.npy", 6, 9), "masks.npy is not an array: "),
    (byte("masks.npy", 12, 0), "masks.npy is not an array: "),
    (changed("masks.npy", b"descr", b"descx"), "masks.npy is not an array: "),
    (array("masks.npy", np.array([{}])), "masks.npy is not an array: "),
    (array("masks.npy", np.zeros((36, 32, 32), bool)), "masks.npy holds bool of the shape .*; by manifest.json: uint8 of"),
    (array("masks.npy", np.zeros((35, 32, 32), np.uint8)), r"of the shape \(35, 32, 32\); by manifest.json: uint8 of \(36"),
    (array("images.npy", np.zeros((36, 3, 32, 32), np.float64)), "images.npy holds float64"),
    (array("masks.npy", np.zeros((36, 32, 32), np.uint8)), "images.npy and masks.npy do not have the SHA-256"),
    (byte("masks.npy", 3000, 2), "images.npy and masks.npy do not have the SHA-256"),
    (with_masks_of_2, "masks.npy holds the value 2; allowed: 0 and 1"),
    (byte("images.npy", 3000, 77), "images.npy and masks.npy do not have the SHA-256 in manifest.json: they are damaged"),
    (text("manifest.json", "{"), "manifest.json is not JSON"),
    (text("manifest.json", "[" * 100_000), "manifest.json is not JSON"),
    (text("manifest.json", "{}"), "manifest.json: the field 'title' is missing"),
    (field("pixels", "32"), "field 'pixels' has the value '32'"),
    (field("channels", 2), "field 'channels' has the value 2"),
    (field("sha256", "made up"), "field 'sha256' has the value 'made up'"),
    (field("sha256", "0" * 64), "do not have the SHA-256"),
    (field("size", None), "field 'size' has the value None"),
    (field("shape", 1), "there is no field 'shape'"),
    (field("cases", 35), r"holds uint8 of the shape \(36, 3, 32, 32\); by manifest.json: uint8 of \(35"),
    (field("group_count", 13), "cases.csv gives the group_count 12; by manifest.json it is 13"),
    (field("share_cases", {}), "cases.csv gives the share_cases"),
    (field("empty_masks", 3), "cases.csv gives the empty_masks 0; by manifest.json it is 3"),
    (text("cases.csv", ""), "cases.csv is no table of cases: "),
    (
        text("cases.csv", "case_id,group_id\n"),
        "its columns are case_id, group_id; expected: case_id, group_id, share, foreground",
    ),
    (table(lambda cases: cases.assign(more="x")), "its columns are"),
    (table(lambda cases: cases.iloc[:-1]), "cases.csv has 35 lines; by manifest.json there are 36 cases"),
    (changed("cases.csv", b"\n", b"\nx,"), "a line has more than 4 fields|is no table"),
    (with_value("case_id", 3, ""), "cases.csv has an empty case_id"),
    (with_value("group_id", 3, ""), "cases.csv has an empty group_id"),
    (with_value("case_id", 3, "p000-f0"), "cases.csv has the case_id 'p000-f0' more than once"),
    (with_value("share", 3, "Test"), "cases.csv has the share 'Test'; allowed: owner, calibration"),
    (with_value("group_id", 0, "p011"), "has the group 'p011' in more than one share|gives the share_cases|SHA"),
    (with_value("foreground", 3, "much"), "has a foreground that is no number from 0 to 1"),
    (with_value("foreground", 3, "nan"), "has a foreground that is no number from 0 to 1"),
    (with_value("foreground", 3, "2"), "has a foreground that is no number from 0 to 1"),
    (with_value("foreground", 3, "0.5"), "gives the foreground 0.5 in line 5; it is"),
    (lambda folder: (folder / "cases.csv").write_bytes(b"\xff\xfe\x00"), "cases.csv is no table of cases"),
]


@pytest.mark.parametrize(("spoil", "complaint"), DAMAGE)
def test_a_damaged_folder_is_refused_in_a_sentence(copy, spoil, complaint):
    spoil(copy)
    with pytest.raises(UserError, match=complaint) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        with pytest.raises(UserError):
            load(folder)


@pytest.fixture
def hashed(monkeypatch) -> list[Path]:
    """The folders whose arrays were hashed."""
    folders, check = [], stored._check_arrays
    monkeypatch.setattr(stored, "_check_arrays", lambda folder, *more: folders.append(folder) or check(folder, *more))
    return folders


def test_arrays_are_hashed_when_they_are_opened_for_the_first_time(copy, prepared, hashed):
    assert_same(load(copy), prepared)
    assert hashed == [copy]
    assert_same(load(copy), prepared)
    assert hashed == [copy]
    os.utime(copy / "masks.npy")
    load(copy)
    assert hashed == [copy] * 2


def test_what_was_written_just_now_is_hashed_until_it_settles(copy, hashed):
    """A change in the same moment would leave the time of change as it was."""
    os.utime(copy / "masks.npy")
    load(copy)
    load(copy)
    assert len(hashed) == 2


@pytest.mark.parametrize("name", ["masks.npy", "images.npy"])
def test_a_change_after_the_check_is_seen(copy, name):
    load(copy)
    byte(name, 3000, 1 if name == "masks.npy" else 200)(copy)
    with pytest.raises(UserError, match="SHA-256"):
        load(copy)


def test_another_name_in_the_table_is_seen_once_it_was_noted(copy):
    load(copy)
    changed("cases.csv", b"p003-f1", b"p003-f7")(copy)
    with pytest.raises(UserError, match="cases.csv has changed since it was written; prepare it again"):
        load(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"images.npy": 3}', "\udcff"])
def test_a_note_that_says_nothing_is_as_none(copy, prepared, hashed, content):
    (copy / stored.CHECKED).write_bytes(content.encode(errors="surrogateescape"))
    assert_same(load(copy), prepared)
    assert hashed == [copy]


def test_a_folder_that_cannot_be_written_to_is_read(copy, prepared, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stored.tempfile, "NamedTemporaryFile", refuse)
    assert_same(load(copy), prepared)
    assert not (copy / stored.CHECKED).exists()


def test_preparing_again_mends_what_is_damaged(tmp_path, capsys):
    phantom = make("dataset", {"name": "phantom-endoscopy", "groups": 8, "cases_per_group": 1})
    prepare(phantom, 16, 1, tmp_path / "data")
    sound = (tmp_path / "data/masks.npy").read_bytes()
    byte("masks.npy", 300, 1)(tmp_path / "data")
    prepare(phantom, 16, 1, tmp_path / "data")
    assert (tmp_path / "data/masks.npy").read_bytes() == sound
    assert "prepare it again: that is done now" in capsys.readouterr().err
    prepare(phantom, 16, 1, tmp_path / "data")
    assert "is prepared already" in capsys.readouterr().err


def test_a_set_is_described_in_one_line(tmp_path, capsys):
    phantom = make("dataset", {"name": "phantom-cine", "groups": 8, "cases_per_group": 2})
    prepare(phantom, 32, 1, tmp_path / "data")
    cases = load(tmp_path / "data").cases
    line = f"prepare: 16 cases in 8 groups; foreground {cases['foreground'].mean():.1%} of all pixels, "
    line += f"{(cases['foreground'] == 0).sum()} empty masks; "
    err = capsys.readouterr().err
    assert line in err and "grey levels, from 0 to" in err and "WARNING" not in err


class Made:
    """Masks of one value, everywhere."""

    name, channels, manifest = "made", 1, make("dataset", {"name": "phantom-cine"}).manifest

    def __init__(self, value: bool, described: str = ""):
        self.value, self.described = value, described

    def options(self) -> dict:
        return {}

    def index(self, seed: int) -> list[dataset.CaseRef]:
        return [dataset.CaseRef(str(number), str(number), number) for number in range(8)]

    def read(self, ref: dataset.CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((4, 4, 1), 10 * ref.source, np.uint8), np.full((4, 4), self.value)

    def describe_mask(self, ref: dataset.CaseRef) -> str:
        return self.described


def test_much_foreground_is_a_warning_and_none_an_error(tmp_path, capsys):
    prepare(Made(True), 4, 1, tmp_path / "full")
    err = capsys.readouterr().err
    assert "foreground 100.0% of all pixels, 0 empty masks; 8 grey levels, from 0 to 70" in err
    assert "WARNING: foreground is 100.0% of all pixels, more than half" in err
    with pytest.raises(UserError, match=r"^all 8 masks are empty at 4 px \(foreground: left-ventricular [^)]*\)$"):
        prepare(Made(False), 4, 1, tmp_path / "empty")
    with pytest.raises(UserError, match="^all 8 masks are empty at 4 px .*: a; a; a$"):
        prepare(Made(False, "a"), 4, 1, tmp_path / "empty")
    assert [folder.name for folder in tmp_path.iterdir()] == ["full"]


# --- imports


def test_what_names_and_counts_needs_no_torch():
    """Collating, reporting and the workflow import these."""
    code = (
        "import sys\n"
        "from stealthmark import codes, dataset, files, layout, metrics, plugin_code, seeds, settings\n"
        "dataset.code_of('acdc'), plugin_code.code_of('architecture', 'unet')\n"
        "settings.ExplanationPlan(), seeds.numpy_rng(1, 'x'), dataset.make('dataset', {'name': 'phantom-cine'})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=plugins.ROOT, check=True)
