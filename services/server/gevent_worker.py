"""gunicorn's gevent worker, with three differences.

`threads` limits the requests that are served at a time, as in the threaded worker, and not the
connections: an idle one takes no place, and a health probe waits for none.
A stop does not wait for idle connections, which the stock worker treats as busy.
An answer's headers leave together with the beginning of its body: sent apart they cost a system
call, and a wake-up of the client, for each answer.
"""

from __future__ import annotations

import select
import time
from functools import partial
from types import TracebackType
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from services.server.workers import WorkerMixin

LINGER = 2.0
"""Seconds for which a connection that is open may bring a request to a worker that leaves."""

PROBES = frozenset({"/health", "/healthz", "/ready"})
"""Paths that are answered however many requests are being served."""

LOOK_EVERY = 0.025
LOOKS = 4
MOST_LEFT = 128
"""A worker that serves all it may takes new connections after so many looks, so many seconds apart,
if each has found one; the third is how many at most."""


class Worker(WorkerMixin, GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Serves as many requests at a time as `threads` says; the others wait.

    `idle` are the waits for a request, `between` counts those that are not a connection's first.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle: set[Idle] = set()
        self.between = 0
        self._places = BoundedSemaphore(self.cfg.threads)

    def server_class(self, listener: Any, *, spawn: Any, **_: Any) -> StreamServer:
        """What takes connections of `listener`; `GeventWorker.run` makes and starts it."""
        handle = partial(self.handle, listener)
        if self.cfg.workers == 1:
            return StreamServer(listener, handle, spawn=spawn)
        return Listener(self, listener, handle, spawn=spawn)

    def timeout_ctx(self) -> Idle:
        """Surrounds gunicorn's wait for a connection's next request."""
        return Idle(self)

    def notify(self) -> None:
        """Called every second, also while stopping: close idle connections then."""
        super().notify()
        if not self.alive and (self.left_at is None or time.monotonic() - self.left_at > LINGER):
            for idle in self.idle:
                idle.end()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Serve a request once there is a place for it."""
        joined = HeadersWithBody(sock)
        try:
            if req.path in PROBES:
                return super().handle_request(listener_name, req, joined, addr)
            with self._places:
                return super().handle_request(listener_name, req, joined, addr)
        finally:
            joined.flush()


class Listener(StreamServer):  # type: ignore[misc]  # gevent has no types
    """Takes connections one by one, among other workers. While its worker serves all it may, it
    takes what the others have left for some looks, few at first: probes are answered though all
    are full.
    """

    max_accept = 1

    def __init__(self, worker: Worker, *arguments: Any, **options: Any) -> None:
        self._worker = worker
        self._later: Any = None
        self._looks = 0
        self._share = 1
        super().__init__(*arguments, **options)

    def _is_full(self) -> bool:
        """A new connection counts as a request: it will bring one."""
        return bool(len(self.pool) - self._worker.between >= self._worker.cfg.threads)

    def _do_read(self) -> None:
        """Called when a connection waits."""
        if not self._is_full():
            super()._do_read()
            return
        self.stop_accepting()
        if self._later is None:
            self._later = self.loop.timer(LOOK_EVERY)
            self._later.start(self._look)

    def _look(self) -> None:
        self._later.close()
        self._later = None
        if not self.started:
            return
        self._looks = self._looks + 1 if self._is_full() and self._is_asked() else 0
        if self._looks == LOOKS:
            self._looks = 0
            self.max_accept, self._share = self._share, min(2 * self._share, MOST_LEFT)
            super()._do_read()
            self.max_accept = 1
        elif not self._looks:
            self._share = 1
        self.start_accepting()

    def _is_asked(self) -> bool:
        """Whether a connection waits to be taken."""
        poll = get_original("select", "poll")()
        poll.register(self.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class Idle(gevent.Timeout):  # type: ignore[misc]  # gevent has no types
    """The wait for a connection's next request: ends with the keep-alive time, or by `end`."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.cfg.keepalive, False)
        self._worker = worker
        self._greenlet = gevent.getcurrent()
        self._is_between = hasattr(self._greenlet, "has_asked")

    def __enter__(self) -> Idle:
        self._worker.idle.add(self)
        self._worker.between += self._is_between
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._worker.idle.discard(self)
        self._worker.between -= self._is_between
        self._greenlet.has_asked = True
        self.close()
        return error is self

    def end(self) -> None:
        """Let the wait end soon, unless a request comes first."""
        gevent.get_hub().loop.run_callback(self._end)

    def _end(self) -> None:
        if self in self._worker.idle:
            self._greenlet.throw(self)


class HeadersWithBody:
    """A client's socket that holds back what is sent first, the headers, for what follows."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._sock = connection._sock
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendall(self, data: bytes) -> None:
        if self._held is None:
            self._held = data
            return
        if self._held:
            data, self._held = self._held + data, b""
        # gevent's sendall asks for the size of the socket's buffer first; send mostly suffices
        sent = self._connection.send(data)
        if sent < len(data):
            self._connection.sendall(memoryview(data)[sent:])

    def sendfile(self, *arguments: Any, **options: Any) -> Any:
        self.flush()
        return self._connection.sendfile(*arguments, **options)

    def flush(self) -> None:
        """Send what is held: an answer without a body is all headers."""
        if self._held:
            held, self._held = self._held, b""
            self._connection.sendall(held)
