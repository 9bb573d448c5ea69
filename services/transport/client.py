"""The HTTP client for upstreams: a pool of connections, and one request with its response.

It works alike in threads and under gevent. One read of the socket is one read for the caller: it
never waits to fill a buffer, and it reports silence instead of blocking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from time import monotonic
from types import MappingProxyType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from services import __version__
from services.core.errors import InvalidRequest, ProtocolError, UpstreamTimeout
from services.transport.connect import (
    SILENCE,
    Route,
    Socket,
    connect,
    parse_proxy,
    parse_url,
    reason,
    receive,
    send_all,
)
from services.transport.parser import HttpParserError, ResponseParser
from services.transport.pool import Pool

REPLAY_SECONDS = 1.0
"""How soon a kept connection must break for its request to be sent again: about a round trip."""

READ_SIZE = 65536
JOINED_SIZE = 262144
"""Bytes of a body that is sent together with the headers; a larger one is not copied for that."""

MAX_WITHOUT_BODY = 262144
"""Bytes that may come in a row without any body: headers, chunk framing, trailers."""

PATIENT_TICK = 60.0
"""How long read_all lets one read wait; the time limits cut it short, so it need only be finite."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# A caller's copies of these would contradict how we frame the message.
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "te"})
_BODY_EXPECTED = frozenset({"POST", "PUT", "PATCH"})
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN = re.compile(r"[^\t\x20-\x7e\x80-\xff]")


