"""From a URL to a connected socket: addresses, proxies, TLS, all within one time limit.

The plain `socket` and `ssl` modules are used, which wait cooperatively where gevent has patched
them.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from base64 import b64encode
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Any, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit

import gevent
import msgspec
import socks  # type: ignore[import-untyped]  # PySocks ships no types
from gevent.monkey import is_module_patched
from urllib3.util.ssltransport import SSLTransport
from urllib3.util.wait import wait_for_read, wait_for_write

from services.core.errors import InvalidRequest, UpstreamTimeout, UpstreamUnreachable

DEFAULT_PORTS = {"http": 80, "https": 443}
PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
MAX_TUNNEL_ANSWER = 16384
"""Bytes of a proxy's answer to CONNECT: a status line and a few headers."""

# urlsplit drops CR, LF and TAB silently, so they are looked for first.
_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_PATH_SAFE = "!#$%&'()*+,/:;=?@[]~"

Address = tuple[Any, ...]  # what getaddrinfo returns: family, type, protocol, name, sockaddr


class TlsInTls(SSLTransport):
    """TLS within TLS, for an https upstream behind an https proxy: ssl cannot wrap its own
    sockets."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Return b"" at the end of file, for which SSLTransport has a 0."""
        return cast(bytes, super().recv(buflen, flags) or b"")


Socket = socket.socket | TlsInTls


class Proxy(msgspec.Struct, frozen=True):
    """A proxy. `scheme` is http, https, socks5 (we resolve names) or socks5h (it does)."""

    scheme: str
    host: str
    port: int
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.scheme}://{host_and_port(self.host, self.port)})"

    @property
    def is_socks(self) -> bool:
        return self.scheme.startswith("socks")

    @property
    def authorization(self) -> str | None:
        """The value of Proxy-Authorization, or None without credentials."""
        if not self.username and not self.password:
            return None
        return "Basic " + b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


