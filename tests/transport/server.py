"""A raw socket server that follows a script: what goes over the wire is in the test."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

PATIENCE = 10.0


class Received(NamedTuple):
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Peer:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, log: list[Received]) -> None:
        self.sock = sock
        self._log = log
        self._buffer = b""

    def request(self) -> Received | None:
        """The next request, body included; None when the client has hung up."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        size = int(headers.get("content-length", "0"))
        while len(self._buffer) < size:
            if not self._more():
                return None
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        method, target, _ = first.split(" ")
        received = Received(method, target, headers, body)
        self._log.append(received)
        return received

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer before the end of file."""
        while len(self._buffer) < size and self._more():
            pass
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def gone(self, seconds: float = 2.0) -> bool:
        """Whether the client closes within `seconds`."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)


Script = Callable[[Peer], None]


class ScriptedServer:
    """Runs `script` in a thread for each connection; what it asserts fails the test at exit."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self._script = script
        self._tls = tls
        self._faults: list[AssertionError] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.scheme = "https" if tls else "http"

    @property
    def origin(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.origin}/path"

    def refuse(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.refuse()
        for sock in list(self._peers):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a server script hangs"
        if self._faults and kind is None:
            raise self._faults[0]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._peers.append(sock)
            self._script(Peer(sock, self.requests))
        except AssertionError as fault:
            self._faults.append(fault)
        except OSError:
            pass  # the client hung up, as many a test means it to
        finally:
            sock.close()


def answer(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    """A whole response with Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def always(*pieces: bytes) -> Script:
    """Give every request of a connection the same answer."""

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            peer.send(*pieces)

    return script


def once(*pieces: bytes) -> Script:
    """Answer one request, then close the connection."""

    def script(peer: Peer) -> None:
        if peer.request() is not None:
            peer.send(*pieces)

    return script
