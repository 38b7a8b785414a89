"""Requests to a service that may want to hold up, to flood or to mislead whoever asks it."""

import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import monotonic, sleep
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, ProxyManager, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as TooSlow

from stealthmark.errors import UserError
from stealthmark.suspects.deadline import within
from stealthmark.suspects.querier import Limits

#: Statuses that mean: ask again later.
BUSY = (429, 502, 503, 504)
#: Seconds before the first request that is sent again; twice as many before each one after it.
BACKOFF = 0.5


@dataclass(frozen=True)
class Answer:
    """What a service sent: status, headers, and the body of an answer with status 200 (of any other, nothing is read)."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


class Exchange:
    """Requests to one service, one at a time. `name` begins every sentence about it.

    A request has `limits.timeout` seconds, from looking up the host's name to the last byte of the answer. One that fails to
    be answered in that time, breaks off, or is answered with one of `BUSY` is sent up to `limits.retries` times again, after
    what its Retry-After says (`limits.timeout` at most) or an ever longer pause; all together end within
    `limits.timeout * (limits.retries + 1)` seconds. Redirects are not followed. Proxies, certificates and .netrc are taken
    from the environment, as requests does.
    """

    def __init__(self, name: str, limits: Limits):
        self._name, self._limits = name, limits
        self._renew()

    def __call__(self, method: str, url: str, most: int, body: bytes | None = None, **headers: str) -> Answer:
        """The answer, status 200, its body at most `most` bytes. Header names are given with _ for -.

        Raises UserError for a service that cannot be reached or gives no answer in time, another status and a larger body.
        """
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        request = requests.Request(method, url, {"Accept-Encoding": "identity", **named}, data=body)
        timeout, retries = self._limits.timeout, self._limits.retries
        end = monotonic() + timeout * (retries + 1)
        for attempt in range(retries + 1):
            pause = BACKOFF * 2**attempt
            try:
                answer = within(min(timeout, end - monotonic()), self._work(request, most), self._line.cut)
            except BaseException as error:
                self._cut()
                if not isinstance(error, (requests.RequestException, HTTPError, OSError, ValueError)):
                    raise
                reason = _innermost(error)
                failure = UserError(f"{self._name} {_sentence(reason, timeout)}")
                if isinstance(reason, (ssl.SSLCertVerificationError, ValueError)):
                    raise failure from None  # it would be the same the next time
            else:
                if answer.status == 200:
                    return answer
                self._cut()  # and with it the body, of whatever length
                where = f" (to {answer.headers['Location'][:200]!r})" if "Location" in answer.headers else ""
                failure = UserError(f"{self._name} answers with the status {answer.status}{where}; allowed: 200")
                if answer.status not in BUSY:
                    raise failure
                pause = _retry_after(answer.headers, pause)
            pause = min(pause, timeout)
            if attempt == retries or monotonic() + pause >= end:
                raise failure from None
            sleep(pause)
        raise AssertionError("the last request ends the loop")

    def _work(self, request: requests.Request, most: int) -> Callable[[], Answer]:
        """One request, to be run in a thread: with the line and the session as they are now, whatever comes after."""
        session, timeout = self._session, self._limits.timeout

        def work() -> Answer:
            prepared = session.prepare_request(request)
            assert prepared.url is not None
            settings: Any = session.merge_environment_settings(prepared.url, {}, stream=True, verify=None, cert=None)
            # An adapter's `send`, and not the session's, which reads the body of a redirect to its end.
            with session.get_adapter(prepared.url).send(prepared, timeout=timeout, **settings) as response:
                content = self._read(response.raw, most) if response.status_code == 200 else b""
                return Answer(response.status_code, response.headers, content)

        return work

    def _read(self, raw: HTTPResponse, most: int) -> bytes:
        """The body, as it is sent; given up when it exceeds `most` bytes."""
        content = bytearray()
        while part := raw.read1(1 << 16, decode_content=False):
            content += part
            if len(content) > most:
                raise UserError(f"{self._name} answers with more than {most} bytes; allowed for this request: {most}")
        return bytes(content)

    def _cut(self) -> None:
        """End whatever is under way. The next request goes over a line of its own."""
        self._line.cut()
        self._renew()

    def _renew(self) -> None:
        self._line = _Line()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self._line))


class _Line:
    """The connection that a request goes over, so that another thread can cut it, be it in a handshake or in a header."""

    def __init__(self) -> None:
        self._lock, self._is_cut = Lock(), False
        self._socket: socket.socket | None = None

    def opened(self, sock: socket.socket) -> None:
        """Take note of a new connection. Raises TimeoutError, and closes it, where the line was cut meanwhile."""
        with self._lock:
            if self._is_cut:
                sock.close()
                raise TimeoutError
            if self._socket is not None:
                self._socket.close()
            self._socket = sock.dup()  # TLS takes the socket itself away, and wraps it

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with suppress(OSError):  # the other end may have hung up
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
                self._socket = None


class _Adapter(HTTPAdapter):
    """Connects over a `_Line`."""

    def __init__(self, line: _Line):
        self._pools = _pools(line)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if type(manager) is ProxyManager:  # one for SOCKS has connections of its own
            manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(line: _Line) -> dict[str, type]:
    """urllib3's pools of connections, by scheme, that tell the line of every connection that they open."""

    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            line.opened(sock)
            return sock

    class SecureConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            line.opened(sock)
            return sock

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": Pool, "https": SecurePool}


def _retry_after(headers: Mapping[str, str], otherwise: float) -> float:
    """Seconds to wait, as a busy service says; `otherwise` where it says nothing, or nothing that can be read."""
    try:
        return Retry().parse_retry_after(headers["Retry-After"])
    except (KeyError, HTTPError, ValueError, OverflowError):
        return otherwise


def _innermost(error: BaseException) -> BaseException:
    """Of what requests, urllib3 and the system wrap in one another, the innermost."""
    inner: BaseException | None = error
    while inner is not None:
        error, links = inner, (getattr(inner, "reason", None), *inner.args, inner.__cause__)
        inner = next((link for link in links if isinstance(link, Exception)), None)
    return error


def _sentence(error: BaseException, timeout: float) -> str:
    if isinstance(error, (TimeoutError, TooSlow)):
        return f"gives no answer within {timeout:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has no certificate that can be verified: {error.reason}"
    return f"cannot be asked, or breaks off its answer: {getattr(error, 'strerror', None) or type(error).__name__}"
