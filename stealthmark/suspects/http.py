"""A suspect behind HTTP: the protocol (in full in docs/http.md), and its client.

`POST <address>`, Content-Type `application/x-npy`, the body one .npy array, float32 (B, C, H, W) in [0, 1]. The answer is
status 200 and one .npy array that `querier.probabilities` allows. What a suspect sends is untrusted: an answer is read no
further than the largest that can be one, and no array of objects (a pickle) is ever loaded.
"""

import io
import ssl
from time import monotonic
from urllib.parse import SplitResult, urlsplit

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3 import HTTPResponse, Retry
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as TooSlow

from stealthmark.errors import UserError
from stealthmark.suspects.querier import Limits, Shows, Source

NPY = "application/x-npy"
#: Bytes that the header of an .npy array may take.
HEADER = 4096
#: Statuses that mean: ask again later.
BUSY = (429, 502, 503, 504)
BACKOFF = 0.5


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


def source(url: str, limits: Limits, shows: Shows = "probabilities") -> Source:
    """The service at `url`, whose answers are what `shows` says.

    A request that fails to connect, or is answered with one of `BUSY`, is sent up to `limits.retries` times again, after
    what its Retry-After says (`limits.timeout` at most) or an ever longer pause. Redirects are not followed: the images go
    to the address that was given. Proxies, certificates and .netrc are taken from the environment, as requests does.
    Raises UserError for an address that is none. Asking raises it for a service that cannot be reached in time, a status
    other than 200, and a body that is too large or is not an .npy array.
    """
    _, name = parse(url)
    longest = max(1, round(limits.timeout))
    retry = Retry(
        limits.retries,
        redirect=False,
        status_forcelist=BUSY,
        allowed_methods=["POST"],
        backoff_factor=BACKOFF,
        backoff_max=longest,
        retry_after_max=longest,
        raise_on_status=False,
    )
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    headers = {"Content-Type": NPY, "Accept": NPY, "Accept-Encoding": "identity"}

    def ask(images: Tensor) -> np.ndarray:
        body = to_npy(images.contiguous().numpy().astype(np.float32, copy=False))
        most = limits.pixel_bytes * images[:, 0].numel() + HEADER
        try:
            with session.post(
                url, body, headers=headers, timeout=limits.timeout, stream=True, allow_redirects=False
            ) as response:
                if response.status_code != 200:
                    raise UserError(f"{name} answers with the status {response.status_code}{_where(response)}; allowed: 200")
                content = _read(response.raw, most, limits.timeout, name)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise UserError(f"{name} {_reason(error, limits.timeout)}") from None
        try:
            return from_npy(content)
        except ValueError as error:
            raise UserError(f"{name} answers with something else than probabilities: {error}") from None

    return Source(ask, name, "http", shows)


def _read(raw: HTTPResponse, most: int, timeout: float, name: str) -> bytes:
    """The body, as it is sent; given up when it exceeds `most` bytes, or comes in drops for longer than `timeout`."""
    content, end = bytearray(), monotonic() + timeout
    while part := raw.read1(1 << 16, decode_content=False):
        content += part
        if len(content) > most:
            raise UserError(f"{name} answers with more than {most} bytes; allowed for this request: {most}")
        if monotonic() > end:
            raise TimeoutError
    return bytes(content)


def _where(response: requests.Response) -> str:
    return f" (to {response.headers['Location'][:200]!r})" if "Location" in response.headers else ""


def _reason(error: BaseException, timeout: float) -> str:
    """Of what requests, urllib3 and the system wrap in one another, what the innermost says."""
    inner: BaseException | None = error
    while inner is not None:
        error, links = inner, (getattr(inner, "reason", None), *inner.args, inner.__cause__)
        inner = next((link for link in links if isinstance(link, Exception)), None)
    if isinstance(error, (TimeoutError, TooSlow)):
        return f"gives no answer within {timeout:g} s"
    if isinstance(error, ssl.SSLError):
        return f"has no certificate that can be verified: {error.reason}"
    return f"cannot be asked, or breaks off its answer: {getattr(error, 'strerror', None) or type(error).__name__}"
