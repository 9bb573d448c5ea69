"""Proxies as small as they get: HTTP CONNECT and SOCKS5, as server scripts that relay."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

from .server import PATIENCE, Peer, Script


def connect_proxy(authorization: str | None = None) -> Script:
    """A tunnelling HTTP proxy; 407 unless Proxy-Authorization is as given."""

    def script(peer: Peer) -> None:
        request = peer.request()
        assert request is not None
        assert request.method == "CONNECT"
        if request.headers.get("proxy-authorization") != authorization:
            peer.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, port = request.target.rpartition(":")
        upstream = socket.create_connection((host, int(port)), timeout=5)
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _relay(peer.sock, upstream)

    return script


def socks5_proxy(names: list[str], credentials: bytes | None = None) -> Script:
    """A SOCKS5 proxy (RFC 1928, 1929); `names` collects the kind of address asked for.

    It takes every name for 127.0.0.1. `credentials` is user:password.
    """

    def script(peer: Peer) -> None:
        peer.read(peer.read(2)[1])
        if credentials is None:
            peer.send(b"\x05\x00")
        else:
            peer.send(b"\x05\x02")
            user = peer.read(peer.read(2)[1])
            password = peer.read(peer.read(1)[0])
            accepted = user + b":" + password == credentials
            peer.send(b"\x01\x00" if accepted else b"\x01\x01")
            if not accepted:
                return
        kind = peer.read(4)[3]
        if kind == 3:
            names.append("name " + peer.read(peer.read(1)[0]).decode())
        else:
            names.append("address " + socket.inet_ntoa(peer.read(4)))
        port = int.from_bytes(peer.read(2), "big")
        upstream = socket.create_connection(("127.0.0.1", port), timeout=5)
        peer.send(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        _relay(peer.sock, upstream)

    return script


def _relay(left: socket.socket, right: socket.socket) -> None:
    """Pass bytes both ways until either side ends; in one thread, as TLS sockets require."""
    other = {left: right, right: left}
    with contextlib.suppress(OSError):
        while ready := select.select([left, right], [], [], PATIENCE)[0]:
            for source in ready:
                if not _pass(source, other[source]):
                    right.close()
                    return
    right.close()


def _pass(source: socket.socket, sink: socket.socket) -> bool:
    """Pass on what is there, and what TLS has decrypted beyond it; False at the end of file."""
    data = source.recv(65536)
    while isinstance(source, ssl.SSLSocket) and source.pending():
        data += source.recv(65536)
    sink.sendall(data)
    return bool(data)
