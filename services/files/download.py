"""One GET with requests, over a connection that leads to a checked address already."""

from __future__ import annotations

import contextlib
import io
import mmap
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.client import HTTPResponse
from typing import Any, cast
from urllib.parse import unquote

import msgspec
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from services import __version__
from services.core.errors import InvalidRequest, Unavailable
from services.files.addresses import Target
from services.files.data_urls import Fetched, base_name
from services.files.sniff import Data, sniff
from services.transport.connect import Proxy, Socket, left, shut

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_READ = 65_536
_IN_MEMORY = 24 * 1024 * 1024
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,63}/[a-z0-9!#$&^_.+-]{1,127}")
_ENCODED_NAME = re.compile(r";\s*filename\*=utf-8'[^']*'([^;\s]+)", re.IGNORECASE)
_PLAIN_NAME = re.compile(r""";\s*filename=(?:"([^"]*)"|([^;\s"]+))""", re.IGNORECASE)


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one fetch, redirects included. Times are in seconds, sizes in bytes.

    `seconds` covers everything: name lookup, connecting, TLS, every redirect and the body;
    `idle_seconds` is how long a server may be silent.
    """

    seconds: float = 10.0
    connect_seconds: float = 4.0
    idle_seconds: float = 60.0
    max_bytes: int = 20_000_000
    header_bytes: int = 65_536
    redirects: int = 3


def get(
    target: Target,
    wire: Socket,
    limits: Limits,
    deadline: float,
    *,
    via: Proxy | None = None,
    stop: threading.Event | None = None,
) -> Fetched | str:
    """Ask for `target` on `wire`: the whole answer, or where it redirects to.

    With `via` the wire ends at that proxy, which reads the request and passes it on. Raise
    InvalidRequest for an answer that cannot be used and after a `stop`, Unavailable for lack of
    room, and TimeoutError at `deadline`, which is `time.monotonic()`.
    """
    inlet = _Inlet(wire, limits.header_bytes)
    try:
        with _cut_off(wire, deadline), _ask(target, wire, inlet, via, limits) as it:
            # twice the body leaves room for chunk framing and trailers, which nothing else bounds
            inlet.allowance = 2 * limits.max_bytes + limits.header_bytes
            if it.status_code in _REDIRECTS and it.headers.get("Location"):
                return str(it.headers["Location"])
            _check(it, limits)
            data = _body(it, limits, stop)
    except _TooMuch as exc:
        raise failed("its server sent too much, in headers or around the file") from exc
    except (requests.RequestException, HTTPError) as exc:
        left(deadline)
        if isinstance(exc, requests.Timeout | ReadTimeoutError):
            raise TimeoutError("its server fell silent") from exc
        if isinstance(exc, HTTPError):  # from the body: requests has not wrapped it
            raise failed("the answer was cut short, or is no proper http") from exc
        raise failed("its server does not speak proper http, or broke off") from exc
    said = it.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    declared = said if _TYPE.fullmatch(said) else None
    name = _name(it.headers.get("Content-Disposition", ""), target.path)
    return Fetched(data, sniff(data, declared), declared, name)


def failed(reason: str) -> InvalidRequest:
    """An error for a URL whose server did not deliver."""
    return InvalidRequest(f"fetching this url failed: {reason}", code="url_fetch_failed")


class _TooMuch(Exception):
    """The server sent more than it was allowed."""


class _Inlet(io.RawIOBase):
    """What a server sends, as a file for http.client, which bounds neither interim answers nor
    trailers. `allowance` is how many more bytes may be read; beyond it a read raises _TooMuch.
    """

    def __init__(self, wire: Socket, allowance: int) -> None:
        super().__init__()
        self.allowance = allowance
        self._raw: Any = cast(socket.socket, wire).makefile("rb", buffering=0)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _READ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.allowance <= 0:
            raise _TooMuch
        count = int(self._raw.readinto(memoryview(buffer)[: self.allowance]))
        self.allowance -= count
        return count

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Response(HTTPResponse):
    def begin(self) -> None:
        """Forget what is broken in the headers: urllib3 would log it, and servers write it."""
        super().begin()
        self.headers.defects.clear()
        self.headers.set_payload("")


class _Connection(HTTPConnection):
    """urllib3's connection, made beforehand; the request line has `path` byte for byte."""

    def __init__(self, wire: Socket, inlet: _Inlet, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.sock = cast(socket.socket, wire)
        self.response_class = lambda sock, *args, **more: _Response(inlet, *args, **more)  # type: ignore[assignment, arg-type]  # it only calls makefile
        self._path = path

    def connect(self) -> None:
        raise ConnectionError("there is one connection, and no other")

    def putrequest(self, method: str, url: str, *args: Any, **options: Any) -> None:
        super().putrequest(method, self._path, *args, **options)


class _Adapter(HTTPAdapter):
    """requests' adapter on one connection, which was verified when it was made. Without a session
    there are no cookies, no redirects and nothing from the environment.
    """

    def __init__(self, wire: Socket, inlet: _Inlet, path: str) -> None:
        super().__init__(max_retries=0)
        self._pool = HTTPConnectionPool("checked")
        self._pool.ConnectionCls = cast(Any, partial(_Connection, wire, inlet, path))

    def get_connection_with_tls_context(self, *_: Any, **options: Any) -> HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *_: Any, **options: Any) -> None:
        """Nothing: see above."""


def _ask(
    target: Target, wire: Socket, inlet: _Inlet, via: Proxy | None, limits: Limits
) -> requests.Response:
    request = requests.PreparedRequest()
    request.method, request.url = "GET", "http://checked/"  # the target's would show in logs
    request.headers = CaseInsensitiveDict(
        {
            "Host": target.authority,
            "User-Agent": f"Causeway/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
    )
    if via is not None and via.authorization:
        request.headers["Proxy-Authorization"] = via.authorization
    adapter = _Adapter(wire, inlet, target.url if via else target.path)
    return adapter.send(request, stream=True, timeout=limits.idle_seconds)


@contextlib.contextmanager
def _cut_off(wire: Socket, deadline: float) -> Iterator[None]:
    """Shut `wire` at the deadline: a socket's timeout begins anew with every byte that drips in.

    Raise TimeoutError if it came to that.
    """
    watchdog = threading.Timer(left(deadline), shut, (wire,))
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
        left(deadline)
    finally:
        watchdog.cancel()
        watchdog.join()  # the number of a closed socket may be another's by then


def _check(answer: requests.Response, limits: Limits) -> None:
    headers = answer.headers
    if answer.status_code != 200:
        raise failed(f"its server answered with status {answer.status_code}")
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise failed("its server compressed the answer, although asked not to")
    coding, length = headers.get("Transfer-Encoding"), headers.get("Content-Length")
    if coding is not None:
        if coding.strip().lower() != "chunked":
            raise failed("its server used an unknown transfer encoding")
    elif length is not None:
        if not re.fullmatch(r"[0-9]{1,18}", length.strip(), re.ASCII):
            raise failed("its server declared a malformed length")
        if int(length) > limits.max_bytes:
            raise failed(f"the file is larger than {limits.max_bytes} bytes")


def _body(answer: requests.Response, limits: Limits, stop: threading.Event | None) -> Data:
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as body:
        while piece := answer.raw.read1(_READ, decode_content=False):
            if stop is not None and stop.is_set():
                raise failed("nobody waits for it any more")
            if body.tell() + len(piece) > limits.max_bytes:
                raise failed(f"the file is larger than {limits.max_bytes} bytes")
            try:
                body.write(piece)
            except OSError as exc:  # the disk is full, which is nobody else's fault
                text = "this service has no room for a download at the moment"
                raise Unavailable(text) from exc
        if body.tell() > _IN_MEMORY:
            body.flush()
            return mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ)
        body.seek(0)
        return body.read()


def _name(disposition: str, path: str) -> str:
    """The name in a `Content-Disposition` header, read as Latin-1, else that in `path`."""
    if encoded := _ENCODED_NAME.search(disposition):
        return base_name(unquote(encoded[1]))
    if plain := _PLAIN_NAME.search(disposition):
        raw = (plain[1] or plain[2] or "").encode("latin-1", "replace")
        return base_name(raw.decode("utf-8", "replace"))
    return base_name(unquote(path.partition("?")[0]))
