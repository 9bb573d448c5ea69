"""The shared store: one redis-py client a process, and what happens when the server is away.

A call that fails raises `StoreAway`, whatever the server said. If the server does not take a small
write either, the store is away: that is logged once, all calls fail at once, and a thread asks
every second whether it is back. So nothing on the request path waits for a dead server, and one
slow or wrong command does not part a worker from its store.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError
from redis.retry import Retry

from services.config import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

ASK_AGAIN = 1.0
"""Seconds between two looks for a store that is away."""
LOCAL_SECONDS = 5.0
LOCAL_ENTRIES = 2048
"""What `StoreCache` holds itself, and for how long without asking the store."""

NOT_CONFIGURED = "none is configured: set store.url or redis.host, or store.embedded"
_REASONS = {
    "BUSY": "a script keeps it busy",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "its master is down",
    "MISCONF": "it cannot write to its disk",
    "NOAUTH": "it asks for a password",
    "NOPERM": "our user may not do this",
    "NOREPLICAS": "it has too few replicas",
    "OOM": "it is out of memory",
    "READONLY": "it is a read-only replica",
    "WRONGPASS": "it refuses our user or password",
}
"""By the first word of an error. These words, not the server's, reach health routes and logs: an
error text may repeat a command and its secrets.
"""


class StoreAway(Exception):
    """The store cannot serve this call. The text says why and holds no secret."""


class StoreStatus(msgspec.Struct, frozen=True):
    """Since when (`time.time()`) the store is as it is; for being away, why."""

    state: Literal["ok", "away"]
    since: float
    reason: str = ""


class StoreScript:
    """A Lua script; the server keeps it by the hash of its text, until it is restarted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def beside(cls, module: str, name: str) -> StoreScript:
        """The script in the file `name` next to the file `module`."""
        return cls(Path(module).with_name(name).read_text(encoding="utf-8"))


class ScriptCall(msgspec.Struct, frozen=True):
    """A script to run with these keys and arguments."""

    script: StoreScript
    keys: Sequence[str]
    arguments: Sequence[str | float] = ()


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
        self.pool = _pool(url or "redis://", timeout, max_connections, pool_timeout)
        self.client = redis.Redis(connection_pool=self.pool)
        kind, options = self.pool.connection_class, self.pool.connection_kwargs
        self._probe_pool = redis.ConnectionPool(kind, **options)  # the others may all be in use
        self._probing = threading.Lock()
        self._closed = threading.Event()
        self._namespace = namespace
        self._status = StoreStatus("ok", time.time())
        if not url:
            log.warning("store away reason=%r", NOT_CONFIGURED)
            self._status = StoreStatus("away", time.time(), NOT_CONFIGURED)

    @classmethod
    def from_settings(cls, settings: Settings) -> Store:
        """The store of the settings: `store.url`, else the `redis` group."""
        group, url = settings.redis, settings.store.url
        if not url and group.host:
            secret = f":{quote(group.password.reveal(), safe='')}@" if group.password else ""
            host = f"[{group.host}]" if ":" in group.host else group.host
            url = f"redis://{secret}{host}:{group.port}/{group.db}"
        return cls(
            url,
            namespace=settings.store.namespace,
            timeout=settings.store.timeout,
            max_connections=group.pool_size,
            pool_timeout=group.pool_timeout,
        )

    @property
    def status(self) -> StoreStatus:
        """What the calls so far have found."""
        return self._status

    def key(self, *parts: str) -> str:
        """A key in our namespace."""
        return ":".join((self._namespace, *parts))

    def run(self, operation: Callable[[redis.Redis], T]) -> T:
        """What `operation` returns when given the client. Raises `StoreAway`, at once while the
        store is away. A command is never sent twice.
        """
        if self._status.state == "away":
            raise StoreAway(self._status.reason)
        try:
            return operation(self.client)
        except redis.RedisError as exc:
            raise self._failed(_reason(exc)) from exc

    def pipeline(self, fill: Callable[[Pipeline], object]) -> list[Any]:
        """The answers to the commands that `fill` puts in, in one round trip. Raises as `run`."""

        def operation(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=False) as pipe:
                fill(pipe)
                return pipe.execute()

        return self.run(operation)

    def run_script(
        self, script: StoreScript, keys: Sequence[str], arguments: Sequence[str | float] = ()
    ) -> Any:
        """The answer of one script. Raises as `run`."""
        [answer] = self.run_scripts([ScriptCall(script, keys, arguments)])
        return answer

    def run_scripts(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The answers to `calls`, run in this order and in one round trip, unless the server has
        forgotten a script. Raises as `run`.
        """
        return self.run(lambda _: self._answers(calls)) if calls else []

    def _answers(self, calls: Sequence[ScriptCall]) -> list[Any]:
        answers = self._exchange(calls)
        for place, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                [answer] = self._exchange([calls[place]], by_text=True)
                answers[place] = answer
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    def _exchange(self, calls: Sequence[ScriptCall], by_text: bool = False) -> list[Any]:
        """One round trip, without redis-py's `Pipeline`, which costs half as much again."""
        commands = [
            ("EVAL" if by_text else "EVALSHA", call.script.text if by_text else call.script.sha)
            + (len(call.keys), *call.keys, *call.arguments)
            for call in calls
        ]
        pool: Any = self.pool  # redis-py gives no types for what follows
        connection = pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_read(connection) for _ in calls]
        finally:
            pool.release(connection)

    def probe(self) -> StoreStatus:
        """Ask the server now, unless it is away already; the state found."""
        with self._probing:
            if self._status.state == "ok" and (reason := self._refusal()):
                log.warning("store away reason=%r address=%s", reason, _address(self.pool))
                self._status = StoreStatus("away", time.time(), reason)
                self.pool.pool.is_away = True
                threading.Thread(target=self._wait_for_it, name="store-away", daemon=True).start()
        return self._status

    def close(self) -> None:
        """Close all connections, and no longer look for a store that is away."""
        self._closed.set()
        self.pool.disconnect()
        self._probe_pool.disconnect()

    def _failed(self, reason: str) -> StoreAway:
        """A call failed. One caller at a time finds out whether the store is away."""
        if not self._probing.locked() and self.probe().state == "ok":
            log.warning("store call failed reason=%r", reason)
        return StoreAway(self._status.reason or reason)

    def _refusal(self) -> str:
        """Why the server takes no write now, if so. A PING would call a full disk or a replica
        well, and the state would flap.
        """
        try:
            redis.Redis(connection_pool=self._probe_pool).set(self.key("probe"), b"1", px=60_000)
        except redis.RedisError as exc:
            return _reason(exc)
        return ""

    def _wait_for_it(self) -> None:
        while not self._closed.wait(ASK_AGAIN):
            if reason := self._refusal():
                self._status = msgspec.structs.replace(self._status, reason=reason)
                continue
            log.warning("store back after=%.1fs", time.time() - self._status.since)
            self.pool.pool.is_away = False
            self._status = StoreStatus("ok", time.time())
            return


