"""The shared store: one redis-py client a process, and what happens when the server is away.

The first failure marks the store away and is logged once. From then on every call fails at once
with `StoreAway`, so that nothing on the request path waits for a dead server; when a back-off is
over, one call finds out whether the server takes writes again, and the others still fail at once.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
import redis
from redis import exceptions as failures
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from services.config import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 15.0
"""Seconds between two tries while the store is away; doubling from the first to the longest."""

NOT_CONFIGURED = "none is configured: set store.url or redis.host, or store.embedded"

_AWAY_WORDS: dict[type[Exception], str] = {
    failures.AuthenticationError: "it refuses our user or password",
    failures.BusyLoadingError: "it is loading its data",
    failures.MaxConnectionsError: "all our connections are in use",
    failures.ReadOnlyError: "it is a read-only replica",
    failures.OutOfMemoryError: "it is out of memory",
    failures.ClusterDownError: "its cluster is down",
    failures.NoPermissionError: "our user may not do this",
    failures.TimeoutError: "no answer in time",
    failures.ConnectionError: "the connection broke",
}
"""Failures of the server, not of a call. Subclasses stand before their parents. These words, not
the server's, reach health routes and logs: an error text may repeat a command and its secrets."""


class StoreAway(Exception):
    """The store cannot serve now. The text says why and holds no secret."""


class StoreStatus(msgspec.Struct, frozen=True):
    """`since` is `time.time()`; `reason` is for being away; `server` such as "valkey 9.1.2",
    empty until `probe` has asked.
    """

    state: Literal["ok", "away"]
    since: float
    reason: str = ""
    server: str = ""


