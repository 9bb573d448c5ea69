"""A threaded HTTP/1.1 server whose handlers control every byte, for emulators.

    def handler(request: Request, reply: Reply) -> None:
        reply.start(200, {"Content-Type": "text/event-stream"})  # chunked, or framing=, length=
        reply.write(b"data: 1\\n\\n")
        if reply.hang(5):  # False at once when the peer leaves
            reply.cut()

    with HttpServer(handler) as server:
        requests.get(server.url)
        server.exchanges[-1].aborted_at

All times are `time.monotonic()` seconds. An answer without `end()` ends when its handler returns.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Self

from .http_reply import Exchange, PeerGone, Reply, shutdown
from .http_request import BadRequest, Headers, Reader, Request, read_request

__all__ = ["Exchange", "Handler", "Headers", "HttpServer", "PeerGone", "Reply", "Request"]

Handler = Callable[[Request, Reply], None]
STACK = 256 * 1024
BACKLOG = 512
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


class HttpServer:
    """Serves `handler` on a thread per connection. Port 0 takes a free one; `port` has it."""

    def __init__(
        self, handler: Handler, host: str = "127.0.0.1", port: int = 0, log_size: int = 2000
    ) -> None:
        self.handler = handler
        self._listener = socket.create_server((host, port), backlog=BACKLOG)
        self._listener.settimeout(0.5)
        self.host: str = host
        self.port: int = self._listener.getsockname()[1]
        self._log: deque[Exchange] = deque(maxlen=log_size)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._count = 0
        self._stopping = threading.Event()
        self._acceptor: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._open)

    @property
    def exchanges(self) -> list[Exchange]:
        """The latest exchanges, oldest first; those still running are included."""
        with self._lock:
            return list(self._log)

    def clear(self) -> None:
        """Forget the logged exchanges."""
        with self._lock:
            self._log.clear()

    def wait(self, condition: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Whether `condition` comes true within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def start(self) -> Self:
        """Serve in the background."""
        self._acceptor = threading.Thread(target=self.serve_forever, daemon=True)
        self._acceptor.start()
        return self

    def serve_forever(self) -> None:
        """Serve in this thread until `stop()`."""
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                break
            self._spawn(sock)

    def stop(self) -> None:
        """Close everything; running handlers see their peer gone."""
        self._stopping.set()
        shutdown(self._listener)
        if self._acceptor is not None:
            self._acceptor.join(2)
        self._listener.close()
        with self._lock:
            threads = list(self._open.items())
        deadline = time.monotonic() + 2
        for sock, _ in threads:
            shutdown(sock)
        for _, thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _spawn(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(target=self._connection, args=(sock,), daemon=True)
        with self._lock:
            self._open[sock] = thread
        before = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)

    def _connection(self, sock: socket.socket) -> None:
        reader = Reader(sock)
        try:
            while self._exchange(sock, reader):
                pass
        except (EOFError, OSError):
            pass  # the peer closed between two requests
        except BadRequest as exc:
            with contextlib.suppress(OSError):
                sock.sendall(REFUSAL + str(exc).encode())
        finally:
            sock.close()
            with self._lock:
                self._open.pop(sock, None)

    def _exchange(self, sock: socket.socket, reader: Reader) -> bool:
        """Serve one request; whether the connection can carry another."""
        exchange = self._record(read_request(reader, sock))
        reply = Reply(sock, reader, exchange)
        try:
            self.handler(exchange.request, reply)
            self._complete(reply)
        except PeerGone:
            return False
        except Exception:  # a broken script must show in the test, not as a hung client
            exchange.error = traceback.format_exc()
            self._fail(reply)
        finally:
            if self._stopping.is_set():
                exchange.aborted_at = None
            exchange.finished_at = time.monotonic()
        return reply.keep_alive and not reply.closed

    def _record(self, request: Request) -> Exchange:
        with self._lock:
            self._count += 1
            exchange = Exchange(request, self._count)
            self._log.append(exchange)
        return exchange

    @staticmethod
    def _complete(reply: Reply) -> None:
        if not reply.started and not reply.closed:
            raise RuntimeError("the handler sent no answer")
        reply.end()

    @staticmethod
    def _fail(reply: Reply) -> None:
        reply.keep_alive = False
        if reply.started:
            reply.cut()
        else:
            with contextlib.suppress(PeerGone):
                reply.send(500, reply.exchange.error)
