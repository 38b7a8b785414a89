"""A suspect behind HTTP, asked in one of two protocols (in full in docs/http.md).

`POST <address>`, Content-Type `application/x-npy`, the body one .npy array, float32 (B, C, H, W) in [0, 1]; the answer is
status 200 and one .npy array that `querier.probabilities` allows. An address `.../v2/models/NAME` is asked in the Open
Inference Protocol. What a suspect sends is untrusted: an answer is read no further than the largest that can be one, and no
array of objects (a pickle) is ever loaded.
"""

from urllib.parse import SplitResult, urlsplit

import numpy as np
from torch import Tensor

from stealthmark.errors import UserError
from stealthmark.suspects import inference
from stealthmark.suspects.batch import filled, fixed_batch, unfilled
from stealthmark.suspects.exchange import Exchange
from stealthmark.suspects.inference import BINARY, DATATYPES, ENVELOPE, JSON_LENGTH, NUMBER, TensorMetadata
from stealthmark.suspects.interface import Interface
from stealthmark.suspects.npy import HEADER, NPY, from_npy, to_npy
from stealthmark.suspects.querier import Limits, Shows, Source
from stealthmark.suspects.remedies import remedy

#: The input of a service that names none.
UNNAMED = TensorMetadata(name="input-0", datatype="FP32", shape=[-1, -1, -1, -1])


def parse(url: str) -> tuple[SplitResult, str]:
    """The parts of a service's address, and its name without what may be a secret (user, password, query).

    Raises UserError for an address that is none.
    """
    try:
        parts = urlsplit(url)
        name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        name, usable = url.rpartition("@")[2].partition("?")[0], False
    if not usable:
        raise UserError(f"{name} is not an address that can be asked; allowed: http://HOST[:PORT]/... or https://...")
    return parts, name


def source(
    url: str,
    shape: tuple[int, int, int],
    limits: Limits,
    shows: Shows = "probabilities",
    interface: Interface = Interface(),  # noqa: B008 (frozen)
) -> Source:
    """The service at `url`, for images of `shape` (C, H, W) as the interface sends them; its answers are what `shows` says.

    Every request is an `Exchange`, within the limits. Raises UserError for an address that is none and, in the Open Inference
    Protocol, for a service that cannot be reached in time or takes other images. Asking raises it for a service that cannot
    be reached in time, a status other than 200, and a body that is too large or is not an array.
    """
    parts, name = parse(url)
    path = parts.path.rstrip("/").removesuffix("/infer")
    if model := inference.ADDRESS.fullmatch(path):
        return _in_inference_protocol(parts._replace(path=path), model["root"], name, shape, limits, shows, interface)
    if interface.output is not None:
        raise UserError(f"{name} answers with one array; field 'output' has the value {interface.output!r}; allowed: none")
    exchange = Exchange(name, limits)

    def ask(images: Tensor) -> np.ndarray:
        body = to_npy(_float32(images))
        most = limits.pixel_bytes * (images.numel() // shape[0]) + HEADER
        answer = exchange("POST", url, most, body, Content_Type=NPY, Accept=NPY)
        try:
            return from_npy(answer.content)
        except ValueError as error:
            raise UserError(f"{name} answers with something else than probabilities: {error}") from None

    return Source(ask, name, "http", shows)


def _in_inference_protocol(
    model: SplitResult,
    root: str,
    name: str,
    shape: tuple[int, int, int],
    limits: Limits,
    shows: Shows,
    interface: Interface,
) -> Source:
    """The model at the address `model`, of the server at the path `root`. What it takes and gives is read first."""
    exchange = Exchange(name, limits)
    body = exchange("GET", model.geturl(), ENVELOPE).content
    try:
        metadata = inference.read_metadata(body)
    except ValueError as error:
        raise UserError(f"{name} does not say what it takes and gives: {error}") from None
    if metadata.inputs and len(metadata.inputs) > 1:
        raise UserError(f"{name} has the inputs {_named(metadata.inputs)}; allowed: one")
    entry = metadata.inputs[0] if metadata.inputs else UNNAMED
    output = _output(metadata.outputs or [], name, interface)
    in_bytes = entry.datatype == "UINT8"
    if not (in_bytes and interface.in_bytes) and (not entry.datatype.startswith("FP") or entry.datatype not in DATATYPES):
        end = remedy(scale="255") if in_bytes else ""
        raise UserError(f"{name} takes values of type {entry.datatype!r}; allowed: FP16, FP32, FP64{end}")
    batch = fixed_batch(entry.shape, shape, limits, name, interface)
    binary = _has_binary(model._replace(path=root).geturl(), name, limits)
    if entry.datatype == "FP16" and not binary:
        raise UserError(f"{name} takes values of type 'FP16', which JSON has not; allowed without {BINARY}: FP32, FP64")
    wanted: dict = {"outputs": [{"name": output}]} if output else {}
    if binary:
        wanted["parameters"] = {"binary_data_output": True}
    url = model._replace(path=f"{model.path}/infer").geturl()

    def ask(images: Tensor) -> np.ndarray:
        values = filled(_float32(images.round() if in_bytes else images).astype(DATATYPES[entry.datatype], copy=False), batch)
        body, headers = inference.write_tensor("inputs", entry.name, values, binary, **wanted)
        pixels = values.size // shape[0]
        numbers = max(1, limits.pixel_bytes // 8) * pixels  # an answer of float64 has as many
        most = max(limits.pixel_bytes * pixels, NUMBER * numbers) + ENVELOPE
        answer = exchange("POST", url, most, body, **headers)
        try:
            array = inference.read_response(answer.content, answer.headers.get(JSON_LENGTH), numbers, output)
        except ValueError as error:
            raise UserError(f"{name} answers with something else than probabilities: {error}") from None
        return unfilled(array, batch, len(images))

    return Source(ask, name, "http", shows, batch)


def _output(outputs: list[TensorMetadata], name: str, interface: Interface) -> str | None:
    """The name of the output that is read, None where a service names none. Raises UserError where that is not clear."""
    if interface.output is not None:
        if outputs and interface.output not in [output.name for output in outputs]:
            raise UserError(f"{name} has no output {interface.output!r}; allowed: {_named(outputs)}")
        return interface.output
    if len(outputs) > 1:
        raise UserError(f"{name} has the outputs {_named(outputs)}; allowed: one{remedy(output='NAME')}")
    return outputs[0].name if outputs else None


def _named(tensors: list[TensorMetadata]) -> str:
    return ", ".join(repr(tensor.name) for tensor in tensors)[:200]


def _has_binary(server: str, name: str, limits: Limits) -> bool:
    """Whether a server says that it takes tensors as bytes; one that says nothing does not."""
    try:
        answer = Exchange(name, limits.model_copy(update={"retries": 0}))("GET", server, ENVELOPE)
        return BINARY in inference.extensions(answer.content)
    except (UserError, ValueError):
        return False


def _float32(images: Tensor) -> np.ndarray:
    return images.contiguous().numpy().astype(np.float32, copy=False)