class StoreCache:
    """Small facts by key, shared by all workers for a while, with a short memory of our own in
    front. A fact that the store cannot give is unknown, never an error; while the store is away,
    what this process knows is kept for its full time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local: OrderedDict[str, tuple[float, float, bytes]] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """The value, or None when nobody knows it."""
        now = time.monotonic()
        fresh_until, known_until, value = self._local.get(key, (0.0, 0.0, b""))
        if now < fresh_until:
            return value
        try:
            stored: Any = self._store.run(lambda c: c.get(self._store.key("cache", key)))
        except StoreAway:
            return value if now < known_until else None
        if stored is None:
            self._local.pop(key, None)
            return None
        self._remember(key, stored, max(LOCAL_SECONDS, known_until - now))
        return bytes(stored)

    def set(self, key: str, value: bytes, seconds: float) -> None:
        """Keep `value` for `seconds`."""
        self._remember(key, value, seconds)
        name, milliseconds = self._store.key("cache", key), max(1, int(seconds * 1000))
        with contextlib.suppress(StoreAway):
            self._store.run(lambda c: c.set(name, value, px=milliseconds))

    def _remember(self, key: str, value: bytes, seconds: float) -> None:
        now = time.monotonic()
        self._local.pop(key, None)  # to the end; moving it could find it gone, by another thread
        self._local[key] = (now + min(seconds, LOCAL_SECONDS), now + seconds, value)
        while len(self._local) > LOCAL_ENTRIES:
            self._local.popitem(last=False)


class _FreeConnections(LifoQueue[Any]):
    """Who waits for a connection while the store goes away waits no longer, and gets none."""

    is_away = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        connection = super().get(block, timeout)
        if self.is_away:
            self.put(connection)
            raise Empty
        return connection


def _pool(
    url: str, timeout: float, max_connections: int, pool_timeout: float
) -> redis.BlockingConnectionPool:
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=pool_timeout,
            queue_class=_FreeConnections,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        raise ValueError(
            "the store's URL is malformed: percent-encode what is special in its password"
        ) from None  # the original text may quote a part of the password
    verified = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    if any(pool.connection_kwargs.get(name, safe) != safe for name, safe in verified.items()):
        raise ValueError("the store's URL turns TLS verification off: name a CA by ssl_ca_certs")
    return pool


def _address(pool: redis.ConnectionPool) -> str:
    """Where the server is, without user and password."""
    options = pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host')}:{options.get('port', 6379)}")


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc


def _reason(exc: redis.RedisError) -> str:
    """Why a call failed, without the server's own text."""
    text = str(exc).rpartition(" caused error: ")[2]  # a pipeline's has the command before it
    word, cause = exc.status_code or text.partition(" ")[0], exc.__context__
    if word in _REASONS:
        return _REASONS[word]
    if isinstance(cause, Empty):
        return "all our connections are in use"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()  # such as "connection refused"
    if isinstance(exc, redis.AuthenticationError):
        return _REASONS["WRONGPASS"]
    if isinstance(exc, redis.TimeoutError):
        return "no answer in time"
    if isinstance(exc, redis.ConnectionError):
        return "the connection broke"
    return f"it answered {word}" if word.isupper() else type(exc).__name__