class Timeouts(msgspec.Struct, frozen=True):
    """Limits in seconds: to connect (name, address, TLS, proxy), from the request sent to the
    answer's headers, of silence within the body, and for the whole answer."""

    connect: float = 10.0
    first_byte: float = 300.0
    idle: float = 120.0
    total: float = 3600.0


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One request. Host, Content-Length, Accept-Encoding: identity and User-Agent are supplied.

    Caller's headers win, except those that frame the message (Content-Length,
    Transfer-Encoding, Connection). Redirects are never followed, cookies never kept.
    """

    method: str
    url: str
    headers: Mapping[str, str] = NO_HEADERS
    body: bytes = b""

    def __repr__(self) -> str:
        """Name method and host only: headers, query and body carry secrets."""
        return f"UpstreamRequest({self.method} {urlsplit(self.url).hostname})"


class Transport:
    """Sends requests and keeps idle connections; shared by all threads or greenlets of a worker.

    `pool_size` bounds the idle connections kept to one upstream. `proxy` (http, https, socks5 or
    socks5h, with optional user:password) serves requests that name none. `ca_file` (PEM) is
    trusted beside the system's authorities. ValueError when the proxy makes no sense.
    """

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        *,
        pool_size: int = 256,
        proxy: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self._proxy = parse_proxy(proxy) if proxy else None
        self._pool = Pool(pool_size)
        self._ca_file = ca_file

    def open(
        self,
        request: UpstreamRequest,
        *,
        timeouts: Timeouts | None = None,
        proxy: str | None = None,
    ) -> UpstreamResponse:
        """Connect and send. `proxy` None means the transport's own, "" means none.

        Raises UpstreamUnreachable or UpstreamTimeout before the request was handed over,
        UpstreamTimeout when the upstream does not take it, InvalidRequest when a header or the
        URL cannot be sent, ValueError for a proxy URL that makes no sense.
        """
        route, path = self._route(request.url, proxy)
        head = build_head(request, route, path)
        limits = timeouts or self.timeouts
        return UpstreamResponse(self._pool, route, limits, request.method, head, request.body)

    def connect(self, url: str, *, proxy: str | None = None) -> Socket:
        """Return a connection for another protocol to the host of an http or https `url`, through
        an HTTP proxy by a tunnel.

        Raises UpstreamUnreachable, UpstreamTimeout, InvalidRequest, ValueError, as `open` does.
        """
        return connect(self._route(url, proxy)[0], self.timeouts.connect, tunnel=True)

    def _route(self, url: str, proxy: str | None) -> tuple[Route, str]:
        via = self._proxy if proxy is None else parse_proxy(proxy) if proxy else None
        return parse_url(url, via, self._ca_file)

    def close(self) -> None:
        """Close idle connections; responses still read go on and close theirs when they end."""
        self._pool.close()


class UpstreamResponse:
    """One request and its response on one connection, for one thread or greenlet.

    Making it connects and sends. `status` is 0 and `headers` (names in lower case, repeated ones
    joined by ", ") empty until `wait` has returned True. Leaving a `with` block closes it.

    A connection that was kept may have been given up by the upstream just when the request went
    out. So the request is sent once more, on a new connection, if a kept one breaks within
    `REPLAY_SECONDS` and before a byte of the answer. One that breaks later broke over this
    request, which may have had its effect: it is not sent twice.
    """

    def __init__(
        self,
        pool: Pool,
        route: Route,
        limits: Timeouts,
        method: str,
        head: bytes,
        body: bytes,
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = NO_HEADERS
        self._pool, self._route, self._limits = pool, route, limits
        self._parser = ResponseParser(method)
        # Kept until a byte comes back, in case it has to be sent again.
        self._unanswered: tuple[bytes, bytes] | None = (head, body)
        self._failure: ProtocolError | None = None
        self._without_body = 0
        self._total_at = monotonic() + limits.total
        self._idle_at = 0.0
        self._send(head, body, pool.take(route))

    def wait(self, tick: float) -> bool:
        """Return True once the status and headers are there, False after `tick` s without them.

        A kept connection that turns out to be closed is replaced here, which may take longer than
        `tick`. Raises UpstreamTimeout (first byte, total), UpstreamUnreachable (the replacement),
        ProtocolError (not HTTP, or closed before answering).
        """
        parser = self._parser
        until = monotonic() + tick
        while not parser.status:
            if not self._receive(tick, self._first_byte_at):
                return False
            tick = max(until - monotonic(), 0.0)
        if not self.status:
            self.status, self.headers = parser.status, parser.headers
            self._check_coding()
        return True

    def read(self, tick: float) -> bytes | None:
        """Return the body bytes that are there; b"" at its end; None after `tick` s of silence.
        Waits for headers first if need be.

        Raises UpstreamTimeout (idle, total) and ProtocolError when the body is cut, malformed or
        compressed; whatever came before the fault is returned first.
        """
        if not self.status and not self.wait(tick):
            return None
        parser = self._parser
        pieces = parser.body
        if not pieces and not parser.complete:
            now = monotonic()
            until = now + tick
            # Silence counts only while somebody reads: a client that is slow to take what it got
            # must not make its upstream look idle.
            self._idle_at = self._idle_at or now + self._limits.idle
            while not pieces and not parser.complete:
                if not self._receive(tick, self._idle_at):
                    return None
                tick = max(until - monotonic(), 0.0)
        self._idle_at = 0.0
        if not pieces and self._failure is not None:
            raise self._failure
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def read_all(self, limit: int) -> bytes:
        """Return the whole body; ProtocolError, and closed, beyond `limit` bytes."""
        pieces: list[bytes] = []
        size = 0
        while (piece := self.read(PATIENT_TICK)) != b"":
            if piece is None:
                continue
            size += len(piece)
            if size > limit:
                self.close()
                raise ProtocolError(f"the upstream's answer is larger than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close it; may be called again. An unfinished one loses its connection at once."""
        if not self._parser.complete:
            self._parser.body.clear()
            self._fail("the upstream's answer was closed before its end")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, head: bytes, body: bytes, kept: Socket | None) -> None:
        """Send the request on a connection of the pool, or a new one."""
        limits = self._limits
        self._socket: Socket | None = kept or connect(self._route, limits.connect)
        self._was_kept = kept is not None
        self._sent_whole = True
        self._sending_since = monotonic()
        seconds = min(limits.first_byte, limits.total)
        try:
            for data in (head + body,) if len(body) < JOINED_SIZE else (head, body):
                send_all(self._socket, data, self._sending_since + seconds)
        except TimeoutError as exc:
            self._drop()
            message = f"the upstream did not take the request within {seconds:g} s"
            raise UpstreamTimeout(message) from exc
        except OSError:
            if self._may_send_again():
                self._send_again()
                return
            # It may have answered before it hung up, with a 413 for instance: wait() looks.
            self._sent_whole = False
        self._first_byte_at = monotonic() + limits.first_byte

    def _may_send_again(self) -> bool:
        soon = monotonic() - self._sending_since < REPLAY_SECONDS
        return self._was_kept and soon and self._unanswered is not None

    def _send_again(self) -> None:
        assert self._socket is not None
        assert self._unanswered is not None
        self._socket.close()
        self._socket = None
        self._send(*self._unanswered, None)

    def _receive(self, tick: float, silent_at: float) -> bool:
        """Wait up to `tick` s for the socket and parse what it has; return False after silence.

        UpstreamTimeout once `silent_at` or the total is past. What else goes wrong is raised by
        the next call, so that the body before it is read first.
        """
        if self._failure is not None:
            raise self._failure
        sock = self._socket
        if sock is None:
            raise ProtocolError("the upstream's answer was closed before its end")
        deadline = silent_at if silent_at < self._total_at else self._total_at
        left = deadline - monotonic()
        if left <= 0:
            raise self._timed_out()
        try:
            data = receive(sock, READ_SIZE, tick if tick < left else left)
        except SILENCE as exc:
            if monotonic() >= deadline:
                raise self._timed_out() from exc
            return False
        except OSError as exc:
            self._broken(reason(exc))
            return True
        if data:
            self._parse(data)
        else:
            self._broken("closed")
        return True

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        self._unanswered = None
        reusable = self._sent_whole
        try:
            parser.feed(data)
        except HttpParserError as exc:
            reusable = False
            if not parser.complete:
                self._fail("the upstream does not speak http/1.1 correctly", exc)
        if parser.complete:
            if reusable and parser.reusable and self._socket is not None:
                self._pool.give(self._route, self._socket)
                self._socket = None
            self._drop()
        elif parser.body:
            self._without_body = 0
        else:
            self._without_body += len(data)
            if self._without_body > MAX_WITHOUT_BODY:
                self._fail("the upstream sends headers or framing without end")

    def _broken(self, why: str) -> None:
        """The connection broke, or was closed by the upstream."""
        if self._may_send_again():
            self._send_again()
        elif self._unanswered is not None:
            self._fail(f"the upstream broke the connection without an answer: {why}")
        elif why != "closed":
            self._fail(f"the connection to the upstream broke within its answer: {why}")
        elif self._parser.end():
            self._drop()
        else:
            self._fail("the upstream closed the connection within its answer")

    def _check_coding(self) -> None:
        coding = self.headers.get("content-encoding", "").strip().lower()
        parser = self._parser
        if coding not in ("", "identity") and (parser.body or not parser.complete):
            parser.body.clear()
            self._fail("the upstream compressed its answer with a coding that nobody asked for")

    def _timed_out(self) -> UpstreamTimeout:
        limits = self._limits
        if monotonic() >= self._total_at:
            return UpstreamTimeout(f"the upstream's answer took longer than {limits.total:g} s")
        if not self._parser.status:
            return UpstreamTimeout(f"no answer from the upstream within {limits.first_byte:g} s")
        return UpstreamTimeout(f"the upstream went silent for {limits.idle:g} s within its answer")

    def _fail(self, message: str, cause: Exception | None = None) -> None:
        """Have this raised when there is no more body to return; the first failure counts."""
        self._drop()
        if self._failure is None:
            self._failure = ProtocolError(message)
            self._failure.__cause__ = cause

    def _drop(self) -> None:
        """Close what is left of the connection: nothing more is read."""
        self._parser.close()
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


