"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stealthmark.errors import UserError


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
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n", mode)


def read_json(path: Path) -> dict:
    """A JSON file that holds a mapping. Raises UserError when it is something else; an absent one is for the caller."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of text that is not UTF-8
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of fields")
    return content
