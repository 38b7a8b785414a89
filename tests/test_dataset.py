"""What every prepared dataset goes through: the code that it is made from, and shares that are read when they are asked for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stealthmark import architecture, dataset, plugin_code, plugins
from stealthmark.dataset import Arrays, load, prepare
from stealthmark.errors import UserError
from stealthmark.plugin import make

# --- the code that a plug-in's results depend on


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("acdc", ["acdc.py", "_layout.py", "_nifti.py"]),
        ("cvc-clinicdb", ["cvc_clinicdb.py", "_layout.py", "folder.py"]),
        ("kvasir-seg", ["kvasir_seg.py", "folder.py"]),
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
for name, line in ((None, ""), ("newcomer.py", "X = 1\\n"), ("_nifti.py", "X = 1\\n"), ("folder.py", "X = 1\\n")):
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
    before, newcomer, nifti, folder = json.loads(ran.stdout)
    assert len(set(before)) == 3
    assert newcomer == before
    assert [new != old for new, old in zip(nifti, newcomer, strict=True)] == [True, True, False]
    assert [new != old for new, old in zip(folder, nifti, strict=True)] == [False, False, True]


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
