"""Messages of the Open Inference Protocol (KServe v2) that carry one tensor, read as untrusted input.

The protocol: github.com/kserve/open-inference-protocol. A tensor is numbers in JSON or, by the binary tensor data extension,
little-endian bytes after the JSON.
"""

import math
import re
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json, to_json

#: Datatypes of the protocol that can be images or answers.
DATATYPES = {
    "BOOL": np.dtype("?"),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind[0].lower()}{size}") for kind in ("UINT", "INT") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
#: The extension, as a server lists it, and the header that says how many bytes of a body are JSON.
BINARY, JSON_LENGTH = "binary_tensor_data", "Inference-Header-Content-Length"
#: Bytes that the JSON of a message may take, apart from its numbers.
ENVELOPE = 1 << 16
#: Bytes that a number may take in JSON.
NUMBER = 25
#: The part of an address that names a model, of a certain version or not.
ADDRESS = re.compile(r"(?P<root>.*/v2)/models/[^/]+(/versions/[^/]+)?")

Side = Literal["inputs", "outputs"]
Model = TypeVar("Model", bound=BaseModel)


class TensorMetadata(BaseModel):
    """What a model says of one of its inputs or outputs. A side of -1 is free."""

    name: str = Field(max_length=200)
    datatype: str = Field(max_length=20)
    shape: list[int] = Field(max_length=10)


class ModelMetadata(BaseModel):
    """What a model says of itself; a server that was not told leaves the lists empty."""

    inputs: list[TensorMetadata] | None = Field(default=None, max_length=1000)
    outputs: list[TensorMetadata] | None = Field(default=None, max_length=1000)


class Parameters(BaseModel):
    """The parameters of the binary tensor data extension, of a tensor or of a whole request."""

    binary_data_size: int | None = Field(default=None, ge=0)
    binary_data: bool | None = None
    binary_data_output: bool | None = None


class TensorHeader(BaseModel):
    """A tensor in a message. Its numbers are in `data`, or after the JSON."""

    name: str = Field(max_length=200)
    datatype: str = Field(max_length=20)
    shape: list[int] = Field(max_length=10)
    parameters: Parameters | None = None
    data: Any = None


class WantedOutput(BaseModel):
    """An output that a request asks for."""

    name: str = Field(max_length=200)
    parameters: Parameters | None = None


class Request(BaseModel):
    """What is asked of a model."""

    id: str | None = Field(default=None, max_length=200)
    inputs: list[TensorHeader] = Field(max_length=100)
    outputs: list[WantedOutput] | None = Field(default=None, max_length=100)
    parameters: Parameters | None = None

    def in_binary(self) -> bool:
        """Whether the output that is asked for shall be binary."""
        output = self.outputs[0].parameters if self.outputs else None
        if output and output.binary_data is not None:
            return output.binary_data
        return bool(self.parameters and self.parameters.binary_data_output)


class Response(BaseModel):
    """What a model answers."""

    outputs: list[TensorHeader] = Field(max_length=100)


def read_metadata(body: bytes) -> ModelMetadata:
    """What a model says of itself. Raises ValueError, one sentence, where it is something else."""
    return _checked(ModelMetadata, _json(body, ENVELOPE))


def extensions(body: bytes) -> list[str]:
    """The extensions that a server says it has. Raises ValueError, one sentence, where it says something else."""
    content = _json(body, ENVELOPE)
    listed = content.get("extensions", []) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is not what a server says of itself")
    return [each for each in listed if isinstance(each, str)]


def write_tensor(side: Side, name: str, array: np.ndarray, binary: bool, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A message with one tensor, and `more` beside it, as a body and its headers (_ for -)."""
    datatype = next(name for name, dtype in DATATYPES.items() if dtype == array.dtype.newbyteorder("<"))
    header: dict[str, Any] = {"name": name, "shape": [*array.shape], "datatype": datatype}
    if not binary:
        header["data"] = array.ravel().tolist()
        return to_json({**more, side: [header]}), {"Content_Type": "application/json"}
    values = array.astype(DATATYPES[datatype], copy=False).tobytes()
    header["parameters"] = {"binary_data_size": len(values)}
    text = to_json({**more, side: [header]})
    return text + values, {"Content_Type": "application/octet-stream", JSON_LENGTH.replace("-", "_"): str(len(text))}


def read_request(body: bytes, json_length: str | None, most: int) -> tuple[Request, np.ndarray]:
    """A request, and its only input, which has at most `most` numbers. Raises ValueError, one sentence, for anything else."""
    text, values = _parts(body, json_length)
    request = _checked(Request, _json(text, most))
    if len(request.inputs) != 1:
        raise ValueError(f"it has {len(request.inputs)} inputs, not one")
    return request, _array(request.inputs[0], values)


def read_response(body: bytes, json_length: str | None, most: int, name: str | None) -> np.ndarray:
    """The output `name` of a response, or its only one, of at most `most` numbers. Raises ValueError for anything else."""
    text, values = _parts(body, json_length)
    outputs = _checked(Response, _json(text, most)).outputs
    if len(outputs) != 1 or name not in (None, outputs[0].name):
        names = ", ".join(repr(output.name[:50]) for output in outputs[:4]) or "none"
        raise ValueError(f"it has the outputs {names}, not {'one' if name is None else f'the one named {name!r}'}")
    return _array(outputs[0], values)


def _parts(body: bytes, json_length: str | None) -> tuple[bytes, bytes | None]:
    """A body's JSON, and the bytes after it, None without the extension."""
    if json_length is None:
        return body, None
    if not re.fullmatch(r"[0-9]{1,12}", json_length) or int(json_length) > len(body):
        raise ValueError(f"{JSON_LENGTH} is {json_length[:50]!r}, the body has {len(body)} bytes")
    return body[: int(json_length)], body[int(json_length) :]


def _json(text: bytes, most: int) -> Any:
    """The JSON in `text`. Numbers, brackets and names take many times their length in memory, so they are counted first."""
    marks = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if marks > most + most // 4 + ENVELOPE:  # a quarter for the brackets of rows
        raise ValueError(f"it has more than {most} numbers")
    try:
        return from_json(text, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {str(error)[:100]}") from None


def _checked(model: type[Model], content: Any) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise ValueError(f"it is no message of the protocol: {f'{where}: ' if where else ''}{first['msg'][:100]}") from None


def _array(header: TensorHeader, values: bytes | None) -> np.ndarray:
    """The tensor. Nothing is made of its shape before there are known to be that many numbers."""
    if header.datatype not in DATATYPES:
        raise ValueError(f"its datatype is {header.datatype!r}; allowed: {', '.join(DATATYPES)}")
    dtype, count = DATATYPES[header.datatype], math.prod(header.shape)
    if min(header.shape, default=0) < 0:
        raise ValueError(f"its shape is {header.shape}")
    size = header.parameters and header.parameters.binary_data_size
    if size is not None:
        if values is None or not size == len(values) == count * dtype.itemsize:
            found = "none" if values is None else len(values)
            raise ValueError(f"it has {found} bytes of values, its header says {size}, and shape {header.shape} of {dtype}")
        return np.frombuffer(values, dtype).reshape(header.shape)
    try:
        numbers = np.asarray(header.data, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("its data are not numbers in rows of equal length") from None
    if numbers.size != count:
        raise ValueError(f"it has {numbers.size} numbers, its header says shape {header.shape}")
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, for the reader to refuse
        array = numbers.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(array, numbers):
        raise ValueError(f"it has numbers that no {header.datatype} can be")
    return array.reshape(header.shape)
