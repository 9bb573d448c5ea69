"""Lookouts for canaries: HTTP answers as tests get them, and all that a store is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx2
import requests

from emulators.backend_api_records import Account
from tests.canaries import MARK, Found, Stream, found

_gateways: set[str] = set()
"""Scheme, host and port of the gateways that tests ask."""


def watch_origin(url: str) -> None:
    """Look at every answer that comes from there."""
    _gateways.add(_origin(url))


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _look_at_head(what: str, headers: Any) -> None:
    found.look(f"the headers of {what}", "\n".join(f"{k}: {v}" for k, v in headers.items()))


def _watch_requests_answer(answer: requests.Response, *_: Any, **__: Any) -> None:
    if _origin(answer.url) not in _gateways:
        return
    what = f"an answer {answer.status_code}"
    _look_at_head(what, answer.headers)
    seen = Stream(found, f"the body of {what}")
    known = weakref.ref(answer)  # a circle would keep the connections of unread answers open

    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        asked = known()
        assert asked is not None
        for piece in requests.Response.iter_content(asked, *args, **options):
            seen.add(piece if isinstance(piece, bytes) else str(piece).encode())
            yield piece

    answer.iter_content = watched  # type: ignore[method-assign]


class _WatchedStream(httpx2.SyncByteStream):
    def __init__(self, stream: Any, seen: Stream) -> None:
        self._stream = stream
        self._seen = seen

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._seen.add(piece)
            yield piece

    def close(self) -> None:
        self._stream.close()


def watch_httpx_answer(answer: httpx2.Response) -> None:
    """A hook for an httpx client that asks a gateway."""
    what = f"an answer {answer.status_code}"
    _look_at_head(what, answer.headers)
    answer.stream = _WatchedStream(answer.stream, Stream(found, f"the body of {what}"))


def watch_requests() -> None:
    """Have every session of `requests` look at the answers of gateways."""
    make = requests.Session.__init__

    def watched(session: requests.Session) -> None:
        make(session)
        session.hooks["response"].append(_watch_requests_answer)

    requests.Session.__init__ = watched  # type: ignore[method-assign,assignment]


class Planting:
    """Gives the tokens of the backend-api emulator the mark, while `on`."""

    def __init__(self) -> None:
        self.on = True

    def begin(self) -> None:
        issue, put = Account.issue, Account.__setattr__

        def issue_marked(account: Account, *lifetime: float) -> str:
            token = issue(account, *lifetime)
            if self.on:
                account.access_tokens[-1] = token.replace(".unsigned", f".{MARK}-unsigned")
            return account.access_token

        def put_marked(account: Account, name: str, value: Any) -> None:
            marked = self.on and name == "refresh_token" and MARK not in value
            put(account, name, f"{value}-{MARK}" if marked else value)

        Account.issue = issue_marked  # type: ignore[method-assign,assignment]
        Account.__setattr__ = put_marked  # type: ignore[method-assign,assignment]


class StoreMonitor:
    """All that the store at `url` is told, as MONITOR shows it, looked at as it comes.

    Goes on where the server is started anew. Raises `OSError` where there is none at first.
    """

    def __init__(self, url: str, found: Found = found) -> None:
        self.url = url
        self._seen = Stream(found, "a store's MONITOR")
        self._ending = threading.Event()
        self._connection = self._attach()
        self._thread = threading.Thread(target=self._run, name="store-monitor", daemon=True)

    @property
    def size(self) -> int:
        """Bytes seen."""
        return self._seen.size

    def _connect(self) -> socket.socket:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address: Any = unquote(parts.path)
        else:
            connection = socket.socket()
            address = (parts.hostname, parts.port)
        connection.settimeout(5)
        try:
            connection.connect(address)
            if parts.password:
                self._say(connection, f"AUTH {unquote(parts.password)}", b"+OK")
        except OSError:
            connection.close()
            raise
        return connection

    def _attach(self) -> socket.socket:
        connection = self._connect()
        try:
            self._say(connection, "MONITOR", b"+OK")
        except OSError:
            connection.close()
            raise
        connection.settimeout(None)
        return connection

    @staticmethod
    def _say(connection: socket.socket, command: str, expected: bytes) -> None:
        connection.sendall(command.encode() + b"\r\n")
        answer = b""
        while b"\n" not in answer:
            piece = connection.recv(1 if expected == b"+OK" else 4096)
            if not piece:
                raise OSError("the store hung up")
            answer += piece
        if not answer.startswith(expected):
            raise OSError("the store refused")

    def _run(self) -> None:
        while True:
            self._read()
            while not self._ending.wait(0.1):
                with contextlib.suppress(OSError):
                    self._connection = self._attach()
                    break
            else:
                return

    def _read(self) -> None:
        with self._connection as connection, contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                self._seen.add(piece)

    def catch_up(self) -> None:
        """Wait until all that the store was told before is seen, unless the store is gone."""
        with contextlib.suppress(OSError), self._connect() as connection:
            before = self.size
            self._say(connection, "PING", b"+PONG")
            deadline = time.monotonic() + 2
            while self.size == before and time.monotonic() < deadline:
                time.sleep(0.005)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.catch_up()
        self._ending.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
