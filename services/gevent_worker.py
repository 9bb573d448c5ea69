"""gunicorn's gevent worker, with two things mended.

A stop need not wait for idle connections: the stock worker treats a kept-alive connection between
two requests as busy, so that a stop or reload lasts as long as `graceful_timeout` allows.
An answer's headers leave together with the beginning of its body: the stock worker sends them
apart, which costs a system call, and a wake-up of the client, for each answer.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker

from services.bad_heads import BadHeads


class Idle:
    """The wait for a connection's next request: ends after `seconds`, or when the worker stops."""

    def __init__(self, waiting: set[Idle], seconds: float) -> None:
        self._waiting = waiting
        self._greenlet = gevent.getcurrent()
        self._timer = gevent.Timeout(seconds, False)

    def __enter__(self) -> None:
        self._waiting.add(self)
        self._timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._waiting.discard(self)
        self._timer.close()
        return error is self._timer

    def end(self) -> None:
        """Let the wait end now, as if its time were up."""
        gevent.get_hub().loop.run_callback(self._greenlet.throw, self._timer)


class Joined:
    """A client's socket that holds back the first thing sent, the headers, for what follows."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._held: bytes | None = None
        self._began = False
        self._sock = connection._sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendall(self, data: bytes) -> None:
        if not self._began:
            self._began = True
            self._held = data
            return
        if self._held is not None:
            data, self._held = self._held + data, None
        # gevent's sendall asks for the size of the socket's buffer first; send mostly suffices
        sent = self._connection.send(data)
        if sent < len(data):
            self._connection.sendall(memoryview(data)[sent:])

    def sendfile(self, *arguments: Any, **options: Any) -> Any:
        self.flush()
        return self._connection.sendfile(*arguments, **options)

    def flush(self) -> None:
        """Send what is held: an answer without a body is all headers."""
        self._began = True
        if self._held is not None:
            held, self._held = self._held, None
            self._connection.sendall(held)


class Worker(BadHeads, GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Closes idle connections when it is told to stop; open requests finish as before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting: set[Idle] = set()

    def timeout_ctx(self) -> Idle:
        return Idle(self._waiting, self.cfg.keepalive)

    def notify(self) -> None:
        """Called every second, also while stopping."""
        super().notify()
        if not self.alive:
            for idle in tuple(self._waiting):
                idle.end()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        if not hasattr(sock, "_sock"):  # TLS has its own framing
            return super().handle_request(listener_name, req, sock, addr)
        joined = Joined(sock)
        try:
            return super().handle_request(listener_name, req, joined, addr)
        finally:
            joined.flush()
