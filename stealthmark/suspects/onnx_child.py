"""The process that an ONNX file runs in: whoever opened the file can stop it, and it takes only so much memory.

It reads jobs from standard input and writes replies to standard output, in `frames`. A job is a frame of JSON and one of bytes.
The first one opens the file, each one after it asks the network. No torch is imported, so that it starts in half a second.
"""

import json
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnxruntime

from stealthmark.suspects.frames import ANSWER, DESCRIBED, JOB, NO_MEMORY, READY, REFUSED, read_frame, write_frame
from stealthmark.suspects.npy import to_npy
from stealthmark.suspects.remedies import remedy


class Refusal(Exception):
    """Why a file is not opened, or gives no answer: the words after its name."""


def main() -> None:
    jobs, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no reply
    Thread(target=_end_with_parent, daemon=True).start()
    write_frame(replies, READY)
    session: onnxruntime.InferenceSession | None = None
    with suppress(EOFError):
        while True:
            _, head = read_frame(jobs, {JOB: 1 << 16})
            _, content = read_frame(jobs, {JOB: 1 << 40})
            job = json.loads(head)
            try:
                if session is None:
                    bound(job["memory"])
                    session = opened(content, job["threads"], job["cuda"])
                    write_frame(replies, DESCRIBED, described(session))
                else:
                    images = np.frombuffer(content, job["dtype"]).reshape(job["shape"])
                    write_frame(replies, ANSWER, answered(session, images, job["most"], job["output"]))
            except Refusal as refusal:
                write_frame(replies, REFUSED, str(refusal).encode(errors="replace"))
            except Exception as error:  # too little memory; names that are no text; graphs within graphs within graphs
                write_frame(replies, REFUSED, f"cannot be run: {_sentence(error)}".encode(errors="replace"))


def _end_with_parent() -> None:
    """End the process as soon as nobody can write jobs any more, be it in the midst of one."""
    hung_up = select.poll()
    hung_up.register(0, 0)
    hung_up.poll()
    os._exit(1)


def bound(memory: int) -> None:
    """Let this process have `memory` bytes, where the system can say so; and write no file, not even when it crashes."""
    with suppress(ImportError):
        import resource

        for limit, value in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (value, value))


def opened(content: bytes, threads: int, cuda: bool) -> onnxruntime.InferenceSession:
    """The network in an ONNX file. Raises Refusal."""
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own class, which onnx does not name
        raise Refusal(f"is not an ONNX file: {_sentence(error)}") from None
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise Refusal(
                f"keeps the tensor {tensor.name[:100]!r} in another file, {place[:100]!r}; allowed: all inside of it, "
                "as onnx.save(onnx.load(FILE), OTHER) writes it"
            )
    del model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, and need not be printed too
    options.intra_op_num_threads = threads
    # What was checked is what is read: bytes that are ONNX may be onnxruntime's own format as well, and it prefers that.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers(cuda))
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise Refusal(f"cannot be opened: {_sentence(error)}") from None


def providers(cuda: bool) -> list[str]:
    """CUDA where it is wanted and onnxruntime has it, else the CPU."""
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["CUDAExecutionProvider"] * (cuda and has_cuda) + ["CPUExecutionProvider"]


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in an ONNX message, wherever it stands: initialisers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def described(session: onnxruntime.InferenceSession) -> bytes:
    """The network's inputs and outputs, as JSON."""
    sides = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    entries = {
        side: [{"name": tensor.name, "type": tensor.type, "shape": tensor.shape} for tensor in tensors[:100]]
        for side, tensors in sides.items()
    }
    return json.dumps(entries).encode()


def answered(session: onnxruntime.InferenceSession, images: np.ndarray, most: int, output: str) -> bytes:
    """The network's output of that name as an .npy file of at most `most` bytes. Raises Refusal."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    try:
        (answer,) = session.run([output], {session.get_inputs()[0].name: images}, options)
    except Exception as error:
        raise Refusal(f"cannot be run: {_sentence(error)}") from None
    if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "biuf":
        raise Refusal("answers with something else than bools or numbers")
    if answer.nbytes > most:
        end = remedy(foreground="[...]") + ", or allow more 'pixel_bytes' in --limits" if answer.ndim == 4 else ""
        raise Refusal(f"answers with the shape {answer.shape} of {answer.dtype}; allowed for these images: {most} bytes{end}")
    return to_npy(answer)


def _sentence(error: Exception) -> str:
    text = str(error)
    # A thread's stack takes memory too: where there is none, onnxruntime says so from the place that makes threads.
    if isinstance(error, MemoryError) or re.search(
        "failed to allocate|bad_alloc|bad allocation|PosixThread", text, re.IGNORECASE
    ):
        return NO_MEMORY
    return ((text or type(error).__name__).splitlines()[0])[:200]


if __name__ == "__main__":
    main()