class Route(msgspec.Struct, frozen=True):
    """Where a connection leads and whom it trusts: what was opened for a route serves any request
    on it. `ca_file` (PEM) is trusted beside the system's authorities."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None
    ca_file: str | None = None

    @property
    def host_header(self) -> str:
        if self.port == DEFAULT_PORTS[self.scheme]:
            return f"[{self.host}]" if ":" in self.host else self.host
        return host_and_port(self.host, self.port)

    @property
    def is_forwarded(self) -> bool:
        """Whether an HTTP proxy reads our requests rather than tunnelling them."""
        return self.scheme == "http" and self.proxy is not None and not self.proxy.is_socks


@lru_cache(maxsize=256)
def parse_url(
    url: str, proxy: Proxy | None = None, ca_file: str | None = None
) -> tuple[Route, str]:
    """Return the route and the path with its query; InvalidRequest, which does not repeat them."""
    if _BLANK_OR_CONTROL.search(url):
        raise InvalidRequest("upstream url holds a blank or control character")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError as exc:
        raise InvalidRequest("upstream url is malformed") from exc
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise InvalidRequest("upstream url must be http or https and name a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("upstream url must not hold a user name or password")
    route = Route(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], proxy, ca_file)
    return route, _target(parts)


def _target(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    return f"{path}?{quote(parts.query, safe=_PATH_SAFE)}" if parts.query else path


@lru_cache(maxsize=256)
def parse_proxy(url: str) -> Proxy:
    """Read `scheme://[user:password@]host[:port]`; ValueError, which does not repeat it."""
    if _BLANK_OR_CONTROL.search(url):
        raise ValueError("proxy url holds a blank or control character")
    parts = urlsplit(url)
    if parts.scheme not in PROXY_PORTS or not parts.hostname:
        raise ValueError("proxy url must be http, https, socks5 or socks5h and name a host")
    try:
        port = parts.port or PROXY_PORTS[parts.scheme]
        host = parts.hostname.encode("idna").decode("ascii")
    except ValueError:
        raise ValueError("proxy url has a port or host that is none") from None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Proxy(parts.scheme, host, port, user, password)


def host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@lru_cache(maxsize=16)
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the context that checks chain and host name; loading the system's authorities takes
    a while, so it is done once a process."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def connect(route: Route, seconds: float, *, tunnel: bool = False) -> Socket:
    """Return a socket that leads to the upstream of `route`, TLS included.

    An HTTP proxy reads plain http requests itself, unless there shall be a `tunnel` through it.
    Raises UpstreamTimeout after `seconds`, UpstreamUnreachable for everything else.
    """
    deadline = monotonic() + seconds
    try:
        sock = reach(route, deadline, tunnel or not route.is_forwarded)
        if route.scheme == "https":
            sock = start_tls(sock, tls_context(route.ca_file), route.host, deadline)
        return sock
    except TimeoutError as exc:
        message = f"could not connect to the upstream within {seconds:g} s"
        raise UpstreamTimeout(message) from exc
    except OSError as exc:
        raise UpstreamUnreachable(f"cannot connect to the upstream: {reason(exc)}") from exc


def reach(route: Route, deadline: float, tunnel: bool) -> Socket:
    """Return a socket to where `route` leads, without TLS of the upstream; OSError.

    Without a `tunnel` it ends at the HTTP proxy, if there is one.
    """
    proxy = route.proxy
    sock: Socket = _connect_tcp(route, deadline)
    if proxy is None or proxy.is_socks:
        return sock
    if proxy.scheme == "https":
        sock = start_tls(sock, tls_context(route.ca_file), proxy.host, deadline)
    try:
        if tunnel:
            _open_tunnel(sock, route, proxy, deadline)
        return sock
    except OSError:
        sock.close()
        raise


def _connect_tcp(route: Route, deadline: float) -> socket.socket:
    """Connect to the upstream, its HTTP proxy, or through its SOCKS proxy."""
    proxy = route.proxy
    if proxy is None:
        sock = _connect_any(resolve(route.host, route.port, left(deadline)), deadline)
    elif proxy.is_socks:
        sock = _connect_socks(route, proxy, deadline)
    else:
        sock = _connect_any(resolve(proxy.host, proxy.port, left(deadline)), deadline)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _connect_any(addresses: list[Address], deadline: float) -> socket.socket:
    """Try each address, none for longer than its share of the time that is left."""
    failure = OSError("the name has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        share = left(deadline) / (len(addresses) - index)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(share)
            sock.connect(address)
            return sock
        except OSError as exc:
            sock.close()
            failure = exc
    raise failure


def _connect_socks(route: Route, proxy: Proxy, deadline: float) -> socket.socket:
    target = route.host
    if proxy.scheme == "socks5":
        target = resolve(route.host, route.port, left(deadline))[0][4][0]
    try:
        sock = socks.create_connection(
            (target, route.port),
            proxy_addr=resolve(proxy.host, proxy.port, left(deadline))[0][4][0],
            proxy_port=proxy.port,
            proxy_type=socks.SOCKS5,
            proxy_rdns=proxy.scheme == "socks5h",
            proxy_username=proxy.username or None,
            proxy_password=proxy.password or None,
            timeout=left(deadline),
        )
    except socks.ProxyError as exc:
        if isinstance(exc.socket_err, OSError):
            raise exc.socket_err from exc
        raise
    return cast(socket.socket, sock)


def _open_tunnel(sock: Socket, route: Route, proxy: Proxy, deadline: float) -> None:
    """Ask an HTTP proxy for a way to the upstream; OSError when it gives none."""
    target = host_and_port(route.host, route.port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    send_all(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), deadline)
    answer = b""
    while b"\r\n\r\n" not in answer:
        sock.settimeout(left(deadline))
        piece = sock.recv(4096)
        answer += piece
        if not piece or len(answer) > MAX_TUNNEL_ANSWER:
            raise ConnectionError(0, "the proxy broke off")
    words = answer.split(b"\r\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ConnectionError(0, "the proxy does not speak http")
    if not 200 <= int(words[1]) < 300:
        raise ConnectionError(0, f"the proxy refused the tunnel with status {int(words[1])}")


def start_tls(sock: Socket, context: ssl.SSLContext, host: str, deadline: float) -> Socket:
    """Shake hands with `host` before `deadline` (monotonic); OSError, and closed, if that fails.

    It is done without blocking: a socket's own timeout would begin anew with every byte.
    """
    secure = sock
    try:
        if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket):
            sock.settimeout(left(deadline))
            return TlsInTls(cast(socket.socket, sock), context, host)
        secure = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        secure.settimeout(0)
        while True:
            try:
                secure.do_handshake()
                return secure
            except ssl.SSLWantReadError:
                ready = wait_for_read(secure, left(deadline))
            except ssl.SSLWantWriteError:
                ready = wait_for_write(secure, left(deadline))
            if not ready:
                raise TimeoutError("timed out")
    except OSError:
        secure.close()
        raise


def send_all(sock: Socket, data: bytes, deadline: float) -> None:
    """Send `data`; TimeoutError at the `deadline` (monotonic), OSError when it breaks."""
    view = memoryview(data)
    while view:
        sock.settimeout(left(deadline))
        view = view[sock.send(view) :]  # type: ignore[arg-type]  # ssl takes any buffer


def _receive_in_thread(sock: Socket, size: int, seconds: float) -> bytes:
    if sock.gettimeout() != seconds:
        sock.settimeout(seconds)
    return sock.recv(size)


def _receive_in_greenlet(sock: Socket, size: int, seconds: float) -> bytes:
    """With a timer of our own, because a socket's timeout takes gevent ten Python calls a read."""
    if sock.gettimeout() is not None:
        sock.settimeout(None)
    timer = gevent.get_hub().loop.timer(seconds)
    timer.start(gevent.getcurrent().throw, TimeoutError, update=True)
    try:
        return sock.recv(size)
    finally:
        timer.stop()
        timer.close()


