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
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.transport import Timeouts
from services.transport.dial import dial
from services.transport.route import Route, parse_proxy, parse_url
from services.transport.tls import Tls

MAX_MESSAGE = 32 * 1024 * 1024
_OPENING = 30.0
_SCHEMES = {"ws://": "http://", "wss://": "https://"}


class SocketDialler:
    """Opens sockets. `proxy` is an http, https or socks5 URL, or ""."""

    def __init__(self, timeouts: Timeouts, proxy: str, tls: Tls) -> None:
        self._timeouts = timeouts
        self._proxy = parse_proxy(proxy) if proxy else None
        self._tls = tls

    def open(self, url: str, *, secure: bool) -> EventSocket:
        """The socket at `url`; with `secure`, an unencrypted one is refused.

        Raises `UpstreamUnreachable`, `UpstreamTimeout`, `ProtocolError`. The URL holds a ticket and
        is in none of their texts.
        """
        route = self._route(url, secure)
        connection: Any = websocket.WebSocket(skip_utf8_validation=True)
        try:
            connection.connect(
                url,
                timeout=_OPENING,
                suppress_origin=True,
                redirect_limit=0,
                **self._way(route),
            )
        except UpstreamError:
            raise
        except websocket.WebSocketBadStatusException as exc:
            status = exc.status_code
            raise UpstreamUnreachable(f"the socket at {route} answered {status}") from exc
        except websocket.WebSocketTimeoutException as exc:
            raise UpstreamTimeout(f"the socket at {route} did not open in time") from exc
        except (websocket.WebSocketException, OSError, ValueError) as exc:
            raise UpstreamUnreachable(f"the socket at {route} did not open") from exc
        finally:
            # the library keeps cookies for the whole process, and so for other accounts
            _handshake.CookieJar.jar.clear()
        return EventSocket(connection, url, route, self._timeouts)

    def _route(self, url: str, secure: bool) -> Route:
        scheme = next((s for s in _SCHEMES if url.startswith(s)), "")
        if not scheme or (secure and scheme != "wss://"):
            raise ProtocolError("the upstream gave no usable address for its socket")
        try:
            return parse_url(_SCHEMES[scheme] + url[len(scheme) :], self._proxy)[0]
        except InvalidRequest as exc:
            raise ProtocolError("the upstream gave no usable address for its socket") from exc

    def _way(self, route: Route) -> dict[str, Any]:
        """A connection of ours, or the proxy where the library must ask for a tunnel."""
        proxy = route.proxy
        if proxy is None or not route.forwarded:
            wire = dial(route, self._tls, self._timeouts)
            wire.settimeout(_OPENING)  # the library leaves that to whoever brings a socket
            return {"socket": wire}
        auth = (proxy.username, proxy.password) if proxy.username else None
        host, port = proxy.host, proxy.port
        return {"http_proxy_host": host, "http_proxy_port": port, "http_proxy_auth": auth}


class EventSocket:
    """One open socket, for one thread or greenlet. `url` tells whether it can be used again."""

    def __init__(self, connection: Any, url: str, route: Route, timeouts: Timeouts) -> None:
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
