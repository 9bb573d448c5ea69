"""From a URL to its bytes: parse, look up, check, dial, read; again for each redirect.

The only door to URLs that a caller or an upstream hands us.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from urllib.parse import urlsplit

import msgspec

from services.config import ConfigErrors, Problem, Settings
from services.core.errors import InvalidRequest
from services.files.addresses import (
    AllowList,
    Target,
    check_address,
    join_redirect,
    not_public,
    parse_address,
    parse_url,
)
from services.files.data_urls import Fetched, decode_data_url
from services.files.download import Limits, failed, get
from services.transport.connect import (
    Route,
    Socket,
    left,
    parse_proxy,
    reach,
    reason,
    start_tls,
    tls_context,
)

log = logging.getLogger(__name__)

MEGABYTE = 1024 * 1024
_MAX_DIALLED = 4
_LOOKUPS_AT_ONCE = 4

Resolver = Callable[[str, int], Sequence[str]]
"""From a host name and port to its addresses as text. Raise OSError when there are none."""

Dial = Callable[[str, int, float], Socket]
"""Connect to an address and port within so many seconds. Raise OSError."""


def caller_fetcher(settings: Settings) -> Fetcher:
    """Reaches public addresses and what `files.fetch_allow` opens. Raise ConfigErrors."""
    files = settings.files
    limits = Limits(seconds=files.fetch_timeout, max_bytes=int(files.fetch_max_mb * MEGABYTE))
    return _fetcher(settings, limits, ())


def upstream_fetcher(settings: Settings) -> Fetcher:
    """Also reaches the hosts that the operator named as upstreams. Raise ConfigErrors.

    Never for a caller's URL: the upstream may be inside the operator's network.
    """
    return _fetcher(settings, download_limits(settings), tuple(_upstream_hosts(settings)))


def download_limits(settings: Settings) -> Limits:
    """How large and how slow an upstream's file may be."""
    files = settings.files
    return Limits(
        seconds=files.download_timeout,
        connect_seconds=settings.server.connect_timeout,
        max_bytes=int(files.download_max_mb * MEGABYTE),
    )


def packed_limits(settings: Settings) -> Limits:
    """The same for a picture that is answered as base64, and so held in memory several times."""
    size = min(settings.files.fetch_max_mb, settings.files.download_max_mb)
    return msgspec.structs.replace(download_limits(settings), max_bytes=int(size * MEGABYTE))


def _fetcher(settings: Settings, limits: Limits, opened: tuple[str, ...]) -> Fetcher:
    try:
        allow = AllowList((*settings.files.fetch_allow, *opened))
    except ValueError as exc:
        raise ConfigErrors([Problem("", "files.fetch_allow", str(exc))]) from exc
    proxy = settings.proxy or settings.server.proxies
    resolves = settings.files.proxy_resolves
    return Fetcher(allow=allow, limits=limits, proxy=proxy, proxy_resolves=resolves)


def _upstream_hosts(settings: Settings) -> Iterator[str]:
    """Allow-list entries for `upstream_base_url` and, where it is used, `file_server_host`."""
    urls = [settings.upstream_base_url]
    if settings.use_pandora_file_server and settings.file_server_host:
        urls.append(f"//{settings.file_server_host.rpartition('//')[2]}")
    for url in filter(None, urls):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as exc:
            keys = "upstream_base_url or file_server_host"
            raise ConfigErrors([Problem("", keys, f"not an address: {exc}")]) from exc
        host = f"[{host}]" if ":" in host else host
        yield f"{host}:{port}" if port else host


