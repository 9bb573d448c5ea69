"""The thread behind one exchange of the requests transport.

A blocking read cannot report silence, so a thread does the blocking and hands over what came.
"""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Mapping
from time import monotonic

from requests import PreparedRequest, RequestException, Response
from urllib3.exceptions import HTTPError

from services.core.errors import GatewayError, ProtocolError, UpstreamUnreachable
from services.transport.base import NO_HEADERS, Timeouts
from services.transport.clock import (
    STALE_WINDOW,
    Clock,
    connect_timeout,
    send_timeout,
    total_timeout,
)
from services.transport.reason import reason
from services.transport.route import Route
from services.transport.watched import Watched, WatchedAdapter, watcher

READ_SIZE = 65536
# Bytes held for a slow consumer before the upstream has to wait.
HIGH_WATER = 4 * READ_SIZE


class Reader(threading.Thread):
    """Sends, reads, and reports under `changed`, whose holder may look at the attributes.

    `is_connected`, `is_sent`: how far the request has got. `status`, `headers`: the answer's,
    once it has begun. `over`: nothing more will come, and either all was `complete` or `failure`
    says why not.
    """

    def __init__(
        self,
        adapter: WatchedAdapter,
        request: PreparedRequest,
        proxies: dict[str, str],
        limits: Timeouts,
        clock: Clock,
        route: Route,
    ) -> None:
        super().__init__(name=f"upstream-{route.origin}", daemon=True)
        self._adapter = adapter
        self._request = request
        self._proxies = proxies
        self.limits = limits
        self._clock = clock
        self.route = route
        self.changed = threading.Condition()
        self.is_connected = self.is_sent = self.over = self.complete = False
        self.status = 0
        self.headers: Mapping[str, str] = NO_HEADERS
        self.failure: GatewayError | None = None
        self.wants_fresh = False
        self.send_seconds = min(limits.first_byte, limits.total)
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._connection: Watched | None = None
        self._reused = self._answered = self._stopped = False

    # For the exchange's consumer; hold `changed`.

    def take(self) -> bytes:
        """Return all body that has come."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        if self._held >= HIGH_WATER:
            self.changed.notify_all()
        self._held = 0
        return body

    @property
    def has_body(self) -> bool:
        return bool(self._pieces)

    def stop(self) -> None:
        """Shut the socket under the thread, which then ends."""
        self._stopped = True
        self.changed.notify_all()
        if self._connection is not None and not self.complete:
            self._connection.shut(self)

    # For the connection; called in this thread.

    def connected(self, connection: Watched, *, reused: bool) -> None:
        with self.changed:
            self._connection, self._reused = connection, reused
            self.is_connected = True
            self.changed.notify_all()
            if self._stopped:
                connection.shut(self)

    def sent(self) -> None:
        with self.changed:
            self._clock.sent()
            self.is_sent = True
            self.changed.notify_all()

    def answered(self) -> None:
        self._answered = True

    # The thread.

    def run(self) -> None:
        watcher.set(self)
        try:
            self._converse()
        except (RequestException, HTTPError, http.client.HTTPException, OSError) as exc:
            self.failure = self._explain(_root(exc))
        finally:
            with self.changed:
                self.over = True
                self.changed.notify_all()

    def _converse(self) -> None:
        with self._send() as response:
            with self.changed:
                self.headers = {k.lower(): v for k, v in response.raw.headers.itermerged()}
                self.status = response.status_code
                self.changed.notify_all()
            # read1: raw.stream() holds an answer without chunks back until its end.
            while piece := response.raw.read1(READ_SIZE, decode_content=False):
                if not self._put(piece):
                    return
            self.complete = True

    def _send(self) -> Response:
        try:
            return self._send_once()
        except (RequestException, HTTPError, OSError):
            if not self._is_stale():
                raise
        self.wants_fresh = True
        self.is_connected = False
        return self._send_once()

    def _send_once(self) -> Response:
        return self._adapter.send(
            self._request,
            stream=True,
            timeout=(self.limits.connect, self.limits.total),
            proxies=self._proxies,
        )

    def _is_stale(self) -> bool:
        return (
            self._reused
            and not self._answered
            and not self._stopped
            and monotonic() - self._clock.sent_at < STALE_WINDOW
        )

    def _put(self, piece: bytes) -> bool:
        """Hand over; wait while the consumer has enough. False when nobody wants more."""
        with self.changed:
            self._pieces.append(piece)
            self._held += len(piece)
            self.changed.notify_all()
            self.changed.wait_for(
                lambda: self._held < HIGH_WATER or self._stopped, self.limits.total
            )
            return self._held < HIGH_WATER and not self._stopped

    def _explain(self, cause: BaseException) -> GatewayError:
        """Put the failure in our terms. Only the innermost cause goes along: what requests and
        urllib3 wrap around it repeats the URL."""
        failure = self._failure_for(cause)
        failure.__cause__ = cause
        return failure

    def _failure_for(self, cause: BaseException) -> GatewayError:
        limits = self.limits
        if isinstance(cause, TimeoutError):
            if not self.is_connected:
                return connect_timeout(limits)
            if not self.is_sent:
                return send_timeout(limits)
            return total_timeout(limits)
        if not self.is_connected:
            return UpstreamUnreachable(f"cannot connect to the upstream: {reason(cause)}")
        if not self._answered:
            why = reason(cause)
            return ProtocolError(f"the upstream broke the connection without an answer: {why}")
        if isinstance(cause, http.client.IncompleteRead):
            return ProtocolError("the upstream closed the connection within its answer")
        if isinstance(cause, OSError):
            why = reason(cause)
            return ProtocolError(f"the connection to the upstream broke within its answer: {why}")
        return ProtocolError("the upstream does not speak http/1.1 correctly")


def _root(exc: BaseException) -> BaseException:
    """Return the innermost cause of what requests or urllib3 raised."""
    while True:
        inner = [getattr(exc, "reason", None), getattr(exc, "socket_err", None), *exc.args]
        inner += [exc.__cause__, exc.__context__]
        cause = next((each for each in inner if isinstance(each, BaseException)), None)
        if cause is None:
            return exc
        exc = cause
