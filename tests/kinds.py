"""The kinds of files that are fuzzed: how honest ones are made, and what of them is read."""

import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import layouts
import numpy as np
import onnx
import tiny
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stealthmark import architecture, dataset, layout, suite
from stealthmark.certificate import Certificate
from stealthmark.collate import collate
from stealthmark.errors import UserError
from stealthmark.files import read_json
from stealthmark.layout import Cell, Place, Study
from stealthmark.method import Key
from stealthmark.plugin import make
from stealthmark.report import examples, maps, reliability, results, tables
from stealthmark.stages.examination import listed_in
from stealthmark.stages.verify import verify
from stealthmark.suspects.connect import connect
from stealthmark.suspects.querier import Limits

SUITE = {
    **{"suite": "tiny", "title": "For tests", "seed": 1, "seeds": [0], "size": tiny.SIZE},
    **{"datasets": [tiny.PHANTOM], "architectures": [tiny.NETWORK], "methods": ["clean", "badnets", tiny.FINGERPRINT]},
    **{"attacks": [{"name": "prune", "strengths": [0.2]}], "scanners": [{"name": "entropy", "pairs": 4}]},
    **{"training": {"epochs": 1, "batch": 4}, "marking": {"epochs": 1, "batch": 4}, "nulls": {"count": 1}},
    "explanations": {"images": 1, "queries": 32},
}
CLEAN, MARKED, FINGERPRINT = (
    Cell("phantom-endoscopy", "small-net", 0, name) for name in ("clean", "badnets", "reference-answers")
)
SHAPE = (3, 4, 4)
#: The endings of files with sums of ours, over what they hold; and of others' files, which have one over their bytes.
OURS = (".json", ".csv", ".npy", ".npz", ".parquet", ".safetensors")
SUMMED = (".png", ".gz")


class Silent(Exception):
    """What was read is not what a file of this kind may say."""


@dataclass(frozen=True)
class Kind:
    """make: writes honest files into a folder, from the study's folder. files: patterns of those that may be damaged.
    read: what the library reads of the folder, as anything that can be compared.

    kept: the endings of the files whose damage can be told from them alone, since they carry a sum: whatever is accepted must
    equal what is honest. Of a picture that is a sum of its bytes, so only damage to these is meant. Of all others only how
    reading ends is judged, and `read` raises Silent for what they may not say.
    """

    make: Callable[[Path, Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], object]
    kept: tuple[str, ...] = OURS


def study(folder: Path) -> Path:
    """A small study, collated, with everything that the kinds are made from; its folder of results."""
    results_folder = folder / "results"
    results_folder.mkdir(parents=True)
    read = tiny.study(SUITE, results_folder)
    collate(read, results_folder)
    lies = Study(results_folder)
    nulls = ["--null", lies.independent(CLEAN), "--null", lies.null(MARKED, "0")]
    asked = ["--data", lies.data("phantom-endoscopy"), "--key", lies.key(MARKED), "--suspect", lies.model(MARKED)]
    tiny.run("certify", *asked, *nulls, "--code-queries", 32, "--out", results_folder / "certificate")
    return results_folder


