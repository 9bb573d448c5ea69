"""What gunicorn's workers answer to a request that is no HTTP.

The stock answer and log line repeat what was sent, which may be a key in a line that lacks its
colon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from typing import Any

from gunicorn import util
from gunicorn.http import errors

log = logging.getLogger(__name__)

_STATUS: dict[type[Exception], tuple[int, str]] = {
    errors.LimitRequestLine: (414, "URI Too Long"),
    errors.LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    errors.ExpectationFailed: (417, "Expectation Failed"),
    errors.UnsupportedTransferCoding: (501, "Not Implemented"),
    errors.ForbiddenProxyRequest: (403, "Forbidden"),
}
_OURS = (
    errors.InvalidResponseHeader,
    errors.InvalidResponseHeaderName,
    errors.ConfigurationProblem,
)


LONG = 7 * 86400
"""Seconds: longer than any answer may take."""


class WorkerMixin:
    """For both kinds of worker. `left_at` is `time.monotonic()` of `leave`, None before."""

    cfg: Any
    left_at: float | None = None

    def leave(self) -> None:
        """Accept no more connections, and end with the last answer, however long that takes."""
        self.left_at = time.monotonic()
        self._grace = self.cfg.graceful_timeout
        self.cfg.set("graceful_timeout", LONG)
        super().handle_exit(signal.SIGTERM, None)  # type: ignore[misc]  # the worker's

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: end within the grace period, also while leaving."""
        if self.left_at is not None:
            gone = int(time.monotonic() - self.left_at)
            self.cfg.set("graceful_timeout", gone + self._grace)
            self.left_at = None
        super().handle_exit(sig, frame)  # type: ignore[misc]  # the worker's

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that could not be read with OpenAI's error object; leave all other
        failures to gunicorn.
        """
        if not isinstance(exc, errors.ParseException) or isinstance(exc, _OURS):
            super().handle_error(req, client, addr, exc)  # type: ignore[misc]  # the worker's
            return
        status, reason = _STATUS.get(type(exc), (400, "Bad Request"))
        log.info("unreadable request client=%s reason=%s", (addr or [""])[0], type(exc).__name__)
        with contextlib.suppress(OSError):
            util.write_nonblock(client, _answer(status, reason))


def _answer(status: int, reason: str) -> bytes:
    error = {
        "message": "the request could not be read as http",
        "type": "invalid_request_error",
        "param": None,
        "code": "bad_request",
    }
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