receive = _receive_in_greenlet if is_module_patched("socket") else _receive_in_thread
"""Take up to `size` bytes that `sock` has, b"" at its end. Raise OSError when it breaks, and what
`SILENCE` names when nothing has come after `seconds`."""

SILENCE = (TimeoutError, BlockingIOError, ssl.SSLWantReadError)


def shut(sock: Socket) -> None:
    """Wake whoever reads or writes on `sock`, and tell the other side; from any thread."""
    inner: Any = sock.socket if isinstance(sock, TlsInTls) else sock
    with suppress(OSError):  # the other side was quicker
        # not SSLSocket.shutdown, which forgets the session under the reader's hands
        socket.socket.shutdown(inner, socket.SHUT_RDWR)


def left(deadline: float) -> float:
    """Return the seconds until `deadline` (monotonic); TimeoutError once it has passed."""
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def resolve(host: str, port: int, seconds: float) -> list[Address]:
    """Return the addresses of `host`; OSError if it has none, TimeoutError after `seconds`.

    A name is looked up in a thread of its own, because getaddrinfo cannot be given a time limit.
    """
    try:
        numeric = socket.AI_NUMERICHOST
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric))
    except socket.gaierror:
        pass
    found: Future[list[Address]] = Future()

    def look_up() -> None:
        try:
            found.set_result(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as exc:
            found.set_exception(exc)

    threading.Thread(target=look_up, name=f"lookup-{host}", daemon=True).start()
    return found.result(seconds)


def reason(exc: BaseException) -> str:
    """Return why a connection failed in a few lower-case words: no URL, path or credential."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {exc.verify_message.lower().rstrip('.')}"
    if isinstance(exc, ssl.SSLError):
        return f"tls failed: {(exc.reason or 'no session').lower().replace('_', ' ')}"
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, socks.ProxyError):
        return str(exc.msg).lower()
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return type(exc).__name__.lower()
