"""ONNX files: a suspect's, opened as untrusted input, and a checkpoint written as one."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from stealthmark import architecture
from stealthmark.errors import UserError
from stealthmark.files import whole
from stealthmark.suspects.querier import Limits, Querier, Shows, Source

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
#: How far an exported file's probabilities may be from the network's.
EXACT = 1e-5


def source(
    file: Path, shape: tuple[int, int, int], device: torch.device, limits: Limits, shows: Shows = "probabilities"
) -> Source:
    """The network in `file`, for images of `shape` (C, H, W), whose answers are what `shows` says.

    A file that takes a fixed number of images is given that many, the last one repeated; its answers to those are dropped.
    Runs on CUDA where `device` says so and onnxruntime can, else on the CPU.
    Raises UserError when the file is too large, is not ONNX, keeps weights in another file (which onnxruntime would read
    from wherever the suspect says), has more than one input or output, or takes other images. Asking raises it when the
    network cannot be run, or not within `limits.timeout`.
    """
    content = _checked(file, limits.file_bytes)
    session = _session(content, file, device)
    for kind, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        if len(tensors) != 1 or not tensors[0].type.startswith("tensor("):
            named = ", ".join(f"{tensor.name!r} {tensor.type}" for tensor in tensors) or "none"
            raise UserError(f"{file} has the {kind} {named[:200]}; allowed: one tensor")
    (entry,) = session.get_inputs()
    if entry.type not in TYPES:
        raise UserError(f"{file} takes values of type {entry.type}; allowed: {', '.join(TYPES)}")
    # A dimension that is not a number is free.
    fixed = [size if isinstance(size, int) else None for size in entry.shape]
    if len(fixed) != 4 or any(size not in (None, side) for size, side in zip(fixed[1:], shape, strict=True)):
        raise UserError(f"{file} takes images of shape {entry.shape}; allowed: a batch of {shape}")
    batch = fixed[0]
    if batch is not None and not 1 <= batch <= limits.batch:
        raise UserError(f"{file} takes {batch} images at a time; allowed: any number, or one from 1 to {limits.batch}")

    def ask(images: Tensor) -> np.ndarray:
        values = images.contiguous().numpy().astype(TYPES[entry.type], copy=False)
        if batch is not None:
            values = np.concatenate([values, np.repeat(values[-1:], batch - len(values), axis=0)])
        answer = _run(session, {entry.name: values}, file, limits.timeout)
        return answer[: len(images)] if answer.shape[:1] == (batch,) else answer

    return Source(ask, str(file), "onnx", shows, batch, hashlib.sha256(content).hexdigest())


def _checked(file: Path, file_bytes: int) -> bytes:
    try:
        if (size := file.stat().st_size) > file_bytes:
            raise UserError(f"{file} holds {size} bytes; allowed: {file_bytes}")
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own class, which onnx does not name
        raise UserError(f"{file} is not an ONNX file: {_sentence(error)}") from None
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise UserError(
                f"{file} keeps the tensor {tensor.name[:100]!r} in another file, {place[:100]!r}; allowed: all inside of it"
            )
    return content


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in an ONNX message, wherever it stands: initialisers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _session(content: bytes, file: Path, device: torch.device) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, and need not be printed too
    options.intra_op_num_threads = torch.get_num_threads()
    # What was checked is what is read: bytes that are ONNX may be onnxruntime's own format as well, and it prefers that.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    cuda = device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise UserError(f"{file} cannot be opened: {_sentence(error)}") from None


def _run(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray], file: Path, timeout: float) -> np.ndarray:
    run = onnxruntime.RunOptions()
    run.log_severity_level = 4
    timer = threading.Timer(timeout, setattr, (run, "terminate", True))
    timer.start()
    try:
        (answer,) = session.run(None, inputs, run)
    except Exception as error:
        if run.terminate:
            raise UserError(f"{file} gives no answer within {timeout:g} s") from None
        raise UserError(f"{file} cannot be run: {_sentence(error)}") from None
    finally:
        timer.cancel()
    return answer


def _sentence(error: Exception) -> str:
    return ((str(error) or type(error).__name__).splitlines()[0])[:200]


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
        exported = Querier(source(partial, shape, torch.device("cpu"), Limits()))
        with torch.inference_mode():
            difference = (exported(images) - model(images)).abs().max().item()
        if difference > EXACT:
            raise UserError(f"{file} answers otherwise than the network in {folder}, by {difference:g}; allowed: {EXACT:g}")
