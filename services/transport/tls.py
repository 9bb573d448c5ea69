"""TLS to upstreams and proxies: one verifying context a worker."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from functools import cached_property
from time import monotonic
from typing import Any, Protocol, cast

from urllib3.util.ssltransport import SSLTransport
from urllib3.util.wait import wait_for_read, wait_for_write


class Wire(Protocol):
    """What we use of a connected socket, with or without TLS."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class _TlsInTls(SSLTransport):
    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Return b"" at the end of file, for which SSLTransport has a 0."""
        return cast(bytes, super().recv(buflen, flags) or b"")


class Tls:
    """Wraps sockets, always checking chain and host name.

    `ca_file` (PEM) is trusted beside the system's authorities. ValueError for a `context` that
    does not verify.
    """

    def __init__(self, ca_file: str | None = None, context: ssl.SSLContext | None = None) -> None:
        if context is not None and not (
            context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
        ):
            raise ValueError("the ssl context for upstreams must verify chain and host name")
        self._ca_file = ca_file
        self._given = context

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Built at first use: after the fork, and after gevent has patched `ssl`."""
        context = self._given or ssl.create_default_context()
        if self._ca_file:
            context.load_verify_locations(self._ca_file)
        if self._given is None:
            context.set_alpn_protocols(["http/1.1"])
        return context

    def wrap(self, wire: Wire, host: str, deadline: float) -> Wire:
        """Shake hands before `deadline` (monotonic); OSError, and closed, when that fails."""
        with ExitStack() as undo:
            undo.callback(wire.close)
            if isinstance(wire, socket.socket) and not isinstance(wire, ssl.SSLSocket):
                sock = self.context.wrap_socket(
                    wire, server_hostname=host, do_handshake_on_connect=False
                )
                undo.callback(sock.close)
                _shake_hands(sock, deadline)
                wrapped: Wire = sock
            else:
                # An https target through an https proxy: ssl cannot wrap its own sockets.
                wire.settimeout(left(deadline))
                wrapped = _TlsInTls(cast(socket.socket, wire), self.context, host)
            undo.pop_all()
        return wrapped


def left(deadline: float) -> float:
    """Return the seconds until `deadline` (monotonic); TimeoutError once it has passed."""
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def shut(wire: Wire) -> None:
    """Wake whoever reads or writes on `wire`, and tell the other side; from any thread."""
    sock = cast(Any, wire)
    if isinstance(sock, SSLTransport):
        sock = sock.socket
    with suppress(OSError):  # the other side was quicker
        # not SSLSocket.shutdown, which forgets the session under the reader's hands
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _shake_hands(sock: ssl.SSLSocket, deadline: float) -> None:
    """Without blocking: gevent counts a socket's timeout anew for every byte that drips in."""
    sock.settimeout(0)
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            ready = wait_for_read(sock, left(deadline))
        except ssl.SSLWantWriteError:
            ready = wait_for_write(sock, left(deadline))
        if not ready:
            raise TimeoutError("timed out")