def system_resolver(host: str, port: int) -> list[str]:
    """Every address of `host` that the system knows, best first, without repetition."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Fetcher:
    """Fetches what callers and upstreams point at.

    Build one a process; threads and greenlets share it. `ca_file` (PEM) is trusted beside the
    system's authorities. `resolver` and `dial` are the only two ways out; the default for `dial`
    goes by `proxy`, if there is one. It is asked for checked addresses, or for names if it
    `proxy_resolves`: then checking what they stand for is up to it.
    """

    def __init__(
        self,
        *,
        allow: AllowList | None = None,
        limits: Limits | None = None,
        ca_file: str | None = None,
        resolver: Resolver = system_resolver,
        dial: Dial | None = None,
        proxy: str = "",
        proxy_resolves: bool = False,
    ) -> None:
        self._allow = allow or AllowList()
        self._limits = limits or Limits()
        self._ca_file = ca_file
        self._resolver = resolver
        self._proxy = parse_proxy(proxy) if proxy else None
        self._proxy_resolves = self._proxy is not None and proxy_resolves
        self._dial = dial or self._reach
        # A lookup cannot be interrupted. A late one keeps its place until it ends: callers with
        # names of slow servers get into each other's way, and not into that of the rest, which
        # shares gevent's ten resolver threads.
        self._lookups = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="lookup")

    def fetch(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        param: str | None = None,
        stop: threading.Event | None = None,
    ) -> Fetched:
        """The file behind an http, https or `data:` URL.

        Raise InvalidRequest, with `param` as the field at fault, for a URL that is malformed or
        closed, for a server that answers badly, too slowly or with too much, and when `stop` is
        set meanwhile; Unavailable where there is no room. No text holds the URL or an address.
        """
        limits = limits or self._limits
        if url[:5].lower() == "data:":
            return decode_data_url(url, limits.max_bytes, param=param)
        with _explained(param):
            return self._follow(parse_url(url, self._allow), limits, stop)

    def _follow(self, target: Target, limits: Limits, stop: threading.Event | None) -> Fetched:
        deadline = monotonic() + limits.seconds
        for _ in range(limits.redirects + 1):
            via = self._proxy if self._is_forwarded(target) else None
            with contextlib.closing(self._connect(target, limits, deadline)) as wire:
                answer = get(target, wire, limits, deadline, via=via, stop=stop)
            if isinstance(answer, Fetched):
                return answer
            target = join_redirect(target, answer, self._allow)
        raise failed(f"it redirects more than {limits.redirects} times")

    def _connect(self, target: Target, limits: Limits, deadline: float) -> Socket:
        """A connection to the first address that takes one; only checked addresses are tried."""
        dial = partial(self._reach, tunnel=False) if self._is_forwarded(target) else self._dial
        failure: OSError = ConnectionError("no address")
        for host in self._hosts(target, deadline)[:_MAX_DIALLED]:
            try:
                wire = dial(host, target.port, min(limits.connect_seconds, left(deadline)))
            except OSError as exc:
                failure = exc
                continue
            if target.scheme == "http":
                return wire
            return start_tls(wire, tls_context(self._ca_file), target.host, deadline)
        if self._proxy is not None:
            log.warning("fetching by the proxy failed reason=%s", reason(failure))
        raise failure

    def _hosts(self, target: Target, deadline: float) -> Sequence[str]:
        """All addresses of `target`, looked up once, each of them checked; or its name."""
        if target.address is not None or self._proxy_resolves:
            return (target.host,)
        lookup = self._lookups.submit(self._resolver, target.host, target.port)
        try:
            found = lookup.result(left(deadline))
        except TimeoutError:
            lookup.cancel()
            raise
        except (OSError, UnicodeError) as exc:
            raise not_public() from exc
        for text in found or ("",):
            check_address(target, parse_address(text), self._allow)
        return found

    def _is_forwarded(self, target: Target) -> bool:
        """Whether the proxy reads the request: few lead a tunnel to port 80."""
        proxy = self._proxy
        is_http = proxy is not None and not proxy.is_socks and target.scheme == "http"
        return is_http and self._proxy_resolves

    def _reach(self, host: str, port: int, seconds: float, tunnel: bool = True) -> Socket:
        """`host` is an address: no second lookup can happen; or the proxy looks it up."""
        proxy = self._proxy
        if proxy is not None and proxy.is_socks:
            proxy = msgspec.structs.replace(proxy, scheme="socks5h")
        return reach(Route("http", host, port, proxy, self._ca_file), monotonic() + seconds, tunnel)


@contextlib.contextmanager
def _explained(param: str | None) -> Iterator[None]:
    """Turn what sockets and TLS raise into an error for the caller, about the field `param`."""
    try:
        try:
            yield
        except TimeoutError as exc:
            raise failed("its server took too long") from exc
        except ssl.SSLCertVerificationError as exc:
            raise failed("the certificate of its server is not valid for this host") from exc
        except ssl.SSLError as exc:
            raise failed("its server does not speak proper tls") from exc
        except OSError as exc:
            raise failed("its server cannot be reached, or broke off") from exc
    except InvalidRequest as problem:
        problem.param = param
        raise
