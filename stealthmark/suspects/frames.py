"""Bytes between a process and its child: a kind, a length, and that many bytes. The other end may not be trusted."""

import struct
from collections.abc import Mapping
from typing import IO, Any

#: A job, and the kinds of replies to it: ready to work, what was opened, an answer, a sentence that says why there is none.
JOB, READY, DESCRIBED, ANSWER, REFUSED = b"J", b"R", b"D", b"A", b"E"
#: What a sentence says of memory.
NO_MEMORY = "it needs more memory"
_HEAD = struct.Struct(">cQ")


def write_frame(stream: IO[bytes], kind: bytes, content: Any = b"") -> None:
    """Write one frame. `content` is bytes, or a contiguous view of bytes."""
    stream.write(_HEAD.pack(kind, len(content)))
    stream.write(content)
    stream.flush()


def read_frame(stream: IO[bytes], most: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Read one frame: its kind, and its content, which is no longer than `most` says of its kind.

    Raises EOFError where the stream ends before, ValueError for a longer frame and for a kind that `most` has not.
    """
    kind, length = _HEAD.unpack(_exactly(stream, _HEAD.size))
    if length > most.get(kind, -1):
        raise ValueError(f"a frame of the kind {kind!r} has {length} bytes; allowed: {dict(most)}")
    return kind, _exactly(stream, length)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) != length:
        raise EOFError
    return content
