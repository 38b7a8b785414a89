"""A reference server of the protocol in docs/http.md: a predictor behind HTTP, for an owner's own trials and for tests."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

from stealthmark.errors import UserError
from stealthmark.suspects.http import HEADER, NPY, from_npy, to_npy
from stealthmark.suspects.querier import Predictor

#: Images that one request may hold.
MOST = 256


def server(
    predictor: Predictor, shape: tuple[int, int, int], host: str = "127.0.0.1", port: int = 8000, most: int = MOST
) -> ThreadingHTTPServer:
    """A server, bound but not yet serving (`serve_forever`), that answers `POST /` by what `predictor` shows of images of
    `shape` (C, H, W), at most `most` a request. Port 0 is any free one; `address_of` tells which.

    What is not a batch of such images is answered 400, what is larger 413, what has another type 415; what the predictor
    raises 500. Each of these is one sentence. Predictions are made one at a time, whatever the number of connections.
    Raises UserError when it cannot listen there.
    """
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # seconds that a client may be silent
        error_content_type = "text/plain; charset=utf-8"
        error_message_format = "%(explain)s\n"

        def do_POST(self) -> None:
            try:
                images = self._images()
                with one_at_a_time:
                    answer = predictor(torch.from_numpy(images))
            except _Refusal as refusal:
                self.send_error(refusal.status, explain=str(refusal))
            except TimeoutError:
                self.close_connection = True
            except UserError as error:
                self.send_error(500, explain=str(error))
            except Exception as error:
                self.send_error(500, explain=f"the model failed: {type(error).__name__}")
                raise
            else:
                body = to_npy(answer.numpy())
                self.send_response(200)
                self.send_header("Content-Type", NPY)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_error(405, explain=f"send images by POST, as one .npy array of float32 (B, {', '.join(map(str, shape))})")

        def _images(self) -> np.ndarray:
            """The request's images, float32 (B, C, H, W) in [0, 1]. Raises _Refusal."""
            if self.path.partition("?")[0] != "/":
                raise _Refusal(404, "the path is not '/'; allowed: '/'")
            kind = self.headers.get_content_type()
            if kind != NPY:
                raise _Refusal(415, f"Content-Type is {kind!r}; allowed: {NPY}")
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise _Refusal(411, f"Content-Length is {length[:100]!r}; allowed: the number of bytes")
            largest = most * 4 * int(np.prod(shape)) + HEADER
            if int(length) > largest:
                raise _Refusal(413, f"the body has {length} bytes; allowed: {largest}, which is {most} images")
            try:
                images = from_npy(self.rfile.read(int(length)))
            except ValueError as error:
                raise _Refusal(400, f"the body is not what it should be: {error}") from None
            if images.dtype != np.float32 or images.shape[1:] != shape or not 1 <= len(images) <= most:
                allowed = f"float32 (B, {', '.join(map(str, shape))}), B from 1 to {most}"
                raise _Refusal(400, f"the images are {images.dtype} {images.shape}; allowed: {allowed}")
            if not (images.min() >= 0 and images.max() <= 1):  # so that NaN is refused too
                raise _Refusal(400, f"the images have values from {images.min():g} to {images.max():g}; allowed: 0 to 1")
            return np.require(images, np.float32, ["C", "W"])

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None


def address_of(server: ThreadingHTTPServer) -> str:
    """What `connect` is given to reach the server."""
    return "http://{}:{}/".format(*server.server_address)


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status
