"""HTTP: the client against services that misbehave on purpose, the reference server against requests that do.

The Open Inference Protocol has its own tests in test_inference.py.
"""

import contextlib
import http.client
import io
import os
import pickle
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stealthmark import architecture, cli
from stealthmark.access import at_access
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.suspects import exchange
from stealthmark.suspects import server as server_module
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.connect import connect
from stealthmark.suspects.deadline import WORKER, within
from stealthmark.suspects.npy import HEADER, NPY, from_npy, to_npy
from stealthmark.suspects.querier import Limits
from stealthmark.suspects.server import Server, server

CPU = torch.device("cpu")
SHAPE = (3, 4, 4)
ONCE = Limits(retries=0)


@pytest.fixture(autouse=True)
def slept(monkeypatch) -> list[float]:
    """How long the client would have slept; it does not. Nor does it ask a proxy for a server of this machine."""
    slept = []
    monkeypatch.setattr(exchange, "sleep", slept.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return slept


def images(n: int = 5, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def half(batch: Tensor) -> Tensor:
    return batch[:, 0] / 2


@contextlib.contextmanager
def running(serving: Server):
    """The server's address, while it runs."""
    with serving:
        thread = threading.Thread(target=serving.run)
        thread.start()
        try:
            yield serving.address
        finally:
            serving.stop()
            thread.join()


class Service:
    """A service that answers request after request by the functions in `script`, the last one for ever."""

    def __init__(self, *script):
        self.script, self.requests, self.over = [*script], [], threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.path, dict(self.headers), body))
                script = service.script
                (script.pop(0) if len(script) > 1 else script[0])(self, body, service)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        self._thread = threading.Thread(target=self.serving.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = "http://{}:{}/".format(*self.serving.server_address)
        return self

    def __exit__(self, *error):
        self.over.set()
        self.serving.shutdown()
        self._thread.join()
        self.serving.server_close()

    def ask(self, limits: Limits = ONCE, shows: str = "probabilities", n: int = 5) -> Tensor:
        return connect(self.url, SHAPE, CPU, limits, shows)(images(n))

    def refuses(self, limits: Limits = ONCE, shows: str = "probabilities") -> str:
        """The sentence in which asking ends."""
        with pytest.raises(UserError) as error:
            self.ask(limits, shows)
        assert str(error.value).startswith(self.url) and "\n" not in str(error.value)
        return str(error.value)


def reply(status: int, content: bytes = b"", length: int | None = None, **headers: str):
    """Answer so, whatever is asked."""

    def answer(handler, body, service):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.send_header("Connection", "close")
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have hung up, as it should
            handler.wfile.write(content)

    return answer


def array(change=lambda answer: answer):
    """Answer with half of the first channel, changed."""
    return lambda handler, body, service: reply(200, to_npy(change(from_npy(body)[:, 0] / 2)))(handler, body, service)


def silent(handler, body, service):
    service.over.wait()


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_what_is_sent_and_what_comes_back():
    with Service(array()) as service:
        suspect = connect(service.url, SHAPE, CPU, Limits(batch=2))
        torch.testing.assert_close(suspect(images()), half(images()), rtol=0, atol=0)
        suspect(images().flip(0))
        assert suspect.sent == 5
    paths, headers, bodies = zip(*service.requests, strict=True)
    assert paths == ("/",) * 3 and all(sent["Content-Type"] == NPY for sent in headers)
    sent = [np.load(io.BytesIO(body), allow_pickle=False) for body in bodies]
    assert [part.dtype.str for part in sent] == ["<f4"] * 3
    assert np.array_equal(np.concatenate(sent), images().numpy())


@pytest.mark.parametrize(
    "change, shows, expected",
    [
        (lambda a: a.astype(np.float64)[:, None], "probabilities", half(images())),
        (lambda a: np.stack([1 - a, a], 1), "probabilities", half(images())),
        (lambda a: np.asfortranarray(a), "probabilities", half(images())),
        (lambda a: a.astype(">f4"), "logits", half(images()).sigmoid()),
        (lambda a: a > 0.25, "labels", (half(images()) > 0.25).float()),
    ],
)
def test_the_forms_an_answer_may_have(change, shows, expected):
    with Service(array(change)) as service:
        torch.testing.assert_close(service.ask(shows=shows), expected)


def test_a_budget_counts_images_and_sends_nothing_beyond():
    with Service(array()) as service:
        suspect = connect(service.url, SHAPE, CPU, Limits(batch=2, budget=6))
        suspect(images(5))
        with pytest.raises(UserError, match="budget allows 6"):
            suspect(images(2, seed=1))
        assert len(service.requests) == 3
        suspect(torch.cat([images(5), images(1, seed=1)]))
        assert suspect.sent == 6


# --- services that are busy, absent or slow ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", exchange.BUSY)
def test_a_busy_service_is_asked_again(status):
    with Service(reply(status, Retry_After="0"), reply(status, Retry_After="0"), array()) as service:
        suspect = connect(service.url, SHAPE, CPU, Limits(retries=2, budget=5))
        torch.testing.assert_close(suspect(images()), half(images()), rtol=0, atol=0)
        assert len(service.requests) == 3 and suspect.sent == 5, "a request that is repeated counts once"


def test_a_service_that_hangs_up_is_asked_again():
    with Service(lambda handler, body, service: None, array()) as service:
        torch.testing.assert_close(service.ask(Limits(retries=1)), half(images()), rtol=0, atol=0)


def test_a_service_that_stays_busy_is_given_up():
    with Service(reply(503, Retry_After="0")) as service:
        assert "answers with the status 503; allowed: 200" in service.refuses(Limits(retries=2))
        assert len(service.requests) == 3


def test_how_long_to_wait_is_for_the_service_to_say_up_to_the_timeout(slept):
    with Service(reply(429, Retry_After="3"), reply(429, Retry_After="86400"), reply(502), reply(502), array()) as service:
        service.ask(Limits(retries=4, timeout=70))
    assert slept[:2] == [3, 70] and len(slept) == 4 and 0 < slept[2] < slept[3] <= 70


@pytest.mark.parametrize("status", [201, 204, 400, 401, 404, 413, 500, 501])
def test_any_other_status_ends_it_at_once(status):
    with Service(reply(status), array()) as service:
        assert f"answers with the status {status}; allowed: 200" in service.refuses(Limits(retries=3))
        assert len(service.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_images_go_nowhere_but_to_the_address_that_was_given(status):
    with Service(array()) as other, Service(reply(status, Location=other.url)) as service:
        assert f"status {status} (to '{other.url}')" in service.refuses()
        assert other.requests == [] and len(service.requests) == 1


def test_nobody_listens():
    with Service(array()) as service:
        url = service.url
    with pytest.raises(UserError, match=f"{url} cannot be asked.*Connection refused"):
        connect(url, SHAPE, CPU, ONCE)(images())


@pytest.mark.parametrize("retries", [0, 1])
def test_a_service_that_stays_silent(retries):
    with Service(silent) as service:
        assert "gives no answer within 0.05 s" in service.refuses(Limits(timeout=0.05, retries=retries))


def test_a_service_that_falls_silent_within_its_answer():
    def starts(handler, body, service):
        reply(200, b"\x93NUMPY", length=1000)(handler, body, service)
        silent(handler, body, service)

    with Service(starts) as service:
        assert "gives no answer within 0.05 s" in service.refuses(Limits(timeout=0.05, retries=0))


def test_all_requests_together_end_in_time(monkeypatch):
    """A service that is busy decides for how long, up to the time that it could have been silent for."""
    now, given = [0.0], []
    monkeypatch.setattr(exchange, "monotonic", lambda: now[0])
    monkeypatch.setattr(exchange, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def noting(seconds, work, cut):
        given.append(seconds)
        return within(60, work, cut)

    monkeypatch.setattr(exchange, "within", noting)

    def slow(handler, body, service):
        now[0] += 19
        reply(503, Retry_After="86400")(handler, body, service)

    with Service(slow) as service:
        assert "the status 503" in service.refuses(Limits(timeout=20, retries=3))
    assert given == [20, 20, 2], "80 seconds in all"


@pytest.mark.parametrize("header", ["soon", "-1", "9" * 5000, "Wed, 99 Foo 2099", "\u00e9"])
def test_a_time_that_cannot_be_read_is_not_waited_for(header, slept):
    with Service(reply(503, Retry_After=header), array()) as service:
        service.ask(Limits(retries=1))
    assert slept == [exchange.BACKOFF]


def drips(start: bytes, drop: bytes, pause: float = 0.1):
    """Send `start`, then drop after drop, each in good time. It ends by itself, should the client not."""

    def answer(handler, body, service):
        service.written, end = 0, monotonic() + 60
        with contextlib.suppress(OSError):  # the client hangs up
            handler.wfile.write(start)
            while monotonic() < end and not service.over.wait(pause):
                handler.wfile.write(drop)
                service.written += len(drop)

    return answer


def line(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *headers, "", ""]).encode()


ENDLESS = line(200, f"Content-Length: {1 << 50}")
HELD_UP = {
    "a status line a letter at a time": (b"", b"H"),
    "a header a moment": (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
    "100 Continue for ever": (b"", line(100)),
    "100 Continue for ever, with headers": (b"", line(100, "X: 1", "Y: 2")),
    "an answer in drops": (ENDLESS, b"x"),
    "an answer in chunks": (line(200, "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    "the length of a chunk": (line(200, "Transfer-Encoding: chunked"), b"0"),
    "trailers": (line(200, "Transfer-Encoding: chunked") + b"0\r\n", b"X: 1\r\n"),
}


@pytest.mark.parametrize("start, drop", HELD_UP.values(), ids=HELD_UP)
def test_a_service_that_holds_up_its_answer_is_given_up_in_time(start, drop):
    """Each drop comes in time, all of them together do not."""
    with Service(drips(start, drop)) as service:
        started = monotonic()
        assert "gives no answer within 0.5 s" in service.refuses(Limits(timeout=0.5, retries=0, pixel_bytes=10**9))
        assert 0.5 <= monotonic() - started < 30
        assert_nobody_works()


def test_100_continue_at_full_speed_is_given_up_in_time():
    with Service(drips(b"", line(100) * 1000, 0)) as service:
        started = monotonic()
        assert "gives no answer within 0.5 s" in service.refuses(Limits(timeout=0.5, retries=0))
        assert monotonic() - started < 30
        assert_nobody_works()


@pytest.mark.parametrize("status, header", [(503, "Retry-After: 0"), (429, "X: 1"), (404, "X: 1"), (302, "Location: /x")])
@pytest.mark.parametrize("framing", [f"Content-Length: {1 << 50}", "Transfer-Encoding: chunked"])
def test_the_body_of_another_status_is_not_read(status, header, framing):
    block = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    with Service(drips(line(status, header, framing), block, 0)) as service:
        started = monotonic()
        assert f"the status {status}" in service.refuses(Limits(timeout=20, retries=1))
        assert monotonic() - started < 20, "it was waited for"
        assert service.written < 1 << 27, "what is not read stays in the network's buffers"
        assert len(service.requests) == (2 if status in exchange.BUSY else 1)
        assert_nobody_works()


def test_a_service_that_does_not_listen_to_the_end():
    """It is connected to, and takes nothing: the request fills the network's buffers."""
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        url = "http://{}:{}/".format(*silent_server.getsockname())
        with pytest.raises(UserError, match="gives no answer within 0.5 s"):
            connect(url, SHAPE, CPU, Limits(timeout=0.5, retries=0, batch=200_000))(torch.zeros(200_000, *SHAPE).add(0.5))
    assert_nobody_works()


def test_a_handshake_that_never_ends():
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        url = "https://{}:{}/".format(*silent_server.getsockname())
        with pytest.raises(UserError, match="gives no answer within 0.5 s"):
            connect(url, SHAPE, CPU, Limits(timeout=0.5, retries=0))(images())
    assert_nobody_works()


def test_a_name_that_is_looked_up_for_ever(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: over.wait(60) and [])
    with pytest.raises(UserError, match="gives no answer within 0.1 s"):
        connect("http://suspect.example/", SHAPE, CPU, Limits(timeout=0.1, retries=0))(images())
    over.set()
    assert_nobody_works()


def test_images_are_not_sent_after_the_time_is_over(monkeypatch):
    """A name that is found too late: the connection is made, and closed."""
    over, lookup = threading.Event(), socket.getaddrinfo

    def late(*args, **options):
        over.wait(60)
        return lookup(*args, **options)

    with Service(array()) as service:
        monkeypatch.setattr("socket.getaddrinfo", late)
        assert "gives no answer within 0.1 s" in service.refuses(Limits(timeout=0.1, retries=0))
        over.set()
        assert_nobody_works()
        assert service.requests == []
        service.ask()


def test_after_a_request_that_was_given_up_the_next_one_is_answered():
    with Service(drips(ENDLESS, b"x"), array()) as service:
        suspect = connect(service.url, SHAPE, CPU, Limits(timeout=0.5, retries=0, pixel_bytes=10**9))
        with pytest.raises(UserError, match="gives no answer"):
            suspect(images())
        patient = connect(service.url, SHAPE, CPU)
        torch.testing.assert_close(patient(images()), half(images()), rtol=0, atol=0)


def assert_nobody_works():
    """Every thread that waited for a service has ended, or does as soon as it is its turn."""
    for thread in [thread for thread in threading.enumerate() if thread.name == WORKER]:
        thread.join(60)
        assert not thread.is_alive(), "it waits still"


def test_work_within_a_deadline_returns_raises_or_is_cut():
    over = threading.Event()
    assert within(60, lambda: 1, over.set) == 1
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0, over.set)
    assert not over.is_set()
    with pytest.raises(TimeoutError):
        within(0.01, over.wait, over.set)
    assert over.is_set()
    assert_nobody_works()


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl here to make a certificate")
def test_a_certificate_that_cannot_be_verified(tmp_path):
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "key",
            "-out",
            "cert",
            "-subj",
            "/CN=127.0.0.1",
        ],
        cwd=tmp_path,
        capture_output=True,
    )
    assert made.returncode == 0
    with Service(array()) as service:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
        service.serving.socket = context.wrap_socket(service.serving.socket, server_side=True)
        service.url = service.url.replace("http:", "https:")
        assert "has no certificate that can be verified" in service.refuses()
        assert service.requests == []


def test_secrets_in_an_address_are_used_and_never_printed():
    with Service(reply(403)) as service:
        url = service.url.replace("://", "://user:secret@") + "x?token=hidden"
        with pytest.raises(UserError) as error:
            connect(url, SHAPE, CPU, ONCE)(images())
        assert str(error.value).startswith(f"{service.url}x answers with the status 403")
        assert "secret" not in str(error.value) and "hidden" not in str(error.value)
        (path, headers, _), *_ = service.requests
        assert path == "/x?token=hidden" and headers["Authorization"].startswith("Basic ")
    with pytest.raises(UserError) as error:
        connect(url, SHAPE, CPU, ONCE)(images())
    assert "secret" not in str(error.value) and "hidden" not in str(error.value)


# --- answers that are none --------------------------------------------------------------------------------------------


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_is_never_loaded(tmp_path):
    trap = Trap(tmp_path / "sprung")
    wrapped, zipped = io.BytesIO(), io.BytesIO()
    np.save(wrapped, np.array([trap], object), allow_pickle=True)
    np.savez(zipped, answer=np.array([trap], object))
    torch.save(trap, torch_saved := io.BytesIO())
    for body in (pickle.dumps(trap), wrapped.getvalue(), zipped.getvalue(), torch_saved.getvalue()):
        with Service(reply(200, body)) as service:
            assert "answers with something else than probabilities" in service.refuses()
        assert not (tmp_path / "sprung").exists()
    np.load(io.BytesIO(wrapped.getvalue()), allow_pickle=True)
    assert (tmp_path / "sprung").exists(), "the trap does not work"


ANSWER = to_npy(half(images()).numpy())


def lying(shape: str, descr: str = "<f4", rest: bytes = bytes(320)) -> bytes:
    """An .npy file with that in its header."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + rest


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", ["not an .npy array"]),
        (b"<html>no</html>", ["not an .npy array"]),
        (ANSWER[:-1], ["319 bytes", "(5, 4, 4) of float32"]),
        (ANSWER[:60], ["not an .npy array"]),
        (ANSWER + b"\0", ["321 bytes"]),
        (lying("(5, 4, 4000000000000)"), ["320 bytes"]),
        (lying("(-5, -4, 4)"), ["(-5, -4, 4)"]),
        (lying("(5, 4, 4)", "|O"), ["array of object"]),
        (lying("(5, 4, 4)", "<U1"), ["not of bools or numbers"]),
        (lying("(5, 4, 4)", "<M8[s]"), ["not of bools or numbers"]),
        (lying("5"), ["not an .npy array"]),
        (lying("(5, 4, 'x')"), ["not an .npy array"]),
        (lying("(" * 3000), ["not an .npy array"]),
        (to_npy(np.zeros((5, 4, 4), complex)), ["complex128"]),
        (to_npy(np.zeros((4, 4, 4))), ["the shape (4, 4, 4)"]),
        (to_npy(np.zeros((5, 4, 5))), ["the shape (5, 4, 5)"]),
        (to_npy(np.full((5, 4, 4), np.nan)), ["not finite"]),
        (to_npy(np.full((5, 4, 4), 7.0)), ["from 7 to 7"]),
        (to_npy(np.zeros((5, 4, 4), np.uint8)), ["uint8"]),
    ],
)
def test_an_answer_of_another_kind(body, words):
    with Service(reply(200, body)) as service:
        sentence = service.refuses()
        assert all(word in sentence for word in words), sentence


@given(st.data())
def test_no_header_makes_anything_but_a_sentence(data):
    """An .npy file with some bytes changed is an array of the bytes it has, or refused."""
    body = bytearray(ANSWER[:128] + bytes(8))
    for place in data.draw(st.lists(st.integers(0, 127), max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert from_npy(bytes(body)).nbytes <= 8


def test_an_answer_shorter_than_it_says():
    with Service(reply(200, ANSWER[:-100], length=len(ANSWER))) as service:
        assert "breaks off its answer: IncompleteRead" in service.refuses()


def test_a_compressed_answer_is_not_unpacked():
    import gzip

    with Service(reply(200, gzip.compress(ANSWER), Content_Encoding="gzip")) as service:
        assert "not an .npy array" in service.refuses()


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_that_never_ends_is_read_no_further_than_one_could_be(chunked):
    """5 images of 4 x 4 px, 16 bytes a pixel, and the header."""
    written, block = [], bytes(1 << 16)

    def endless(handler, body, service):
        handler.send_response(200)
        handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(1 << 50))))
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            while not service.over.is_set():
                handler.wfile.write(b"10000\r\n" + block + b"\r\n" if chunked else block)
                written.append(len(block))

    with Service(endless) as service:
        most = 5 * 16 * 16 + HEADER
        assert f"more than {most} bytes; allowed for this request: {most}" in service.refuses()
    assert sum(written) < 1 << 27, "what is not read stays in the network's buffers"


def test_how_large_an_answer_may_be_is_a_limit():
    body = to_npy(half(images()).numpy()) + bytes(HEADER)
    with Service(reply(200, body)) as service:
        assert "more than" in service.refuses(Limits(retries=0, pixel_bytes=1))
        assert "its header says" in service.refuses(Limits(retries=0, pixel_bytes=16))


# --- the reference server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level, expected", [("probabilities", half), ("label", lambda batch: (half(batch) > 0.5).float())])
def test_the_server_shows_what_its_access_level_allows(level, expected):
    with running(server(at_access(half, level), SHAPE, port=0)) as url:
        assert url.startswith("http://127.0.0.1:")
        answers = connect(url, SHAPE, CPU, Limits(batch=2), "labels" if level == "label" else "probabilities")(images())
        torch.testing.assert_close(answers, expected(images()), rtol=0, atol=0)


def post(url: str, body: bytes, path: str = "/", method: str = "POST", **headers: str) -> tuple[int, str]:
    """Status and body of one request; headers as given and no others."""
    connection = http.client.HTTPConnection(*url.removeprefix("http://").rstrip("/").split(":"), timeout=60)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("latin-1")


def posted(url: str, body: bytes) -> tuple[int, str]:
    return post(url, body, Content_Type=NPY, Content_Length=str(len(body)))


GOOD = to_npy(images(2).numpy())


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", ["not an .npy array"]),
        (b"{}", ["not an .npy array"]),
        (GOOD[:-4], ["380 bytes", "(2, 3, 4, 4) of float32"]),
        (pickle.dumps([1]), ["not an .npy array"]),
        (lying("(1,)", "|O"), ["array of object"]),
        (to_npy(images(2).double().numpy()), ["float64 (2, 3, 4, 4); allowed: float32 (B, 3, 4, 4), B from 1 to 8"]),
        (to_npy(images(2)[:, :1].numpy()), ["float32 (2, 1, 4, 4)"]),
        (to_npy(images(2)[0].numpy()), ["float32 (3, 4, 4)"]),
        (to_npy(images(0).numpy()), ["(0, 3, 4, 4)"]),
        (to_npy(images(9).numpy()), ["(9, 3, 4, 4)"]),
        (to_npy(images(2).numpy() * 255), ["values from", "allowed: 0 to 1"]),
        (to_npy(images(2).numpy() - 1), ["values from -"]),
        (to_npy(np.full((1, *SHAPE), np.nan, np.float32)), ["values from nan to nan"]),
    ],
)
def test_the_server_answers_a_malformed_body_with_one_sentence(body, words):
    with running(server(half, SHAPE, port=0, most=8)) as url:
        status, sentence = posted(url, body)
        assert status == 400 and sentence.count("\n") == 1 and all(word in sentence for word in words), sentence
        assert posted(url, GOOD)[0] == 200, "it does not answer any more"


@pytest.mark.parametrize(
    "how, status, words",
    [
        ({"Content_Type": NPY}, 411, "Content-Length is ''"),
        ({"Content_Type": NPY, "Transfer_Encoding": "chunked"}, 411, "allowed: the number of bytes"),
        ({"Content_Type": NPY, "Content_Length": str(8 * 192 + HEADER + 1)}, 413, f"allowed: {8 * 192 + HEADER}"),
        ({"Content_Type": "text/plain", "Content_Length": "1"}, 415, "'text/plain'; allowed: application/x-npy"),
        ({"Content_Type": NPY, "Content_Length": "0", "path": "/admin"}, 404, "allowed: '/'"),
        ({"method": "GET"}, 405, "float32 (B, 3, 4, 4)"),
    ],
)
def test_the_server_refuses_before_it_reads(how, status, words):
    with running(server(half, SHAPE, port=0, most=8)) as url:
        answered, sentence = post(url, b"", **how)
        assert answered == status and words in sentence and sentence.count("\n") == 1


@pytest.mark.parametrize("length", ["-1", "1e3", "0" * 20 + "9" * 20, "one"])
def test_a_length_that_is_no_number_is_no_request(length):
    with running(server(half, SHAPE, port=0)) as url:
        assert post(url, b"", Content_Type=NPY, Content_Length=length) == (400, "Invalid HTTP request received.")


def test_how_many_images_a_request_may_hold_depends_on_their_size(monkeypatch):
    monkeypatch.setattr(server_module, "LARGEST", 3 * 192)
    with running(server(half, SHAPE, port=0)) as url:
        assert posted(url, to_npy(images(3).numpy()))[0] == 200
        assert "B from 1 to 3" in posted(url, to_npy(images(4).numpy()))[1]
        assert posted(url, bytes(3 * 192 + HEADER + 1))[0] == 413


def test_what_the_model_cannot_answer_is_the_servers_fault(capfd):
    def fails(batch: Tensor) -> Tensor:
        raise (UserError if batch.shape[0] == 1 else RuntimeError)("the inside\nof the model")

    with running(server(fails, SHAPE, port=0)) as url:
        assert posted(url, to_npy(images(1).numpy())) == (500, "the inside\nof the model\n")
        assert posted(url, GOOD) == (500, "the model failed: RuntimeError\n"), "it tells of its inside"
        assert "RuntimeError: the inside" in capfd.readouterr().err, "whoever runs it sees why"


def test_predictions_are_made_one_at_a_time():
    """The first is held up until all requests have been sent, and lets the other threads run."""
    inside, most, sent, all_sent = [], [], [], threading.Event()

    def predict(batch: Tensor) -> Tensor:
        inside.append(1)
        assert all_sent.wait(60)
        for _ in range(10):
            os.sched_yield()
        most.append(len(inside))
        inside.pop()
        return half(batch)

    with running(server(predict, SHAPE, port=0)) as url:

        def ask() -> None:
            connection = http.client.HTTPConnection(*url.removeprefix("http://").rstrip("/").split(":"), timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", "/", GOOD, {"Content-Type": NPY})
                sent.append(1)
                if len(sent) == 8:
                    all_sent.set()
                assert connection.getresponse().status == 200

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 8


def raw(url: str, content: bytes) -> socket.socket:
    """A connection to the server on which `content` was sent."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(content)
    return connection


def test_connections_are_counted_and_take_no_threads(monkeypatch):
    """Places are free again once those who have one hang up."""
    monkeypatch.setattr(server_module, "CONNECTIONS", 20)
    with running(server(half, SHAPE, port=0)) as url, contextlib.ExitStack() as stack:
        assert posted(url, GOOD)[0] == 200
        threads = threading.active_count()
        half_open = [stack.enter_context(raw(url, b"POST / HTTP/1.1\r\nContent-Length: 9")) for _ in range(30)]
        for _ in range(3):
            status, sentence = until(lambda: posted(url, GOOD), lambda answer: answer[0] == 503)
            assert sentence == "there are 20 connections already\n"
        assert threading.active_count() <= threads
        for connection in half_open:
            connection.close()
        assert until(lambda: posted(url, GOOD), lambda answer: answer[0] == 200)[1]


def until(do, holds):
    """What `do` gives once it is what it should be; a server notices in its own time who came and who went."""
    end = monotonic() + 60
    while True:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):  # refused before the request was sent
            if holds(outcome := do()):
                return outcome
        assert monotonic() < end


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"POST / HTTP/1.1\r\nHost: x\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\nContent-Length: 400\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\nx",  # refused, and goes on sending
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",  # answered, and says nothing more
    ],
)
def test_a_client_has_its_time_and_no_more(monkeypatch, content):
    monkeypatch.setattr(server_module, "SECONDS", 0.2)
    with running(server(half, SHAPE, port=0)) as url, raw(url, content) as connection, contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass


