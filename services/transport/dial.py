"""Connecting: names, addresses, proxies and TLS, all within one time limit."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from time import monotonic
from typing import Any, cast

import socks  # type: ignore[import-untyped]  # PySocks ships no types

from services.core.errors import UpstreamUnreachable
from services.transport.base import Timeouts
from services.transport.clock import connect_timeout
from services.transport.reason import reason
from services.transport.route import Proxy, Route
from services.transport.tls import Tls, Wire, left

Address = tuple[Any, ...]  # what getaddrinfo returns: family, type, protocol, name, sockaddr

# A proxy's answer to CONNECT: a status line and a few headers.
MAX_TUNNEL_ANSWER = 16384


def dial(route: Route, tls: Tls, limits: Timeouts) -> Wire:
    """Return a connection ready for the first request on `route`.

    Raises UpstreamTimeout after `limits.connect`, UpstreamUnreachable for everything else.
    """
    try:
        return _dial(route, tls, monotonic() + limits.connect)
    except TimeoutError as exc:
        raise connect_timeout(limits) from exc
    except OSError as exc:
        raise UpstreamUnreachable(f"cannot connect to the upstream: {reason(exc)}") from exc


def _dial(route: Route, tls: Tls, deadline: float) -> Wire:
    wire = reach(route, tls, deadline, not route.forwarded)
    return tls.wrap(wire, route.host, deadline) if route.scheme == "https" else wire


def reach(route: Route, tls: Tls, deadline: float, tunnel: bool) -> Wire:
    """A connection to where `route` leads, without TLS of its own; OSError, TimeoutError.

    Without a `tunnel` it ends at the HTTP proxy, if there is one.
    """
    proxy = route.proxy
    with ExitStack() as undo:
        wire = _connect(route, deadline)
        undo.callback(lambda: wire.close())
        if proxy is not None and not proxy.socks:
            if proxy.scheme == "https":
                wire = tls.wrap(wire, proxy.host, deadline)
            if tunnel:
                _tunnel(wire, route, proxy, deadline)
        undo.pop_all()
        return wire


def _connect(route: Route, deadline: float) -> Wire:
    """Connect to the upstream, its HTTP proxy, or through its SOCKS proxy."""
    if route.proxy is None:
        return _connect_any(resolve(route.host, route.port, left(deadline)), deadline)
    proxies = resolve(route.proxy.host, route.proxy.port, left(deadline))
    if not route.proxy.socks:
        return _connect_any(proxies, deadline)
    target = route.host
    if route.proxy.scheme == "socks5":
        target = resolve(route.host, route.port, left(deadline))[0][4][0]
    return _connect_socks(proxies[0][4][0], route.proxy, (target, route.port), deadline)


def _connect_any(addresses: list[Address], deadline: float) -> socket.socket:
    """Try each address, none for longer than its share of the time that is left."""
    failure = OSError("the name has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        share = left(deadline) / (len(addresses) - index)
        try:
            return _connect_one(family, kind, protocol, address, share)
        except OSError as exc:
            failure = exc
    raise failure


def _connect_one(
    family: int, kind: int, protocol: int, address: Any, seconds: float
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    with ExitStack() as undo:
        undo.callback(sock.close)
        sock.settimeout(seconds)
        sock.connect(address)
        _tune(sock)
        undo.pop_all()
    return sock


def _connect_socks(
    address: str, proxy: Proxy, target: tuple[str, int], deadline: float
) -> socket.socket:
    try:
        sock = socks.create_connection(
            target,
            timeout=left(deadline),
            proxy_type=socks.SOCKS5,
            proxy_addr=address,
            proxy_port=proxy.port,
            proxy_rdns=proxy.scheme == "socks5h",
            proxy_username=proxy.username or None,
            proxy_password=proxy.password or None,
        )
    except socks.ProxyError as exc:
        if isinstance(exc.socket_err, OSError):
            raise exc.socket_err from exc
        raise
    _tune(sock)
    return cast(socket.socket, sock)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _tunnel(wire: Wire, route: Route, proxy: Proxy, deadline: float) -> None:
    """Ask an HTTP proxy for a way to the upstream; OSError when it gives none."""
    lines = [f"CONNECT {route.origin} HTTP/1.1", f"Host: {route.origin}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    wire.settimeout(left(deadline))
    wire.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        wire.settimeout(left(deadline))
        piece = wire.recv(4096)
        answer += piece
        if not piece or len(answer) > MAX_TUNNEL_ANSWER:
            raise ConnectionError(0, "the proxy broke off")
    words = answer.split(b"\r\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ConnectionError(0, "the proxy does not speak http")
    if not 200 <= int(words[1]) < 300:
        raise ConnectionError(0, f"the proxy refused the tunnel with status {int(words[1])}")


class _Lookup(threading.Thread):
    """One name looked up aside, because getaddrinfo cannot be given a time limit."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"lookup-{host}", daemon=True)
        self._query = (host, port)
        self.addresses: list[Address] = []
        self.failure: OSError | None = None

    def run(self) -> None:
        try:
            self.addresses = list(socket.getaddrinfo(*self._query, type=socket.SOCK_STREAM))
        except OSError as exc:
            self.failure = exc


def resolve(host: str, port: int, seconds: float) -> list[Address]:
    """Return the addresses of `host`; OSError if it has none, TimeoutError after `seconds`."""
    try:
        numeric = socket.AI_NUMERICHOST
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric))
    except socket.gaierror:
        pass
    lookup = _Lookup(host, port)
    lookup.start()
    lookup.join(seconds)
    if lookup.is_alive():
        raise TimeoutError("the name was not resolved in time")
    if lookup.failure is not None:
        raise lookup.failure
    return lookup.addresses
