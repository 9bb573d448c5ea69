"""gunicorn's gevent worker, with three things mended.

`threads` limits the requests that are served at a time, as in the threaded worker, and not the
connections: an idle one takes nobody's place, and a probe of the service's health waits for none.
A stop need not wait for idle connections: the stock worker treats a kept-alive connection between
two requests as busy, so that a stop or reload lasts as long as `graceful_timeout` allows.
An answer's headers leave together with the beginning of its body: the stock worker sends them
apart, which costs a system call, and a wake-up of the client, for each answer.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from services.bad_heads import WorkerMixin

LINGER = 2.0
"""Seconds for which a connection that is open may bring a request to a worker that leaves."""

PROBES = frozenset({"/health", "/healthz", "/ready"})
"""Paths that are answered however many requests are being served."""

LOOK_EVERY = 0.025
LOOKS = 4
MOST_LEFT = 128
"""A worker that serves all it may takes new connections after so many looks, so many seconds apart,
if each has found one; the third is how many at most."""


class Idle:
    """The wait for a connection's next request: ends after `seconds`, or when the worker stops."""

    def __init__(self, worker: Worker, seconds: float) -> None:
        self._worker = worker
        self._greenlet = gevent.getcurrent()
        self._timer = gevent.Timeout(seconds, False)
        self._is_between = getattr(self._greenlet, "has_asked", False)

    def __enter__(self) -> None:
        self._worker.waiting.add(self)
        self._worker.between += self._is_between
        self._timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._worker.waiting.discard(self)
        self._worker.between -= self._is_between
        self._timer.close()
        self._greenlet.has_asked = True
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


class Listener(StreamServer):  # type: ignore[misc]  # gevent has no types
    """Takes connections one by one, among other workers. While this one `is_full` it takes what
    the others have left for some looks, few at first: probes are answered though all are full.
    """

    max_accept = 1

    def __init__(self, is_full: Callable[[], bool], *arguments: Any, **options: Any) -> None:
        self._is_full = is_full
        self._later: Any = None
        self._looks = 0
        self._share = 1
        super().__init__(*arguments, **options)

    def _do_read(self) -> None:
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


class Worker(WorkerMixin, GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Serves as many requests at a time as `threads` says; the others wait. Closes idle connections
    when it is told to stop; open requests finish as before.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting: set[Idle] = set()
        self.between = 0
        """Connections between two requests."""
        self._connections = 0
        self._places = BoundedSemaphore(self.cfg.threads)

    def server_class(self, listener: Any, *, spawn: Any, **options: Any) -> StreamServer:
        """What takes connections of `listener`; `GeventWorker.run` makes and starts it."""
        tls = {name: options[name] for name in ("ssl_context",) if name in options}
        handle = partial(self.handle, listener)
        if self.cfg.workers == 1:
            return StreamServer(listener, handle, spawn=spawn, **tls)
        return Listener(self._is_full, listener, handle, spawn=spawn, **tls)

    def _is_full(self) -> bool:
        """Whether the places are taken, or will be when those who have connected have asked."""
        return bool(self._connections - self.between >= self.cfg.threads)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        self._connections += 1
        try:
            super().handle(listener, client, addr)
        finally:
            self._connections -= 1

    def timeout_ctx(self) -> Idle:
        return Idle(self, self.cfg.keepalive)

    def notify(self) -> None:
        """Called every second, also while stopping."""
        super().notify()
        if not self.alive and (self.left_at is None or time.monotonic() - self.left_at > LINGER):
            for idle in tuple(self.waiting):
                idle.end()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        if req.path in PROBES:
            return self._serve(listener_name, req, sock, addr)
        with self._places:
            return self._serve(listener_name, req, sock, addr)

    def _serve(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        if not hasattr(sock, "_sock"):  # TLS has its own framing
            return super().handle_request(listener_name, req, sock, addr)
        joined = Joined(sock)
        try:
            return super().handle_request(listener_name, req, joined, addr)
        finally:
            joined.flush()
