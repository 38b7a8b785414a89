"""Files that are written whole or not at all, and that say so when somebody or something has changed them since.

A JSON file of ours ends with a seal, the SHA-256 of all its other fields. The heavy files of a stage (tables, arrays, weights)
are listed with their SHA-256 in the note of the run that wrote them (`sums`). Both are checked on reading (`read_json`,
`check`). A file without a seal, or that no note lists, is somebody else's and is read as it is: this is no protection
against forgers, but against bad disks, broken copies and slips of an editor.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stealthmark.errors import UserError
from stealthmark.layout import RUN

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

#: The field that holds the seal of a JSON file; the field of a run's note that lists the files it wrote.
SEAL, FILES = "seal", "files"
#: The endings of the files that a note lists.
HEAVY = (".parquet", ".npz", ".safetensors")
REMEDY = "make it again"
#: Arrays larger than this, in bytes, are none of ours.
LARGEST = 2**31
#: What libraries raise on damaged files: numpy's parser of headers alone raises half of these.
DAMAGED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, EOFError, SyntaxError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)


@contextmanager
def whole(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends, and is removed when the block raises.

    `mode`: its permissions from the first byte on. Raises UserError where the system refuses.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # one that a killed run left may have other permissions
    try:
        if mode is not None:
            partial.touch(mode=mode)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """A file of text in UTF-8, whole or not at all."""
    with whole(path, mode) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict, mode: int | None = None) -> None:
    """A JSON file with its seal, whole or not at all."""
    bare = {name: value for name, value in content.items() if name != SEAL}
    write_text(path, json.dumps({**bare, SEAL: seal_of(bare)}, indent=2) + "\n", mode)


def read_json(path: Path) -> dict:
    """A JSON file that holds a mapping, without its seal. Raises UserError when it is something else, or is not what its seal
    is of; an absent one is for the caller."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # of JSON, of text that is not UTF-8, and of numbers with thousands of digits
        raise UserError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not JSON: it is nested too deep") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of fields")
    if SEAL in content and content.pop(SEAL) != seal_of(content):
        raise UserError(
            f"{path} has changed since it was written: field {SEAL!r} is not the SHA-256 of the others; {REMEDY}, or remove "
            f"{SEAL!r} where the change is meant"
        )
    return content


def seal_of(content: dict) -> str:
    """SHA-256 (hex) of a mapping as JSON gives it back."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the heavy files in a folder and in the folders in it, such as an attack's strengths."""
    files = sorted(file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.suffix in HEAVY)
    return {str(file.relative_to(folder)): sha256_of(file) for file in files if file.is_file()}


def check(path: Path) -> None:
    """Raises UserError where the note of the run that wrote a file, beside it or in the folder above, lists another SHA-256."""
    for folder in (path.parent, path.parent.parent):
        try:
            listed = read_json(folder / RUN).get(FILES)
            if isinstance(listed, dict) and (name := str(path.relative_to(folder))) in listed:
                if listed[name] != sha256_of(path):
                    raise UserError(
                        f"{path} has changed since it was written: its SHA-256 is not that in {folder / RUN}; {REMEDY}, or "
                        f"remove {RUN} where the change is meant"
                    )
                return
        except OSError:  # no note, or no file: that is for whoever reads it
            continue


def read_table(path: Path, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """A parquet file that must have these columns. Raises UserError when it is damaged; an absent one is for the caller."""
    import pandas as pd
    import pyarrow as pa

    check(path)
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise
    except (*DAMAGED, pa.ArrowException) as error:
        raise UserError(f"{path} is no table in parquet: {_first_line(error)}; {REMEDY}") from None
    if missing := [name for name in columns if name not in table]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; {REMEDY}")
    return table


def read_arrays(path: Path, names: Iterable[str] | None = None) -> "dict[str, np.ndarray]":
    """The arrays of an npz file, all or those of these names. Raises UserError when it is damaged, lacks one, or would not fit
    into memory; an absent one is for the caller."""
    import numpy as np

    check(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError(f"it holds more than {LARGEST / 1e9:.1f} GB")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (arrays.files if names is None else names)}
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise UserError(f"{path} is no archive of arrays: {_first_line(error)}; {REMEDY}") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def field_of(content: dict, name: str, kind: "type | tuple[type, ...]", path: Path) -> Any:
    """A field of a JSON file that must be of a kind, or of one of some. Raises UserError where it is absent or of another."""
    value = content.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        allowed = " or ".join(KINDS[one] for one in kinds)
        raise UserError(f"{path}: field {name!r} has the value {str(value)[:100]!r}; allowed: {allowed}; {REMEDY}")
    return value


#: Kinds of JSON values, in words.
KINDS = {str: "a text", dict: "a mapping", list: "a list", float: "a number", int: "a whole number"}
