"""urllib3's connections, telling the exchange that uses them how far it has got.

A blocking `adapter.send` says nothing until the headers are there. An exchange must know earlier
when its request is out, whether the connection was used before, whether a single byte came back,
and which socket to shut when it is given up.
"""

from __future__ import annotations

import http.client
import threading
from contextvars import ContextVar
from typing import Any, Protocol

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.contrib.socks import SOCKSConnection

from services.transport.tls import Tls, shut

# Upstreams (scheme, host, port) whose connections are kept at the same time.
MAX_UPSTREAMS = 64


class Watcher(Protocol):
    """An exchange, as its connection sees it. The methods run in the exchange's own thread."""

    wants_fresh: bool
    send_seconds: float

    def connected(self, connection: Watched, *, reused: bool) -> None: ...
    def sent(self) -> None: ...
    def answered(self) -> None: ...


# The exchange for which the current thread is working.
watcher: ContextVar[Watcher] = ContextVar("watcher")


class _WholeLines:
    """A response's file whose lines end: http.client takes a header block or trailer cut short
    for a complete one."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        if not line.endswith(b"\n") and len(line) != limit:
            raise http.client.IncompleteRead(line)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Response(http.client.HTTPResponse):
    fp: Any

    def begin(self) -> None:
        """Tell a connection closed without a byte from one cut short; skip interim answers,
        of which http.client knows only 100."""
        if not self.fp.peek(1):
            raise http.client.RemoteDisconnected("closed without an answer")
        watcher.get().answered()
        self.fp = _WholeLines(self.fp)
        super().begin()
        while 101 < self.status < 200:
            self.headers = None  # type: ignore[assignment]  # begin() reads only when unset
            super().begin()


class Watched(HTTPConnection):
    """Reports to the current watcher; can be shut by the exchange that holds it, and only it."""

    response_class = _Response

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._used = False
        self._socket: Any = None
        self._holder: Watcher | None = None
        self._guard = threading.Lock()

    @property
    def is_connected(self) -> bool:
        """False also when the exchange insists on a new connection: urllib3 then makes one."""
        return not watcher.get().wants_fresh and super().is_connected

    def connect(self) -> None:
        self._used = False
        super().connect()
        self._hold(reused=False)

    def request(self, *args: Any, **options: Any) -> None:
        if self.sock is not None and self._used:
            self._hold(reused=True)
        super().request(*args, **options)

    def getresponse(self) -> Any:
        watcher.get().sent()
        self._used = True
        return super().getresponse()

    def _hold(self, *, reused: bool) -> None:
        holder = watcher.get()
        with self._guard:
            self._holder, self._socket = holder, self.sock
        # urllib3 would have the body sent within the time to connect.
        self.timeout = holder.send_seconds
        self.sock.settimeout(self.timeout)
        holder.connected(self, reused=reused)

    def shut(self, holder: Watcher) -> None:
        """Wake whoever reads or writes, and tell the upstream; no-op for a former holder."""
        with self._guard:
            if self._holder is not holder:
                return
            shut(self._socket)


class _TlsConnection(Watched, HTTPSConnection):
    pass


class _SocksConnection(Watched, SOCKSConnection):
    pass


class _SocksTlsConnection(Watched, SOCKSConnection, HTTPSConnection):
    pass


class _Plain(HTTPConnectionPool):
    ConnectionCls = Watched


class _Tls(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Socks(HTTPConnectionPool):
    ConnectionCls = _SocksConnection


class _SocksTls(HTTPSConnectionPool):
    ConnectionCls = _SocksTlsConnection


class WatchedAdapter(HTTPAdapter):
    """requests' adapter over watched connections and our TLS context; it never retries."""

    def __init__(self, tls: Tls, pool_size: int) -> None:
        self._context = tls.context
        super().__init__(pool_connections=MAX_UPSTREAMS, pool_maxsize=pool_size, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Plain, "https": _Tls}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        options["ssl_context"] = self._context
        if proxy.startswith("socks"):
            manager = super().proxy_manager_for(proxy, **options)
            manager.pool_classes_by_scheme = {"http": _Socks, "https": _SocksTls}
            return manager
        manager = super().proxy_manager_for(proxy, proxy_ssl_context=self._context, **options)
        manager.pool_classes_by_scheme = {"http": _Plain, "https": _Tls}
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave trust to the context: requests would add certifi's list to it at every request."""
        conn.cert_reqs = "CERT_REQUIRED"
