"""Arrays as `.npy` files, read as untrusted input."""

import io

import numpy as np

#: The Content-Type of an array.
NPY = "application/x-npy"
#: Bytes that the header of an .npy array may take.
HEADER = 4096


def to_npy(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def from_npy(body: bytes) -> np.ndarray:
    """The array of bools or numbers that the .npy file `body` holds; read only.

    Raises ValueError, one sentence, for anything else: a pickle, another format, a body shorter or longer than its array.
    Nothing is made of the header's shape before the body is known to have that size.
    """
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = header(file, max_header_size=HEADER)
    except Exception:  # numpy says ValueError of most headers, and whatever it stumbles on of those made to harm
        raise ValueError("it is not an .npy array of version 1 or 2") from None
    if dtype.kind not in "biuf":
        raise ValueError(f"it is an array of {str(dtype)[:100]}, not of bools or numbers")
    size, rest = dtype.itemsize, len(body) - file.tell()
    for side in shape:
        size *= side
    if min(shape, default=0) < 0 or size != rest:
        raise ValueError(f"it has {rest} bytes of values, its header says shape {shape} of {dtype}")
    return np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
