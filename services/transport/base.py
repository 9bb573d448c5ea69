"""What every transport offers: value types, and the two interfaces the rest of the code sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from services.core.errors import ProtocolError

# How long read_all lets one read wait; the deadlines cut it short, so it only has to be finite.
PATIENT_TICK = 60.0

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Timeouts(msgspec.Struct, frozen=True):
    """Limits in seconds: to connect (name, address, TLS, proxy), from the request sent to the
    answer's headers, of silence within the body, and for the whole exchange."""

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


class Exchange(ABC):
    """One request and its response on one connection, for one thread or greenlet.

    `status` is 0 and `headers` (names in lower case, repeated ones joined by ", ") empty until
    `wait` has returned True. Leaving a `with` block closes it.
    """

    status: int = 0
    headers: Mapping[str, str] = NO_HEADERS

    @abstractmethod
    def wait(self, tick: float) -> bool:
        """Return True once the status and headers are there, False after `tick` s without them.

        A pooled connection that turns out stale is replaced here once, which may take longer
        than `tick`. Raises UpstreamTimeout (first byte, total), UpstreamUnreachable (the
        replacement), ProtocolError (not HTTP, or closed before answering).
        """

    @abstractmethod
    def read(self, tick: float) -> bytes | None:
        """Return the body bytes that are there, decoded; b"" at its end; None after `tick` s of
        silence. Waits for headers first if need be.

        Raises UpstreamTimeout (idle, total) and ProtocolError when the body is cut or malformed;
        whatever came before the fault is returned first.
        """

    @abstractmethod
    def close(self) -> None:
        """End the exchange; may be called again. An unfinished one loses its socket at once."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport(ABC):
    """Opens exchanges; shared by all threads or greenlets of a worker."""

    @abstractmethod
    def open(
        self,
        request: UpstreamRequest,
        *,
        timeouts: Timeouts | None = None,
        proxy: str | None = None,
    ) -> Exchange:
        """Connect and send. `proxy` None means the transport's own, "" means none.

        Raises UpstreamUnreachable or UpstreamTimeout before the request was handed over,
        UpstreamTimeout when the upstream does not take it, InvalidRequest when a header or the
        URL cannot be sent, ValueError for a proxy URL that makes no sense.
        """

    @abstractmethod
    def close(self) -> None:
        """Close idle connections; exchanges still open go on and close theirs when they end."""