def test_a_slow_model_does_not_use_up_the_clients_time():
    """While the model works, no timer runs; before and after it one does."""
    running_timers: list[int] = []
    serving = server(lambda batch: (running_timers.append(count()), half(batch))[1], SHAPE, port=0)

    def count() -> int:
        connections = [*serving._server.server_state.connections]
        return sum(not connection._timer.cancelled() for connection in connections)

    with running(serving) as url, raw(url, b"") as connection:
        assert until(count, lambda timers: timers == 1) == 1
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        connection.sendall(head.encode() + GOOD)
        assert connection.recv(100).startswith(b"HTTP/1.1 200") and running_timers == [0]
        assert until(count, lambda timers: timers == 1) == 1


def test_what_waits_is_bounded(monkeypatch):
    """A request that says that it is large counts as much, whether it is sent or not."""
    monkeypatch.setattr(server_module, "HELD", len(GOOD) + 1000)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nContent-Length: 1001\r\n\r\n".encode()
    with running(server(half, SHAPE, port=0)) as url:
        with raw(url, head):
            status, sentence = until(lambda: posted(url, GOOD), lambda answer: answer[0] == 503)
            assert sentence == f"the server holds 1001 bytes of other requests; allowed together: {len(GOOD) + 1000}\n"
        assert until(lambda: posted(url, GOOD), lambda answer: answer[0] == 200)


