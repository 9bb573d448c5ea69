"""The connection one exchange speaks on: where it comes from and where it goes."""

from __future__ import annotations

import ssl
from time import monotonic

from services.transport.base import Timeouts
from services.transport.clock import send_timeout
from services.transport.dial import dial
from services.transport.pool import Pool
from services.transport.route import Route
from services.transport.tls import Tls, Wire

READ_SIZE = 65536
SEND_SIZE = 262144

_SILENCE = (TimeoutError, BlockingIOError, ssl.SSLWantReadError)


class Line:
    """The connection an exchange speaks on, and how to come by another."""

    def __init__(self, route: Route, pool: Pool, tls: Tls, limits: Timeouts) -> None:
        self.route = route
        self.limits = limits
        self.reused = False
        self._pool = pool
        self._tls = tls
        self._wire: Wire | None = None
        self._patience: float | None = None

    def connect(self, *, fresh: bool = False) -> None:
        wire = None if fresh else self._pool.take(self.route)
        self.reused = wire is not None
        self._wire = wire or dial(self.route, self._tls, self.limits)
        self._patience = None

    def send(self, head: bytes, body: bytes) -> None:
        """Send all; OSError when the connection breaks, UpstreamTimeout when it does not drain."""
        assert self._wire is not None
        seconds = min(self.limits.first_byte, self.limits.total)
        deadline = monotonic() + seconds
        payload = head + body if len(body) <= SEND_SIZE else head
        rest = b"" if payload is not head else body
        self._patience = None
        try:
            self._wire.settimeout(seconds)
            # gevent's sendall asks for the size of the socket's buffer first; send mostly suffices
            sent = self._wire.send(payload)
            if sent < len(payload):
                self._wire.sendall(payload[sent:])
            for start in range(0, len(rest), SEND_SIZE):
                self._wire.settimeout(max(deadline - monotonic(), 0.001))
                self._wire.sendall(rest[start : start + SEND_SIZE])
        except TimeoutError as exc:
            self.drop()
            raise send_timeout(self.limits) from exc

    def receive(self, seconds: float) -> bytes | None:
        """Return what is there, b"" at the end of file, None after silence; OSError if broken."""
        wire = self._wire
        if wire is None:
            raise ConnectionError(0, "the exchange is closed")
        if seconds != self._patience:
            wire.settimeout(seconds)
            self._patience = seconds
        try:
            return wire.recv(READ_SIZE)
        except _SILENCE:
            return None

    def keep(self) -> None:
        """Give the connection back to the pool."""
        wire, self._wire = self._wire, None
        if wire is not None:
            self._pool.give(self.route, wire)

    def drop(self) -> None:
        """Close the connection."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
