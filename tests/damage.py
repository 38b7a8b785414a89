"""Ways to damage a file: by its bytes, and by what it holds. Every one draws from a generator, and says what it did."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from stealthmark.files import FILES, SEAL
from stealthmark.layout import PROVENANCE, RUN

#: What may stand where something else belongs.
ODD = [
    *(None, True, -1, 0, 2, 1e308, 10**30, 10**400, float("nan"), float("inf"), "", "NA", "007", "{threads}", "1" * 5000),
    *([], {}, [[]], {"a": None}, "../../x", "ok", "2024-01-05", [1, "a", None], "\u202e", "a\nb"),
]


# --- bytes ------------------------------------------------------------------------------------------------------------


def _truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def _flipped(content: bytes, rng: np.random.Generator, bits: int = 1) -> bytes:
    out = np.frombuffer(content, np.uint8).copy()
    for place in rng.integers(len(out), size=bits):
        out[place] ^= 1 << int(rng.integers(8))
    return out.tobytes()


def _zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 64))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def _not_text(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + b"\xff\xfe\x80" + content[start + int(rng.integers(4)) :]


def _swapped(content: bytes, rng: np.random.Generator) -> bytes:
    length = max(1, min(64, len(content) // 4))
    first, second = sorted(int(place) for place in rng.integers(max(1, len(content) - length), size=2))
    second = max(second, first + length)
    parts = content[:first], content[first : first + length], content[first + length : second]
    return parts[0] + content[second : second + length] + parts[2] + parts[1] + content[second + length :]


BYTES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncated": _truncated,
    "one bit flipped": _flipped,
    "eight bits flipped": lambda content, rng: _flipped(content, rng, 8),
    "some bytes zero": _zeroed,
    "empty": lambda content, rng: b"",
    "noise": lambda content, rng: rng.bytes(len(content)),
    "not UTF-8": _not_text,
    "blocks swapped": _swapped,
    "more at the end": lambda content, rng: content + rng.bytes(int(rng.integers(1, 100))),
}


# --- what a file holds ------------------------------------------------------------------------------------------------


def _odd(rng: np.random.Generator) -> object:
    return ODD[int(rng.integers(len(ODD)))]


def _places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths to all values in a mapping or list."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, part in parts for place in [(*path, name), *_places(part, (*path, name))]]


def _at(content: object, path: tuple) -> object:
    for step in path:
        content = content[step]
    return content


def _spoil(content: dict, rng: np.random.Generator) -> str:
    """Change one value of a mapping in place."""
    places = _places(content)
    path = places[int(rng.integers(len(places)))]
    holder = _at(content, path[:-1])
    match int(rng.integers(4)):
        case 0:
            del holder[path[-1]]
            return f"{path} removed"
        case 1:
            other = places[int(rng.integers(len(places)))]
            # One inside of the other would hold itself.
            if path[: len(other)] != other and other[: len(path)] != path:
                theirs = _at(content, other[:-1])
                holder[path[-1]], theirs[other[-1]] = theirs[other[-1]], holder[path[-1]]
                return f"{path} and {other} swapped"
    holder[path[-1]] = _odd(rng)
    return f"{path} is {str(holder[path[-1]])[:30]!r}"


def _json(file: Path, rng: np.random.Generator) -> str:
    content = json.loads(file.read_text())
    done = _spoil(content, rng)
    file.write_text(json.dumps(content))
    return done


def _yaml(file: Path, rng: np.random.Generator) -> str:
    content = yaml.safe_load(file.read_text())
    done = _spoil(content, rng)
    file.write_text(yaml.safe_dump(content, allow_unicode=True))
    return done


def _csv(file: Path, rng: np.random.Generator) -> str:
    lines = [line.split(",") for line in file.read_text().splitlines()]
    row, column = int(rng.integers(len(lines))), int(rng.integers(len(lines[0])))
    match int(rng.integers(5)):
        case 0:
            lines = [line[:column] + line[column + 1 :] for line in lines]
            done = f"column {column} removed"
        case 1:
            lines[row].append("more")
            done = f"line {row} has one field more"
        case 2:
            other = int(rng.integers(len(lines[0])))
            for line in lines[1:]:
                line[column], line[other] = line[other], line[column]
            done = f"columns {column} and {other} swapped"
        case 3:
            lines.append(lines[row])
            done = f"line {row} twice"
        case _:
            lines[row][column] = str(_odd(rng)).replace(",", ";").replace("\n", " ")
            done = f"line {row} has in {column} {lines[row][column][:30]!r}"
    file.write_text("\n".join(",".join(line) for line in lines) + "\n")
    return done


def _array(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changes = [
        lambda: array.astype(np.float64),
        lambda: array.astype(str),
        lambda: array[:-1] if array.ndim and len(array) else array[None],
        lambda: array[None],
        lambda: array.T,
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: np.where(rng.random(array.shape) < 0.1, 1, array).astype(array.dtype),
        lambda: np.full(array.shape, np.nan),
        lambda: array.astype(">i8"),
    ]
    return changes[int(rng.integers(len(changes)))]()


def _npy(file: Path, rng: np.random.Generator) -> str:
    array = _array(np.load(file), rng)
    np.save(file, array)
    return f"it is {array.dtype} {array.shape}"


def _npz(file: Path, rng: np.random.Generator) -> str:
    with np.load(file) as stored:
        arrays = dict(stored)
    name = sorted(arrays)[int(rng.integers(len(arrays)))]
    arrays[name] = _array(arrays[name], rng) if arrays[name].dtype.kind in "uif" else arrays[name][:-1]
    np.savez(file, **arrays)
    return f"{name} is {arrays[name].dtype} {arrays[name].shape}"


def _safetensors(file: Path, rng: np.random.Generator) -> str:
    tensors = load_file(file)
    name = sorted(tensors)[int(rng.integers(len(tensors)))]
    match int(rng.integers(3)):
        case 0:
            del tensors[name]
        case 1:
            tensors["\u202e"] = tensors.pop(name)
        case _:
            tensors[name] = np.ascontiguousarray(np.zeros((*tensors[name].shape, 1), np.float16))
    save_file(tensors, file)
    return f"the tensor {name}"


def _parquet(file: Path, rng: np.random.Generator) -> str:
    table = pd.read_parquet(file)
    name = list(table)[int(rng.integers(len(table.columns)))]
    match int(rng.integers(5)):
        case 0:
            table = table.drop(columns=name)
        case 1:
            table = table.rename(columns={name: f"{name} "})
        case 2:
            table[name] = str(_odd(rng))
        case 3:
            table[name] = 1e308
        case _:
            table = table.iloc[:-1]
    table.to_parquet(file)
    return f"the column {name}"


def _picture(file: Path, rng: np.random.Generator) -> str:
    image = Image.open(file)
    changes = [
        lambda: image.resize((image.width + 1, image.height)),
        lambda: image.convert("1"),
        lambda: image.convert("CMYK").convert("RGB").resize((1, 1)),
        lambda: image.convert("I;16") if image.mode == "L" else image.convert("L"),
        lambda: image.convert("RGBA"),
    ]
    other = changes[int(rng.integers(len(changes)))]()
    content = io.BytesIO()
    other.save(content, "PNG")
    file.write_bytes(content.getvalue())
    return f"it is {other.mode} {other.size}"


CONTENT: dict[str, Callable[[Path, np.random.Generator], str]] = {
    **{".json": _json, ".yaml": _yaml, ".csv": _csv, ".npy": _npy, ".npz": _npz},
    **{".safetensors": _safetensors, ".parquet": _parquet, ".png": _picture},
}


def damage(file: Path, rng: np.random.Generator) -> str:
    """Damage a file; what was done."""
    if file.suffix in CONTENT and rng.random() < 0.5:
        return CONTENT[file.suffix](file, rng)
    name = list(BYTES)[int(rng.integers(len(BYTES)))]
    file.write_bytes(BYTES[name](file.read_bytes(), rng))
    return name


def forget_seals(folder: Path) -> None:
    """Take seals and sums away, as if somebody else had written the files."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        content.pop(SEAL, None)
        if file.name in (RUN, PROVENANCE):
            content.pop(FILES, None)
        file.write_text(json.dumps(content, indent=2))
