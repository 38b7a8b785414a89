"""ONNX files: a suspect's, run in a process of its own as untrusted input, and a checkpoint written as one."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

import stealthmark
from stealthmark import architecture
from stealthmark.errors import UserError
from stealthmark.files import whole
from stealthmark.suspects.batch import filled, fixed_batch, unfilled
from stealthmark.suspects.deadline import within
from stealthmark.suspects.frames import ANSWER, DESCRIBED, JOB, NO_MEMORY, READY, REFUSED, read_frame, write_frame
from stealthmark.suspects.interface import Interface
from stealthmark.suspects.npy import HEADER, from_npy
from stealthmark.suspects.querier import Limits, Querier, Shows, Source
from stealthmark.suspects.remedies import remedy

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
#: What a file may take besides, where its interface says that images go from 0 to 255.
BYTES = {"tensor(uint8)": np.uint8}
#: How far an exported file's probabilities may be from the network's.
EXACT = 1e-5
#: What an owner's own file may take.
UNBOUND = Limits(timeout=86400, memory_bytes=2**50)
#: The module that the process runs, and the seconds that it may take to start, which is not the file's doing.
CHILD, START = "stealthmark.suspects.onnx_child", 120
#: Bytes of a sentence, and of what a network says of its inputs and outputs.
SENTENCE, DESCRIPTION = 4096, 1 << 20


def source(
    file: Path,
    shape: tuple[int, int, int],
    device: torch.device,
    limits: Limits,
    shows: Shows = "probabilities",
    interface: Interface = Interface(),  # noqa: B008 (frozen)
) -> Source:
    """The network in `file`, for images of `shape` (C, H, W) as the interface sends them; its answers are what `shows` says.

    A file that takes a fixed number of images is given that many, the last one repeated; its answers to those are dropped.
    Runs on CUDA where `device` says so and onnxruntime can, else on the CPU; in a process that is stopped when opening the
    file, or an answer, takes longer than `limits.timeout`, and that takes `limits.memory_bytes` at most, where the system can
    bound it.
    Raises UserError when the file is too large, is not ONNX, keeps weights in another file (which onnxruntime would read
    from wherever the suspect says), cannot be opened in time, has more than one input, or several outputs of which none is
    named, or takes other images.
    Asking raises it when the network cannot be run, or not in time; after that the file has to be opened again.
    """
    content = _content(file, limits.file_bytes)
    process = _Process(file, limits)
    try:
        entry, output, batch = _checked(process.open(content, device), file, shape, limits, interface)
    except BaseException:
        process.end()
        raise

    def ask(images: Tensor) -> np.ndarray:
        given = images.round() if entry.type in BYTES else images
        values = filled(given.contiguous().numpy().astype({**TYPES, **BYTES}[entry.type], copy=False), batch)
        most = limits.pixel_bytes * (values.size // shape[0]) + HEADER
        return unfilled(process.ask(values, most, output), batch, len(images))

    return Source(ask, str(file), "onnx", shows, batch, hashlib.sha256(content).hexdigest())


def _content(file: Path, file_bytes: int) -> bytes:
    try:
        if (size := file.stat().st_size) > file_bytes:
            raise UserError(f"{file} holds {size} bytes; allowed: {file_bytes}")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


class _Entry(BaseModel):
    """An input or output of a network, as onnxruntime describes it. A side that is no number is free."""

    name: str
    type: str
    shape: list[int | str | None]


class _Network(BaseModel):
    inputs: list[_Entry]
    outputs: list[_Entry]


def _output(network: _Network, file: Path, interface: Interface) -> str:
    """The name of the output that is read. Raises UserError where it is no tensor, or one of several that is not named."""
    tensors = [tensor for tensor in network.outputs if tensor.type.startswith("tensor(")]
    if interface.output is not None:
        if interface.output not in [tensor.name for tensor in tensors]:
            names = ", ".join(repr(tensor.name) for tensor in tensors) or "none"
            raise UserError(f"{file} has no output {interface.output!r}; allowed: {names[:200]}")
        return interface.output
    if len(network.outputs) != 1 or not tensors:
        end = remedy(output="NAME") if tensors else ""
        raise UserError(f"{file} has the outputs {_named(network.outputs)}; allowed: one tensor{end}")
    return tensors[0].name


def _checked(
    network: _Network, file: Path, shape: tuple[int, int, int], limits: Limits, interface: Interface
) -> tuple[_Entry, str, int | None]:
    """A network's input, the name of the output that is read, and how many images it takes at a time. Raises UserError where it
    takes or gives something else."""
    if len(network.inputs) != 1 or not network.inputs[0].type.startswith("tensor("):
        raise UserError(f"{file} has the inputs {_named(network.inputs)}; allowed: one tensor")
    (entry,), output = network.inputs, _output(network, file, interface)
    if entry.type not in TYPES and not (entry.type in BYTES and interface.in_bytes):
        end = remedy(scale="255") if entry.type in BYTES else ""
        raise UserError(f"{file} takes values of type {entry.type[:200]}; allowed: {', '.join(TYPES)}{end}")
    return entry, output, fixed_batch(entry.shape, shape, limits, str(file), interface)


def _named(tensors: list[_Entry]) -> str:
    return (", ".join(f"{tensor.name!r} {tensor.type}" for tensor in tensors) or "none")[:200]


class _Process:
    """The process that `file` runs in. It ends with this object, and with the process that made it.

    What it sends is untrusted: it has read the file. Nothing that it sends is unpickled, and every reply has a length that is
    checked before it is read.
    """

    def __init__(self, file: Path, limits: Limits):
        self._file, self._limits = file, limits
        self._ended: str | None = None  # why there are no answers any more
        package = str(Path(stealthmark.__file__).parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        # numpy's threads would only take memory: onnxruntime has its own.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD],
            cwd="/",
            env={**os.environ, **single, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for its parent to handle
        )
        self.end = weakref.finalize(self, _end, self._process)

    def open(self, content: bytes, device: torch.device) -> _Network:
        """Open the file's content: the network's inputs and outputs."""
        self._reply("cannot be opened", START, {READY: 0})
        job = {"memory": self._limits.memory_bytes, "threads": torch.get_num_threads(), "cuda": device.type == "cuda"}
        reply = self._reply("cannot be opened", self._limits.timeout, {DESCRIBED: DESCRIPTION}, job, content)
        try:
            return _Network.model_validate_json(reply)
        except ValidationError as error:
            raise UserError(f"{self._file} cannot be opened: {error.errors()[0]['msg'][:200]}") from None

    def ask(self, images: np.ndarray, most: int, output: str) -> np.ndarray:
        """The output of that name for a batch of images, an array of at most `most` bytes, .npy header and all."""
        job = {"dtype": images.dtype.str, "shape": images.shape, "most": most - HEADER, "output": output}
        values = np.ascontiguousarray(images).data.cast("B")
        try:
            return from_npy(self._reply("cannot be run", self._limits.timeout, {ANSWER: most}, job, values))
        except ValueError as error:
            raise UserError(f"{self._file} answers with something else than probabilities: {error}") from None

    def _reply(
        self, fails: str, seconds: float, most: Mapping[bytes, int], job: Mapping | None = None, content: Any = b""
    ) -> bytes:
        """The reply to a job, of a kind that `most` has. Raises UserError, a sentence that says what `fails`."""
        if self._ended:
            raise UserError(self._ended)
        jobs, replies = self._process.stdin, self._process.stdout
        assert jobs is not None and replies is not None

        def talk() -> tuple[bytes, bytes]:
            if job is not None:
                write_frame(jobs, JOB, json.dumps(job).encode())
                write_frame(jobs, JOB, content)
            return read_frame(replies, {**most, REFUSED: SENTENCE})

        try:
            kind, reply = within(seconds, talk, self._process.kill)
        except TimeoutError:
            self._ended = f"{self._file} gives no answer within {seconds:g} s"
        except (OSError, EOFError, ValueError):
            self._process.kill()
            self._ended = f"{self._file} {fails}: its process ended{_signal(self._process.wait())}; {self._bounded()}"
        if self._ended:
            raise UserError(self._ended)
        if kind == REFUSED:
            text = "".join(mark if mark.isprintable() else "?" for mark in reply.decode(errors="replace"))
            raise UserError(f"{self._file} {text}" + f"; {self._bounded()}" * text.endswith(NO_MEMORY))
        return reply

    def _bounded(self) -> str:
        return f"allowed: {self._limits.memory_bytes} bytes of memory"


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):  # a job that was never read
            if stream is not None:
                stream.close()


def _signal(status: int) -> str:
    """What ended a process, after its exit status."""
    return f" by {signal.Signals(-status).name}" if status < 0 else f" with the status {status}"


class _Probabilities(nn.Module):
    """What a file says of images (B, C, H, W): the foreground's probabilities, (B, H, W)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return architecture.foreground(self.network, images).sigmoid()


def export(folder: Path, file: Path) -> None:
    """Write the network of the checkpoint `folder` as the ONNX file `file`, whole or not at all.

    It takes `images` float (B, C, size, size) in [0, 1], B free, size the card's, and gives `probabilities` (B, size, size).
    Raises UserError when the folder is no checkpoint, the file cannot be written, or answers otherwise than the network.
    """
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass  # which opening a suspect need not import

    network, card = architecture.load(folder, torch.device("cpu"))
    model = _Probabilities(network).eval()
    shape = (card["channels"], card["size"], card["size"])
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "with dynamo there is always a program"
    ClearMetadataAndDocStringPass()(program.model)  # the lines of code that made it, with this machine's paths
    with whole(file) as partial:
        program.save(partial, external_data=False)
        exported = Querier(source(partial, shape, torch.device("cpu"), UNBOUND))
        with torch.inference_mode():
            difference = (exported(images) - model(images)).abs().max().item()
        if difference > EXACT:
            raise UserError(f"{file} answers otherwise than the network in {folder}, by {difference:g}; allowed: {EXACT:g}")
