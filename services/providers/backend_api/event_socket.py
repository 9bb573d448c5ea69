"""A WebSocket that an answer's events come over.

It is dialled by our own transport, so that limits, proxies and the checking of certificates are
the same as everywhere.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import websocket
from websocket import _handshake

from services.core.errors import (
    InvalidRequest,
    ProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.transport import Socket, Timeouts, Transport

MAX_MESSAGE = 32 * 1024 * 1024
_OPENING = 30.0
_SCHEMES = {"ws://": "http://", "wss://": "https://"}


class SocketDialler:
    """Opens sockets over `transport`, through `proxy` where there is one."""

    def __init__(self, transport: Transport, proxy: str | None = None) -> None:
        self._transport = transport
        self._proxy = proxy

    def open(self, url: str, *, secure: bool) -> EventSocket:
        """The socket at `url`; with `secure`, an unencrypted one is refused.

        Raises `UpstreamUnreachable`, `UpstreamTimeout`, `ProtocolError`. The URL holds a ticket and
        is in none of their texts.
        """
        connection: Any = websocket.WebSocket(skip_utf8_validation=True)
        wire = self._connect(url, secure)
        wire.settimeout(_OPENING)  # the library leaves that to whoever brings a socket
        try:
            connection.connect(url, socket=wire, suppress_origin=True, redirect_limit=0)
        except websocket.WebSocketBadStatusException as exc:
            raise UpstreamUnreachable(f"the upstream's socket answered {exc.status_code}") from exc
        except websocket.WebSocketTimeoutException as exc:
            raise UpstreamTimeout("the upstream's socket did not open in time") from exc
        except (websocket.WebSocketException, OSError, ValueError) as exc:
            raise UpstreamUnreachable("the upstream's socket did not open") from exc
        finally:
            # the library keeps cookies for the whole process, and so for other accounts
            _handshake.CookieJar.jar.clear()
        return EventSocket(connection, url, self._transport.timeouts)

    def _connect(self, url: str, secure: bool) -> Socket:
        scheme = next((s for s in _SCHEMES if url.startswith(s)), "")
        if not scheme or (secure and scheme != "wss://"):
            raise ProtocolError("the upstream gave no usable address for its socket")
        try:
            return self._transport.connect(_SCHEMES[scheme] + url[len(scheme) :], proxy=self._proxy)
        except InvalidRequest as exc:
            raise ProtocolError("the upstream gave no usable address for its socket") from exc


class EventSocket:
    """One open socket, for one thread or greenlet. `url` tells whether it can be used again."""

    def __init__(self, connection: Any, url: str, timeouts: Timeouts) -> None:
        self.url = url
        self._connection = connection
        self._timeouts = timeouts
        self._total_at = monotonic() + timeouts.total
        self._idle_at = self._total_at
        self.expect()

    def expect(self) -> None:
        """The silence that is too long begins anew: something of ours came, or is asked for."""
        self._idle_at = monotonic() + self._timeouts.idle

    def read(self, tick: float) -> bytes | None:
        """The next message, None after `tick` seconds without one, b"" at the end.

        Raises `UpstreamTimeout` and `ProtocolError`.
        """
        now = monotonic()
        if now >= min(self._idle_at, self._total_at):
            raise UpstreamTimeout("the upstream went silent within its answer")
        self._connection.settimeout(tick)
        try:
            opcode, data = self._connection.recv_data()
        except websocket.WebSocketTimeoutException:
            return None
        except (websocket.WebSocketException, OSError) as exc:
            raise ProtocolError("the socket of the upstream broke off") from exc
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return b""
        if len(data) > MAX_MESSAGE:
            raise ProtocolError("a socket message of the upstream is too large")
        return bytes(data) or b" "

    def close(self) -> None:
        """Say goodbye without waiting for an answer."""
        self._connection.close(timeout=0)
        self._connection.shutdown()  # close does nothing once the other side has said goodbye
