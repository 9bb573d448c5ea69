"""The answer side of `http_server`: full control of the bytes, and an eye on the peer."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from .http_request import Reader, Request

Framing = Literal["chunked", "close", "length"]
# Linux tells a peer's close even while unread bytes are waiting; elsewhere we peek
_CLOSED: int = getattr(select, "POLLRDHUP", 0)


class PeerGone(ConnectionError):
    """The connection is closed, by the peer or by `cut()`; a handler may let this pass."""


@dataclass
class Exchange:
    """One request and what became of its answer.

    `aborted_at` is when the peer was seen to leave before the answer's end; `error` is a handler's
    traceback.
    """

    request: Request
    number: int = 0
    status: int = 0
    streaming: bool = False
    bytes_sent: int = 0
    first_byte_at: float | None = None
    finished_at: float | None = None
    aborted_at: float | None = None
    error: str = ""

    @property
    def active(self) -> bool:
        return self.finished_at is None


class Reply:
    """The answer to one request. Writes raise PeerGone once the connection is closed."""

    def __init__(self, sock: socket.socket, reader: Reader, exchange: Exchange) -> None:
        self.exchange = exchange
        self.started = False
        self.ended = False
        self.keep_alive = exchange.request.keep_alive
        self.closed = False
        self._sock = sock
        self._reader = reader
        self._framing: Framing = "length"
        self._missing = 0
        self._bodiless = exchange.request.method == "HEAD"

    def send(
        self,
        status: int,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        content_type: str = "text/plain; charset=utf-8",
    ) -> None:
        """A whole answer with its Content-Length."""
        data = body.encode() if isinstance(body, str) else body
        fields = {"Content-Type": content_type, **(headers or {})}
        head = self._head(status, fields, "length", len(data))
        self._transmit(head if self._bodiless else head + data)
        self.ended = True

    def json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole JSON answer, UTF-8 unescaped."""
        self.send(status, json.dumps(value, ensure_ascii=False), headers, "application/json")

    def start(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        framing: Framing = "chunked",
        length: int | None = None,
    ) -> None:
        """Send the head now. `length` frames by Content-Length, "close" by the connection's end."""
        self.exchange.streaming = True
        kind: Framing = "length" if length is not None else framing
        self._transmit(self._head(status, headers or {}, kind, length or 0))
        self._missing = length or 0

    def write(self, data: bytes | str) -> None:
        """A piece of the body, sent at once: one HTTP chunk, or plain bytes where not chunked."""
        piece = data.encode() if isinstance(data, str) else data
        if not piece or self._bodiless:
            return
        self._missing -= len(piece)
        if self._framing == "chunked":
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._transmit(piece)

    def raw(self, data: bytes) -> None:
        """Bytes straight onto the socket, without any framing."""
        self._transmit(data)

    def end(self) -> None:
        """End the body as its framing demands; one shorter than its length ends the connection."""
        if self.ended or self.closed:
            return
        self.ended = True
        if self._framing == "chunked" and not self._bodiless:
            self._transmit(b"0\r\n\r\n")
        elif self._framing == "close" or self._missing > 0:
            self.keep_alive = False

    def upgrade(self, headers: Mapping[str, str]) -> None:
        """Answer 101; from here on `raw()` and `receive()` speak the new protocol."""
        self.exchange.streaming = True
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._begin(101)
        self.keep_alive, self.ended = False, True
        self._transmit(f"HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n".encode("latin-1"))

    def receive(self, timeout: float = 30.0) -> bytes:
        """Bytes from the peer after `upgrade()`.

        Raises PeerGone at its close, TimeoutError when none come for `timeout` seconds.
        """
        if self.closed:
            raise PeerGone("connection closed")
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not self._reader.pending and not poll.poll(timeout * 1000):
            raise TimeoutError(f"no bytes for {timeout} s")
        try:
            return self._reader.some()
        except (EOFError, OSError) as exc:
            raise self._gone() from exc

    def cut(self) -> None:
        """Close the connection now, wherever the answer stands (FIN)."""
        if not self.closed:
            self.closed = True
            shutdown(self._sock)
            self._sock.close()

    def reset(self) -> None:
        """Close the connection with a RST; bytes not yet sent are lost."""
        if not self.closed:
            self.closed = True
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._sock.close()

    def hang(self, seconds: float | None) -> bool:
        """Wait in silence (None: for ever). True when it is over, False once the peer has left."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.closed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._peer_closes_within(left):
                self._gone()
                return False
            if left is not None and left <= 0.001:
                return True
            if not _CLOSED:
                time.sleep(0.01)  # unread bytes make the peek return at once
        return False

    def peer_gone(self) -> bool:
        """Whether the peer has closed its side by now."""
        return not self.hang(0)

    def _peer_closes_within(self, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self._sock, _CLOSED or select.POLLIN)
        events = poll.poll(None if seconds is None else seconds * 1000)
        if not events:
            return False
        if _CLOSED or events[0][1] & (select.POLLHUP | select.POLLERR):
            return True
        return not self._sock.recv(1, socket.MSG_PEEK)

    def _head(self, status: int, fields: Mapping[str, str], framing: Framing, size: int) -> bytes:
        self._begin(status)
        self._framing = framing
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        elif framing == "length":
            lines.append(f"Content-Length: {size}")
        if framing == "close" or not self.keep_alive:
            self.keep_alive = False
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _begin(self, status: int) -> None:
        if self.started:
            raise RuntimeError("answer started twice")
        self.started = True
        self.exchange.status = status

    def _transmit(self, data: bytes) -> None:
        if self.closed:
            raise PeerGone("connection closed")
        try:
            self._sock.sendall(data)
        except OSError as exc:
            raise self._gone() from exc
        if self.exchange.first_byte_at is None:
            self.exchange.first_byte_at = time.monotonic()
        self.exchange.bytes_sent += len(data)

    def _gone(self) -> PeerGone:
        if self.exchange.aborted_at is None and not self.closed:
            self.exchange.aborted_at = time.monotonic()
        self.cut()
        return PeerGone("peer closed the connection")


def shutdown(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _phrase(status: int) -> str:
    with contextlib.suppress(ValueError):
        return HTTPStatus(status).phrase
    return "Status"