def _copy(part: Callable[[Study], Path]) -> Callable[[Path, Path], None]:
    return lambda at, out: shutil.copytree(part(Study(at)), out, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _digest(*arrays: object) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


# --- prepared, and what is prepared -----------------------------------------------------------------------------------


def _read_prepared(folder: Path) -> object:
    arrays = dataset.load(folder)
    return _digest(arrays.images, arrays.masks), arrays.cases.to_csv(), json.dumps(arrays.manifest)


def _prepared_from(options: dict) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        dataset.prepare(make("dataset", {**options, "data_root": str(folder / "root")}), 24, 1, folder / "out")
        arrays = dataset.load(folder / "out")
        return _digest(arrays.images, arrays.masks), arrays.cases.to_csv()

    return read


def _make_pictures(at: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (out / "root" / kind).mkdir(parents=True)
    for case in range(9):
        mask = np.zeros((24, 24), np.uint8)
        mask[4 : 12 + case % 3, 5:15] = 255
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(out / f"root/images/{case}.png")
        Image.fromarray(mask).save(out / f"root/masks/{case}.png")
    (out / "root/groups.csv").write_text("case_id,group_id\n" + "".join(f"{case},p{case}\n" for case in range(9)))


# --- files of a study -------------------------------------------------------------------------------------------------


def _read_suite(folder: Path) -> object:
    read = suite.read(folder / layout.SUITE)
    [read.facts(kind, entry.label) for kind in ("method", "attack", "scanner") for entry in getattr(read, f"{kind}s")]
    written = yaml.safe_load((folder / layout.SUITE).read_text())
    for name in ("suite", "title", "seed", "seeds", "size"):
        value = getattr(read, name)
        if value != written[name] or type(value) is not type(written[name]):
            raise Silent(f"{name} is {value!r}, and in the file {written[name]!r}")
    return read.digest()


def _read_keys(folder: Path) -> object:
    keys = [Key.read(folder / "keys" / Path(*cell[:2], "0", f"{cell.method}.json")) for cell in (MARKED, FINGERPRINT)]
    return [(key.model_dump_json(), _digest(*(key.reference[name] for name in sorted(key.reference)))) for key in keys]


def _read_card(folder: Path) -> object:
    model, card = architecture.load(folder, torch.device("cpu"))
    return card, _digest(*(tensor.numpy() for tensor in model.state_dict().values()))


def _read_index(folder: Path) -> object:
    listed = listed_in(folder, Place(attack="prune"))
    return [
        (one.place, one.folder.relative_to(folder.resolve()), one.wraps, one.status, _read_card(one.folder)) for one in listed
    ]


def _make_tables(at: Path, out: Path) -> None:
    for name in (layout.ROWS, layout.CASES, layout.PROVENANCE):
        shutil.copyfile(at / name, out / name)


def _read_tables(folder: Path) -> object:
    provenance = read_json(folder / layout.PROVENANCE)
    loaded = results.load(folder / layout.ROWS, folder / layout.CASES, SUITE, provenance)
    made = tables.all_tables(loaded)
    return loaded.rows.to_csv(), loaded.cases.to_csv(), str(loaded.facts), [table.data.to_csv() for table in made]


def _make_arrays(at: Path, out: Path) -> None:
    lies = Study(at)
    for name, folder in (("evidence", lies.evidence(MARKED)), ("explanations", lies.explanations(MARKED))):
        shutil.copytree(folder / "stolen/none", out / name, copy_function=shutil.copyfile)


def _read_arrays(folder: Path) -> object:
    drawn = maps.Maps({("stolen", "none"): folder / "explanations" / layout.MAPS})
    shown = examples.load({MARKED: folder / "evidence" / layout.EXAMPLES})[MARKED]
    files = {MARKED: folder / "evidence" / layout.RELIABILITY}
    pooled = [reliability._pooled(files, results.Panel(*MARKED[:2]), MARKED.method, query) for query in ("benign", "triggered")]
    return _digest(*shown.values(), *drawn._arrays.values(), *pooled)


def _make_evidence(at: Path, out: Path) -> None:
    left = shutil.ignore_patterns("*.safetensors", "*.npy", "tables", "figures", "examples.npz", "reliability.npz")
    shutil.copytree(at, out, ignore=left, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _read_evidence(folder: Path) -> object:
    collate(suite.read(folder / layout.SUITE), folder)
    return (folder / layout.ROWS).read_text()


def _read_certificate(folder: Path) -> object:
    for finding in verify(folder):
        if finding.state == "does not hold":
            raise UserError(finding.text.splitlines()[0])
    return Certificate.model_validate_json((folder / "certificate.json").read_bytes()).model_dump_json()


# --- suspects ---------------------------------------------------------------------------------------------------------


def _asked(suspect: object, folder: Path) -> object:
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    answers = connect(suspect, SHAPE, torch.device("cpu"), Limits(timeout=5, retries=0))(images)
    if answers.shape != (2, *SHAPE[1:]) or not ((answers >= 0) & (answers <= 1)).all():
        raise Silent(f"answers {tuple(answers.shape)} from {answers.min()} to {answers.max()}")
    return _digest(answers.numpy())


def _make_onnx(at: Path, out: Path) -> None:
    rng, info = np.random.default_rng(0), helper.make_tensor_value_info
    shapes = {"first": (8, 3, 3, 3), "second": (1, 8, 1, 1)}
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["inner"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["inner", "second"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["y"]),
    ]
    ends = [info(name, TensorProto.FLOAT, ["batch", channels, *SHAPE[1:]]) for name, channels in (("x", 3), ("y", 1))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), str(out / "suspect.onnx"))


def _make_answers(at: Path, out: Path) -> None:
    """Answers as they go over the line, heads and all: in both protocols."""
    np.save(out / "body.npy", np.full((2, 4, 4), 0.25, np.float32))
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, 4, 4]}]
    described = {"name": "m", "platform": "p", "inputs": inputs, "outputs": outputs}
    inferred = {"model_name": "m", "outputs": [{**outputs[0], "shape": [2, 4, 4], "data": [0.25] * 32}]}
    bodies = {
        "array.http": ("application/x-npy", (out / "body.npy").read_bytes()),
        "described.http": ("application/json", json.dumps(described).encode()),
        "inferred.http": ("application/json", json.dumps(inferred).encode()),
    }
    for name, (kind, body) in bodies.items():
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        (out / name).write_bytes(head.encode() + body)
    (out / "body.npy").unlink()


