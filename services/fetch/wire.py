"""Byte streams that keep one deadline over every read and write, TLS handshake included."""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, TypeVar

from services.fetch.addresses import Address
from services.fetch.deadline import Deadline

T = TypeVar("T")
Dial = Callable[[Address, int, float], socket.socket]
"""Connect to an address and port within so many seconds. Raise OSError."""

_READ = 65_536


class TooMuch(Exception):
    """The other side sent more bytes than it was allowed."""


class Wire(Protocol):
    def recv_into(self, buffer: memoryview) -> int: ...

    def sendall(self, data: bytes) -> None: ...


def dial(address: Address, port: int, seconds: float) -> socket.socket:
    """Connect a TCP socket. Raise OSError. Takes no name, so no second lookup can happen."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


class PlainWire:
    """A socket whose every call gets the time that is left: dripping bytes cannot stretch it."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def recv_into(self, buffer: memoryview) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)


class TlsWire:
    """TLS over another wire, through memory.

    An ssl socket under gevent restarts its timer at every read of a handshake.
    """

    def __init__(self, wire: Wire, context: ssl.SSLContext, host: str) -> None:
        self._wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._buffer = memoryview(bytearray(_READ))
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._drive(self._tls.do_handshake)

    def recv_into(self, buffer: memoryview) -> int:
        try:
            return self._drive(lambda: int(self._tls.read(len(buffer), buffer)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0  # many servers end without a close notice; lengths are checked one level up

    def sendall(self, data: bytes) -> None:
        self._drive(lambda: self._tls.write(data))

    def _drive(self, step: Callable[[], T]) -> T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._wire.sendall(self._outgoing.read())

    def _fill(self) -> None:
        count = self._wire.recv_into(self._buffer)
        if count:
            self._incoming.write(self._buffer[:count])
        else:
            self._incoming.write_eof()


class Inlet(io.RawIOBase):
    """The reading side of a wire as a file, for `http.client.HTTPResponse`.

    `allowance` is how many more bytes may be read; beyond it a read raises TooMuch.
    """

    def __init__(self, wire: Wire, allowance: int) -> None:
        super().__init__()
        self.allowance = allowance
        self._wire = wire

    def makefile(self, mode: str) -> io.BufferedReader:
        """What HTTPResponse asks of its socket."""
        return io.BufferedReader(self, _READ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # always a memoryview here
        if self.allowance <= 0:
            raise TooMuch
        count = self._wire.recv_into(memoryview(buffer)[: self.allowance])
        self.allowance -= count
        return count
