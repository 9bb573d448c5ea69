"""The one door to upstreams: pooled, timed, proxied, and never waiting to fill a buffer.

Import from here. `sockets` and `requests_session` load only when `create` picks one of them, so
that nothing pulls in `ssl` before gevent has patched it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from services.transport.base import Exchange, Timeouts, Transport, UpstreamRequest

if TYPE_CHECKING:
    import ssl

__all__ = ["Exchange", "Timeouts", "Transport", "UpstreamRequest", "create"]

DEFAULT_TIMEOUTS = Timeouts()
DEFAULT_POOL_SIZE = 256


def create(
    kind: Literal["gevent", "gthread"],
    *,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    pool_size: int = DEFAULT_POOL_SIZE,
    proxy: str | None = None,
    ca_file: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Transport:
    """Make the transport for a worker of this `kind`; call it after the fork.

    `pool_size` bounds the idle connections kept to one upstream. `proxy` (http, https, socks5 or
    socks5h, with optional user:password) serves requests that name none. `ca_file` is trusted in
    addition to the system's authorities; an `ssl_context` of one's own must verify.
    ValueError when the proxy or the context is not usable.
    """
    from services.transport.tls import Tls

    tls = Tls(ca_file, ssl_context)
    if kind == "gevent":
        from services.transport.sockets import SocketTransport

        return SocketTransport(timeouts, pool_size, proxy, tls)
    from services.transport.requests_session import RequestsTransport

    return RequestsTransport(timeouts, pool_size, proxy, tls)
