"""gunicorn's workers: what both kinds share, and the threaded one."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from typing import Any

from gunicorn import util
from gunicorn.http import errors
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker

log = logging.getLogger(__name__)

LONG = 7 * 86400
"""Seconds: longer than any answer may take."""

_STATUS: dict[type[Exception], str] = {
    errors.LimitRequestLine: "414 URI Too Long",
    errors.LimitRequestHeaders: "431 Request Header Fields Too Large",
    errors.ExpectationFailed: "417 Expectation Failed",
    errors.UnsupportedTransferCoding: "501 Not Implemented",
    errors.ForbiddenProxyRequest: "403 Forbidden",
}
_OUR_FAULT = (
    errors.InvalidResponseHeader,
    errors.InvalidResponseHeaderName,
    errors.ConfigurationProblem,
)
_UNREADABLE = (
    b'{"error":{"message":"the request could not be read as http",'
    b'"type":"invalid_request_error","param":null,"code":"bad_request"}}'
)


class WorkerMixin(Worker):  # type: ignore[misc]  # gunicorn has no types
    """Adds to a worker of gunicorn's an end without a time limit, and an answer to what is no HTTP.

    `left_at` is `time.monotonic()` of `leave`, None before.
    """

    left_at: float | None = None

    def leave(self) -> None:
        """Accept no more connections, and end with the last answer, however long that takes."""
        self.left_at = time.monotonic()
        self._grace = self.cfg.graceful_timeout
        self.cfg.set("graceful_timeout", LONG)
        super().handle_exit(signal.SIGTERM, None)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: end within the grace period, also while leaving."""
        if self.left_at is not None:
            gone = int(time.monotonic() - self.left_at)
            self.cfg.set("graceful_timeout", gone + self._grace)
            self.left_at = None
        super().handle_exit(sig, frame)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that could not be read with OpenAI's error object.

        The stock answer and log line repeat what was sent, which may be a key in a line that lacks
        its colon. Other failures are gunicorn's.
        """
        if not isinstance(exc, errors.ParseException) or isinstance(exc, _OUR_FAULT):
            super().handle_error(req, client, addr, exc)
            return
        log.info("unreadable request client=%s reason=%s", (addr or [""])[0], type(exc).__name__)
        head = (
            f"HTTP/1.1 {_STATUS.get(type(exc), '400 Bad Request')}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(_UNREADABLE)}\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            util.write_nonblock(client, head.encode() + _UNREADABLE)


class ThreadedWorker(WorkerMixin, ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker."""