def test_where_it_cannot_listen():
    with server(half, SHAPE, port=0) as first:
        port = int(first.address.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match="cannot listen on 127.0.0.1:"):
            server(half, SHAPE, port=port)
    for host, port in (("127.0.0.1", 70000), ("no such host", 0)):
        with pytest.raises(UserError, match=f"cannot listen on {host}:{port}: "):
            server(half, SHAPE, host, port)


def test_a_served_network_is_asked_once_for_an_image():
    predictor = from_model(torch.nn.Conv2d(3, 1, 1), CPU)
    with running(server(predictor, SHAPE, port=0)) as url:
        for _ in range(2):
            connect(url, SHAPE, CPU)(images(3))
    assert predictor.sent == 3


def test_the_serving_command_ends_quietly(tmp_path, monkeypatch, capsys):
    """Ctrl-C, once it answers."""
    options = make("architecture", {"name": "unet", "weights": "random"}).options()
    network = make("architecture", options).build(3, pretrained=False, size=32)
    architecture.save(network, architecture.card_for(options, 3, 32), tmp_path)
    argv, asked = ["serve", "--model", str(tmp_path), "--port", "0", "--device", "cpu"], []
    run = Server.run

    def interrupted(serving: Server) -> None:
        def interrupt() -> None:
            asked.append(post(serving.address, b"", path="/v2", method="GET")[0])
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        run(serving)

    monkeypatch.setattr(Server, "run", interrupted)
    assert cli.main([*argv, "--access", "label"]) == 0 and asked == [200]
    out, err = capsys.readouterr()
    assert re.fullmatch(r".* at http://127\.0\.0\.1:\d+/, access label; Ctrl-C ends it\n", out) and err == ""
    assert cli.main([*argv, "--access", "gradients"]) == 1
    assert "unknown access level 'gradients'; allowed: logits" in capsys.readouterr().err
