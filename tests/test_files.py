"""Files of ours: whole or not at all, and whatever has changed in one since is said in a sentence."""

import json

import numpy as np
import pandas as pd
import pytest

from stealthmark import files
from stealthmark.errors import UserError
from stealthmark.layout import RUN


def refused(read, *args) -> str:
    with pytest.raises(UserError) as error:
        read(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_seal_is_written_and_is_not_part_of_what_is_read(tmp_path):
    content = {"b": [1, 2.5, float("inf")], "a": {"x": None}, "umlaut": "ä"}
    files.write_json(tmp_path / "a.json", content)
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a", "umlaut", "seal"]
    assert files.read_json(tmp_path / "a.json") == content
    files.write_json(tmp_path / "b.json", json.loads((tmp_path / "a.json").read_text()))
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes(), "a seal of a seal"


@pytest.mark.parametrize(
    "before, after", [('"n": 1', '"n": 2'), ('"n": 1', '"m": 1'), ('"n": 1', '"n": true'), ('"seal": "', '"seal": "0')]
)
def test_a_json_file_that_was_changed_is_refused(tmp_path, before, after):
    files.write_json(tmp_path / "a.json", {"n": 1, "o": "x"})
    text = (tmp_path / "a.json").read_text()
    assert before in text
    (tmp_path / "a.json").write_text(text.replace(before, after))
    assert "a.json has changed since it was written" in refused(files.read_json, tmp_path / "a.json")


def test_the_order_of_fields_is_no_change_and_a_file_without_a_seal_is_read_as_it_is(tmp_path):
    files.write_json(tmp_path / "a.json", {"n": 1, "o": "x"})
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert files.read_json(tmp_path / "a.json") == {"n": 1, "o": "x"}
    (tmp_path / "a.json").write_text('{"n": 3}')
    assert files.read_json(tmp_path / "a.json") == {"n": 3}


@pytest.mark.parametrize(
    "content, words",
    {
        b"": "is not JSON",
        b"{": "is not JSON",
        b"\xff\xfe": "is not JSON",
        b"[" * 100_000: "nested too deep",
        b'{"n": ' + b"9" * 5000 + b"}": "is not JSON",
        b"[]": "is not a mapping of fields",
        b"null": "is not a mapping of fields",
    }.items(),
    ids=range(7),
)
def test_a_file_that_is_no_json_of_fields(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    assert words in refused(files.read_json, tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    assert "cannot read" in refused(files.read_json, tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "absent.json")


def test_what_a_run_wrote_is_checked_against_its_note(tmp_path):
    table = pd.DataFrame({"a": [1, 2]})
    (tmp_path / "0").mkdir()
    for folder in (tmp_path, tmp_path / "0"):
        table.to_parquet(folder / "cases.parquet")
        np.savez(folder / "maps.npz", a=np.zeros(3))
    listed = files.sums(tmp_path)
    assert list(listed) == ["0/cases.parquet", "0/maps.npz", "cases.parquet", "maps.npz"]
    files.write_json(tmp_path / RUN, {"files": listed})
    for folder in (tmp_path, tmp_path / "0"):
        assert files.read_table(folder / "cases.parquet", ["a"]).equals(table)
        assert list(files.read_arrays(folder / "maps.npz")) == ["a"]
        (table + 1).to_parquet(folder / "cases.parquet")
        np.savez(folder / "maps.npz", a=np.ones(3))
        assert "cases.parquet has changed since it was written" in refused(files.read_table, folder / "cases.parquet")
        assert "maps.npz has changed since it was written" in refused(files.read_arrays, folder / "maps.npz")
    (tmp_path / RUN).unlink()
    assert files.read_arrays(tmp_path / "maps.npz")["a"].sum() == 3, "whatever no note lists is read as it is"


def test_tables_and_arrays_that_are_none(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    assert "lacks the columns b" in refused(files.read_table, tmp_path / "a.parquet", ["a", "b"])
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert "no archive of arrays" in refused(files.read_arrays, tmp_path / "a.npz", ["b"])
    for name, read in (("a.parquet", files.read_table), ("a.npz", files.read_arrays)):
        whole = (tmp_path / name).read_bytes()
        for content in (b"", whole[:-9], b"\xff" * 200, whole[:50] + bytes(60) + whole[110:]):
            (tmp_path / name).write_bytes(content)
            assert str(tmp_path / name) in refused(read, tmp_path / name)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError):
            read(tmp_path / name)


def test_an_archive_that_says_it_holds_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    monkeypatch.setattr(files, "LARGEST", 10**6)
    assert "it holds more than" in refused(files.read_arrays, tmp_path / "a.npz")