class Store:
    """A namespaced Redis or Valkey. Built after the fork; shared by all greenlets or threads.

    An empty `url` is a store that is always away. `timeout` is for connecting and for each
    answer, `pool_timeout` for a free one of the `max_connections`; both in seconds. Raises
    `ValueError` for a URL that is malformed or would turn TLS verification off.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "causeway",
        timeout: float = 1.0,
        max_connections: int = 100,
        pool_timeout: float = 30.0,
    ) -> None:
        self.pool = _pool(url or "redis://", timeout, max_connections)
        self.client = redis.Redis(connection_pool=self.pool)
        self._namespace = namespace
        self._timeout = timeout
        self._pool_timeout = pool_timeout
        self._slots = threading.BoundedSemaphore(self.pool.max_connections)
        self._lock = threading.Lock()
        self._status = StoreStatus("ok", time.time())
        self._retry_at = 0.0
        self._back_off = FIRST_BACK_OFF
        self._steady_at = 0.0
        if not url:
            log.warning("store away reason=%r", NOT_CONFIGURED)
            self._status = StoreStatus("away", time.time(), NOT_CONFIGURED)
            self._retry_at = float("inf")

    @classmethod
    def from_settings(cls, settings: Settings) -> Store:
        """The store of the settings: `store.url`, else the `redis` group."""
        return cls(
            settings.store.url or _url_of_group(settings),
            namespace=settings.store.namespace,
            timeout=settings.store.timeout,
            max_connections=settings.redis.pool_size,
            pool_timeout=settings.redis.pool_timeout,
        )

    def key(self, *parts: str) -> str:
        """A key in our namespace."""
        return ":".join((self._namespace, *parts))

    def run(self, operation: Callable[[redis.Redis], T]) -> T:
        """What `operation` returns when given the client. Not to be nested: it holds a connection.

        Raises `StoreAway`, at once while backing off. A command is never sent twice.
        """
        if self._status.state == "away":
            self._recover()
        if not self._slots.acquire(timeout=self._pool_timeout):
            raise StoreAway("all connections are in use")
        try:
            if self._status.state == "away":  # lost while we waited
                raise StoreAway(self._status.reason)
            return operation(self.client)
        except failures.RedisError as exc:
            reason = _away_reason(exc)
            if reason is None:
                raise
            raise self._lost(reason) from exc
        finally:
            self._slots.release()

    def pipeline(self, fill: Callable[[Pipeline], object], transaction: bool = False) -> list[Any]:
        """The answers to the commands that `fill` puts in, in one round trip. Raises as `run`."""

        def operation(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=transaction) as pipe:
                fill(pipe)
                return pipe.execute()

        return self.run(operation)

    def ping(self) -> None:
        """Raise `StoreAway` unless the server answers now and takes writes."""
        self.run(self._check)

    def probe(self) -> StoreStatus:
        """Ask the server now, unless we back off; the state found. Never raises `StoreAway`."""
        try:
            self.ping()
        except StoreAway as exc:
            if self._status.state == "ok":  # busy, not away
                return msgspec.structs.replace(self._status, reason=str(exc))
        return self._status

    @property
    def status(self) -> StoreStatus:
        """What the calls so far have found."""
        return self._status

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self.pool.disconnect()

    def _recover(self) -> None:
        """Find out whether the store is back, if it is time and nobody else does."""
        with self._lock:
            if self._status.state == "ok":
                return
            if time.monotonic() < self._retry_at:
                raise StoreAway(self._status.reason)
            self._retry_at = time.monotonic() + 3 * self._timeout  # while we ask, nobody else does
        try:
            self._check(self.client)
        except failures.RedisError as exc:
            raise self._still_lost(_away_reason(exc) or type(exc).__name__) from exc
        with self._lock:
            outage = time.time() - self._status.since
            self._steady_at = time.monotonic() + LONGEST_BACK_OFF
            self._status = msgspec.structs.replace(
                self._status, state="ok", since=time.time(), reason=""
            )
        log.warning("store back after=%.1fs server=%s", outage, self._status.server or "unknown")

    def _check(self, client: redis.Redis) -> None:
        """Write something that goes away by itself, and learn what server it is.

        A PING would call a full disk or a replica well, and the state would flap.
        """
        with client.pipeline(transaction=False) as pipe:
            pipe.set(self.key("probe"), b"1", px=60_000)
            pipe.info("server")
            written, about = pipe.execute(raise_on_error=False)
        if isinstance(written, Exception):
            raise written
        if isinstance(about, dict) and not self._status.server:  # INFO may be forbidden
            name = str(about.get("server_name", "redis"))
            version = about.get(f"{name}_version") or about.get("redis_version", "")
            with self._lock:
                self._status = msgspec.structs.replace(self._status, server=f"{name} {version}")

    def _lost(self, reason: str) -> StoreAway:
        with self._lock:
            if self._status.state == "ok":
                log.warning("store away reason=%r address=%s", reason, _address(self.pool))
                now = time.monotonic()
                if now > self._steady_at:  # else it comes and goes: wait longer each time
                    self._back_off = FIRST_BACK_OFF / 2
                self._back_off = min(2 * self._back_off, LONGEST_BACK_OFF)
                self._retry_at = now + self._back_off
                self._status = StoreStatus("away", time.time(), reason)
        return StoreAway(reason)

    def _still_lost(self, reason: str) -> StoreAway:
        with self._lock:
            self._back_off = min(2 * self._back_off, LONGEST_BACK_OFF)
            self._retry_at = time.monotonic() + self._back_off
            self._status = msgspec.structs.replace(self._status, reason=reason)
        return StoreAway(reason)


def _pool(url: str, timeout: float, max_connections: int) -> redis.ConnectionPool:
    try:
        pool = redis.ConnectionPool.from_url(
            url,
            max_connections=max_connections,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        raise ValueError(
            "the store's URL is malformed: percent-encode what is special in its password"
        ) from None  # the original text may quote a part of the password
    options = pool.connection_kwargs
    if options.get("ssl_cert_reqs", "required") != "required" or not options.get(
        "ssl_check_hostname", True
    ):
        raise ValueError("the store's URL turns TLS verification off: name a CA by ssl_ca_certs")
    return pool


def _url_of_group(settings: Settings) -> str:
    """The `redis` group as a URL; empty if it names no host."""
    group = settings.redis
    if not group.host:
        return ""
    secret = f":{quote(group.password.reveal(), safe='')}@" if group.password else ""
    host = f"[{group.host}]" if ":" in group.host else group.host
    return f"redis://{secret}{host}:{group.port}/{group.db}"


def _address(pool: redis.ConnectionPool) -> str:
    """Where the server is, without user and password."""
    options = pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host')}:{options.get('port', 6379)}")


def _away_reason(exc: failures.RedisError) -> str | None:
    """Why the server cannot serve; None if the call itself was wrong."""
    text = str(exc)
    if "MISCONF" in text:  # redis-py has no class for it; in a pipeline it has a prefix
        return "it cannot write to its disk"
    for kind, words in _AWAY_WORDS.items():
        if isinstance(exc, kind):
            return _connect_words(text) if kind is failures.ConnectionError else words
    return None


def _connect_words(text: str) -> str:
    """What the system said, such as "connection refused"; redis-py tells it as "Error 111 …"."""
    number = re.match(r"Error (-?\d+) ", text)
    if "[SSL" in text:
        return "TLS with it failed"
    if number is None:
        return _AWAY_WORDS[failures.ConnectionError]
    return os.strerror(int(number[1])).lower() if int(number[1]) > 0 else "its name is unknown"