def build_head(request: UpstreamRequest, route: Route, path: str) -> bytes:
    """Return request line and headers; the absolute URL and credentials for a forwarding proxy.

    InvalidRequest, naming the header but not its value, when one could not be sent as it is:
    CR, LF or another control character, or anything outside Latin-1.
    """
    if not _TOKEN.fullmatch(request.method):
        raise InvalidRequest("request method is not a word")
    lines = {
        "host": f"Host: {route.host_header}",
        "user-agent": f"User-Agent: causeway/{__version__}",
        "accept-encoding": "Accept-Encoding: identity",
    }
    for name, value in request.headers.items():
        key = _header_key(name)
        if _FORBIDDEN.search(value):
            raise InvalidRequest(f"request header {key} holds a character that cannot be sent")
        if key not in _OURS:
            lines[key] = f"{name}: {value.strip()}"
    if request.body or request.method in _BODY_EXPECTED:
        lines["content-length"] = f"Content-Length: {len(request.body)}"
    target = path
    if route.proxy is not None and route.is_forwarded:
        target = f"http://{route.host_header}{path}"
        if route.proxy.authorization:
            lines["proxy-authorization"] = f"Proxy-Authorization: {route.proxy.authorization}"
    first = f"{request.method} {target} HTTP/1.1"
    return "\r\n".join((first, *lines.values(), "", "")).encode("latin-1")


@lru_cache(maxsize=256)
def _header_key(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise InvalidRequest("a request header has an impossible name")
    return name.lower()
