"""Where a request goes: the upstream's address and the proxy on the way."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec

from services.core.errors import InvalidRequest

DEFAULT_PORTS = {"http": 80, "https": 443}
PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

# urlsplit drops CR, LF and TAB silently, so they are looked for first.
_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_PATH_SAFE = "!#$%&'()*+,/:;=?@[]~"


class Proxy(msgspec.Struct, frozen=True):
    """A proxy. `scheme` is http, https, socks5 (we resolve names) or socks5h (it does)."""

    scheme: str
    host: str
    port: int
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.scheme}://{self.origin})"

    @property
    def origin(self) -> str:
        return _authority(self.host, self.port)

    @property
    def socks(self) -> bool:
        return self.scheme.startswith("socks")

    @property
    def authorization(self) -> str | None:
        """The value of Proxy-Authorization, or None without credentials."""
        if not self.username and not self.password:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + b64encode(pair).decode("ascii")


class Route(msgspec.Struct, frozen=True):
    """Which connections are alike: what one was opened for, another may reuse."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def origin(self) -> str:
        """host:port, for what stays inside: callers need not know where an upstream is."""
        return _authority(self.host, self.port)

    @property
    def host_header(self) -> str:
        if self.port == DEFAULT_PORTS[self.scheme]:
            return f"[{self.host}]" if ":" in self.host else self.host
        return self.origin

    @property
    def forwarded(self) -> bool:
        """Whether an HTTP proxy reads our requests rather than tunnelling them."""
        return self.scheme == "http" and self.proxy is not None and not self.proxy.socks


@lru_cache(maxsize=256)
def parse_url(url: str, proxy: Proxy | None) -> tuple[Route, str]:
    """Return the route and the path with its query; InvalidRequest names neither of the latter."""
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
    return Route(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], proxy), _target(parts)


def parse_proxy(url: str) -> Proxy:
    """Read `scheme://[user:password@]host[:port]`; ValueError never repeats it."""
    if _BLANK_OR_CONTROL.search(url):
        raise ValueError("proxy url holds a blank or control character")
    parts = urlsplit(url)
    if parts.scheme not in PROXY_PORTS or not parts.hostname:
        raise ValueError("proxy url must be http, https, socks5 or socks5h and name a host")
    try:
        port = parts.port or PROXY_PORTS[parts.scheme]
    except ValueError:
        raise ValueError("proxy url has a port that is none") from None
    return Proxy(
        parts.scheme,
        parts.hostname,
        port,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def _target(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    return f"{path}?{quote(parts.query, safe=_PATH_SAFE)}" if parts.query else path


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