def _serve(listener: socket.socket, folder: Path) -> None:
    """Answer every request with the bytes in a file, and close."""
    while True:
        connection, _ = listener.accept()
        with closing(connection):
            connection.settimeout(5)
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
                head += part
            words = head.split(b" ")
            name = "described" if words[0] == b"GET" else "inferred" if b"/v2/" in words[1] else "array"
            lower = head.lower()
            if b"content-length: " in lower:
                left = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(head.split(b"\r\n\r\n", 1)[1])
                while left > 0 and (part := connection.recv(65536)):
                    left -= len(part)
            connection.sendall((folder / f"{name}.http").read_bytes())


def _read_answers(folder: Path) -> object:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, folder), daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return _asked(f"{address}/ask", folder), _asked(f"{address}/v2/models/m", folder)


KINDS = {
    "prepared": Kind(_copy(lambda at: at.data("phantom-endoscopy")), ("*.npy", "*.csv", "manifest.json"), _read_prepared),
    "folder": Kind(_make_pictures, ("root/**/*.png", "root/groups.csv"), _prepared_from({"name": "folder"}), SUMMED),
    "nifti": Kind(
        lambda at, out: layouts.write_acdc(out / "root") and None,
        ("root/**/*frame01.nii.gz", "root/**/*frame12_gt.nii.gz", "root/**/Info.cfg"),
        _prepared_from({"name": "acdc"}),
        SUMMED,
    ),
    "suite": Kind(lambda at, out: shutil.copyfile(at / layout.SUITE, out / layout.SUITE), ("suite.yaml",), _read_suite, ()),
    "key": Kind(_copy(lambda at: at.root), ("keys/**/*.json", "keys/**/*.safetensors"), _read_keys),
    "model": Kind(_copy(lambda at: at.model(MARKED)), ("*.json", "*.safetensors"), _read_card),
    "attack": Kind(_copy(lambda at: at.attacked(MARKED, "prune")), ("*.json", "*/*.json", "*/*.safetensors"), _read_index),
    "rows": Kind(_make_tables, ("rows.csv", "cases.parquet", "provenance.json"), _read_tables),
    "arrays": Kind(_make_arrays, ("**/*.npz",), _read_arrays),
    "evidence": Kind(
        _make_evidence,
        tuple(f"{kind}/**/*.*" for kind in ("evidence", "explanations", "scans")),
        _read_evidence,
    ),
    "certificate": Kind(
        _copy(lambda at: at.root / "certificate"),
        ("certificate.json", "*.parquet", "*.npz", "commitment.json"),
        _read_certificate,
    ),
    "onnx": Kind(_make_onnx, ("suspect.onnx",), lambda folder: _asked(folder / "suspect.onnx", folder), ()),
    "http": Kind(_make_answers, ("*.http",), _read_answers, ()),
}
#: Kinds whose files carry seals or sums. Without these they are as good as somebody else's: only the ending is judged.
SEALED = ("key", "model", "attack", "rows", "arrays", "evidence")
