"""Reads HTTP/1.1 requests off a socket, for `http_server`."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

MAX_LINE = 65536


class BadRequest(ValueError):
    """The bytes are no HTTP request; the connection is of no further use."""


class Headers:
    """Header fields in order of arrival; names compare without regard to case."""

    def __init__(self, pairs: list[tuple[str, str]] | None = None) -> None:
        self._pairs = list(pairs or [])

    def get(self, name: str, default: str = "") -> str:
        """The first value of this name, else `default`."""
        values = self.all(name)
        return values[0] if values else default

    def all(self, name: str) -> list[str]:
        wanted = name.lower()
        return [value for key, value in self._pairs if key.lower() == wanted]

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        if not values:
            raise KeyError(name)
        return values[0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.all(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `path` is decoded, without query; `at` in monotonic seconds."""

    method: str
    target: str
    headers: Headers
    body: bytes = b""
    version: str = "HTTP/1.1"
    at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    def param(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def json(self) -> Any:
        """The body decoded; raises ValueError where it is no JSON."""
        return json.loads(self.body)

    @property
    def bearer(self) -> str:
        """The token of `Authorization: Bearer …`, or an empty string."""
        scheme, _, token = self.headers.get("authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def keep_alive(self) -> bool:
        connection = self.headers.get("connection").lower()
        return "close" not in connection and self.version == "HTTP/1.1"


class Reader:
    """Buffered reads from a socket. Every read raises EOFError where the peer has closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""

    @property
    def pending(self) -> bool:
        """Whether bytes are already read and waiting."""
        return bool(self._buffer)

    def some(self) -> bytes:
        """Whatever is there, at least one byte."""
        if not self._buffer:
            self._fill()
        data, self._buffer = self._buffer, b""
        return data

    def line(self) -> bytes:
        """One line without its end."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise BadRequest("line too long")
            self._fill()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r")

    def exactly(self, size: int) -> bytes:
        pieces = [self._buffer[:size]]
        self._buffer = self._buffer[size:]
        missing = size - len(pieces[0])
        while missing:
            data = self._receive(min(missing, 1 << 20))
            pieces.append(data)
            missing -= len(data)
        return b"".join(pieces)

    def _fill(self) -> None:
        self._buffer += self._receive(65536)

    def _receive(self, size: int) -> bytes:
        data = self._sock.recv(size)
        if not data:
            raise EOFError
        return data


def read_request(reader: Reader, sock: socket.socket) -> Request:
    """The next request with its whole body. Raises EOFError at a close, BadRequest on nonsense."""
    line = reader.line() or reader.line()
    parts = line.decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadRequest(f"no request line: {line[:80]!r}")
    headers = _read_headers(reader)
    if "100-continue" in headers.get("expect").lower():
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    return Request(parts[0], parts[1], headers, _read_body(reader, headers), parts[2])


def _read_headers(reader: Reader) -> Headers:
    pairs: list[tuple[str, str]] = []
    while line := reader.line():
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise BadRequest(f"no header line: {line[:80]!r}")
        pairs.append((name, value.strip()))
    return Headers(pairs)


def _read_body(reader: Reader, headers: Headers) -> bytes:
    try:
        if "chunked" in headers.get("transfer-encoding").lower():
            return b"".join(_read_chunks(reader))
        return reader.exactly(int(headers.get("content-length", "0")))
    except ValueError as exc:
        raise BadRequest(f"no body length: {exc}") from exc


def _read_chunks(reader: Reader) -> Iterator[bytes]:
    while size := int(reader.line().partition(b";")[0], 16):
        yield reader.exactly(size)
        reader.exactly(2)
    while reader.line():  # trailers
        pass
