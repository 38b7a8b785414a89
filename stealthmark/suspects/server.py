"""A reference server of both protocols in docs/http.md: a predictor behind HTTP, for an owner's own trials and for tests."""

import asyncio
import socket
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from stealthmark import __version__
from stealthmark.errors import UserError
from stealthmark.suspects.inference import BINARY, ENVELOPE, JSON_LENGTH, NUMBER, read_request, write_tensor
from stealthmark.suspects.npy import HEADER, NPY, from_npy, to_npy
from stealthmark.suspects.querier import Predictor

#: Images that one request may hold, and bytes of them.
MOST, LARGEST = 256, 2**28
#: Bytes of all requests together that are read, or wait for their turn.
HELD = 4 * LARGEST
#: Connections at a time, and seconds that each has to send a request, and again to take the answer and send the next one.
CONNECTIONS, SECONDS = 64, 120
#: What the protocol calls the model, its input and its output.
MODEL, INPUT, OUTPUT = "model", "images", "foreground"
V2 = f"/v2/models/{MODEL}"


class Server:
    """A server that is bound to a port, and answers while it runs. Leaving it as a context manager closes the port."""

    def __init__(self, app: Starlette, bound: socket.socket):
        self._socket = bound
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                timeout_keep_alive=SECONDS,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=1 << 15,
            )
        )

    @property
    def address(self) -> str:
        """What `connect` is given to reach the server."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{host}:{port}/"

    def run(self) -> None:
        """Answer requests until this is interrupted, or `stop` is called in another thread."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        self._server.should_exit = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()


def server(
    predictor: Predictor, shape: tuple[int, int, int], host: str = "127.0.0.1", port: int = 8000, most: int = MOST
) -> Server:
    """A server, bound but not yet running, that answers by what `predictor` shows of images of `shape` (C, H, W).

    A request holds at most `most` images, and `LARGEST` bytes of them. Port 0 is any free one. Predictions are made one at a
    time, whatever the number of connections.
    What is not a batch of such images is answered 400, what is larger 413, what has another type 415; what the predictor
    raises 500; what is too much at a time 503. Each of these is one sentence.
    Raises UserError when it cannot listen there.
    """
    try:
        bound = socket.create_server((host, port), backlog=128)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    return Server(_Service(predictor, shape, most).app(), bound)


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class _Service:
    """What is answered to which request."""

    def __init__(self, predictor: Predictor, shape: tuple[int, int, int], most: int):
        self._predictor, self._shape = predictor, shape
        self._values = int(np.prod(shape))
        self._most = max(1, min(most, LARGEST // (4 * self._values)))
        self._held = 0
        self._one_at_a_time = ThreadPoolExecutor(1)

    def app(self) -> Starlette:
        about = {"name": "stealthmark", "version": __version__, "extensions": [BINARY]}
        sides = self._shape[1:]
        model = {
            "name": MODEL,
            "platform": "stealthmark",
            "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *self._shape]}],
            "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, *sides]}],
        }
        said: dict[str, dict] = {
            "/v2": about,
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            V2: model,
            f"{V2}/ready": {"name": MODEL, "ready": True},
        }
        return Starlette(
            routes=[
                Route("/", self._npy, methods=["POST"]),
                Route(f"{V2}/infer", self._infer, methods=["POST"]),
                *(Route(path, _saying(content)) for path, content in said.items()),
            ],
            exception_handlers={HTTPException: self._no_such, _Refusal: _refused, ClientDisconnect: _gone},
        )

    async def _npy(self, request: Request) -> Response:
        kind = request.headers.get("Content-Type", "text/plain").partition(";")[0].strip().lower()
        if kind != NPY:
            raise _Refusal(415, f"Content-Type is {kind!r}; allowed: {NPY}")

        def answer(body: bytes) -> Response:
            with _refusing("the body is not what it should be"):
                images = from_npy(body)
            return Response(to_npy(self._predicted(images)), media_type=NPY)

        return await self._answered(request, 4 * self._values * self._most + HEADER, answer)

    async def _infer(self, request: Request) -> Response:
        json_length = request.headers.get(JSON_LENGTH)

        def answer(body: bytes) -> Response:
            with _refusing("the body is not what it should be"):
                message, images = read_request(body, json_length, self._values * self._most)
            names = [message.inputs[0].name, *(output.name for output in message.outputs or [])]
            if names not in ([INPUT], [INPUT, OUTPUT]):
                raise _Refusal(400, f"the tensors are {', '.join(map(repr, names))[:200]}; allowed: {INPUT!r}, {OUTPUT!r}")
            more = {"model_name": MODEL} | ({"id": message.id} if message.id else {})
            content, headers = write_tensor("outputs", OUTPUT, self._predicted(images), message.in_binary(), **more)
            return Response(content, headers={key.replace("_", "-"): value for key, value in headers.items()})

        size = (4 if json_length else NUMBER) * self._values * self._most
        return await self._answered(request, min(size, LARGEST) + ENVELOPE, answer)

    async def _answered(self, request: Request, largest: int, answer: Callable[[bytes], Response]) -> Response:
        """The answer to a request's body, made when it is its turn. Raises _Refusal."""
        length = request.headers.get("Content-Length")
        if length is None:
            raise _Refusal(411, "Content-Length is ''; allowed: the number of bytes")
        size = int(length)  # h11 lets nothing but digits through
        if size > largest:
            raise _Refusal(413, f"the body has {size} bytes; allowed: {largest}, which is {self._most} images")
        if self._held + size > HELD:
            raise _Refusal(503, f"the server holds {self._held} bytes of other requests; allowed together: {HELD}")
        self._held += size
        try:
            body = await request.body()
            return await asyncio.get_running_loop().run_in_executor(self._one_at_a_time, answer, body)
        finally:
            self._held -= size

    def _predicted(self, images: np.ndarray) -> np.ndarray:
        """The predictor's answer to images float32 (B, C, H, W) in [0, 1]. Raises _Refusal."""
        if images.dtype != np.float32 or images.shape[1:] != self._shape or not 1 <= len(images) <= self._most:
            allowed = f"float32 (B, {', '.join(map(str, self._shape))}), B from 1 to {self._most}"
            raise _Refusal(400, f"the images are {images.dtype} {images.shape}; allowed: {allowed}")
        if not (images.min() >= 0 and images.max() <= 1):  # so that NaN is refused too
            raise _Refusal(400, f"the images have values from {images.min():g} to {images.max():g}; allowed: 0 to 1")
        try:
            answer = self._predictor(torch.from_numpy(np.require(images, np.float32, ["C", "W"])))
            return answer.numpy()
        except UserError as error:
            raise _Refusal(500, str(error)) from None
        except Exception as error:
            traceback.print_exc()  # for whoever runs the server, before anybody else hears of it
            raise _Refusal(500, f"the model failed: {type(error).__name__}") from None

    async def _no_such(self, request: Request, error: Exception) -> Response:
        """A path, or a method, that is not served."""
        assert isinstance(error, HTTPException)
        paths = f"allowed: '/' and, in the Open Inference Protocol, '{V2}'"
        sides = ", ".join(map(str, self._shape))
        sentences = {
            404: f"there is nothing at this path; {paths}",
            405: f"send images by POST, as one .npy array of float32 (B, {sides}), or ask in the Open Inference Protocol",
        }
        sentence = sentences.get(error.status_code, error.detail)
        return _sentence(request, error.status_code, sentence, dict(error.headers or {}))


class _Connection(H11Protocol):
    """A connection that is one of `CONNECTIONS`, and has `SECONDS` to send a request, and again to take its answer."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()
        if len(self.connections) > CONNECTIONS:
            sentence = f"there are {CONNECTIONS} connections already\n"
            head = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            transport.write(f"{head}Content-Length: {len(sentence)}\r\n\r\n{sentence}".encode())
            transport.close()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle and not self.cycle.more_body and not self.cycle.response_complete:
            self._disarm()  # how long the answer takes is the model's doing

    def on_response_complete(self) -> None:
        self._arm()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(SECONDS, self.transport.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def _refusing(words: str) -> Any:
    try:
        yield
    except ValueError as error:
        raise _Refusal(400, f"{words}: {error}") from None


def _saying(content: dict) -> Callable[[Request], Awaitable[Response]]:
    async def say(request: Request) -> Response:
        return JSONResponse(content)

    return say


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refusal)
    busy = {"Retry-After": "1"} if error.status == 503 else {}
    return _sentence(request, error.status, str(error), busy)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody is there to read


def _sentence(request: Request, status: int, sentence: str, headers: dict[str, str]) -> Response:
    """One sentence, in the form that the protocol of the path has for it."""
    if request.url.path.startswith("/v2"):
        return JSONResponse({"error": sentence}, status, headers)
    return PlainTextResponse(f"{sentence}\n", status, headers)
