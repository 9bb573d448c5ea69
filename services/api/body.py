"""Read a request's body within a size and a time."""

from __future__ import annotations

from typing import Any

from flask import Request

from services.core.errors import InvalidRequest


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"


def read_body(request: Request, seconds: float) -> bytes:
    """The whole body.

    Raises `BodyTooSlow`; werkzeug refuses one over `MAX_CONTENT_LENGTH` with a 413.
    """
    environ = request.environ
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        raise InvalidRequest(
            f"a body with content encoding {encoding[:20]} is not accepted: send it plain",
            status=415,
            code="unsupported_media_type",
        )
    try:
        with _deadline(environ.get("gunicorn.socket"), seconds):
            return request.get_data(cache=False)
    except TimeoutError as exc:
        raise BodyTooSlow(f"the request body did not arrive within {seconds:g} s") from exc


class _deadline:  # noqa: N801  # used like a function
    """Limits the reads of a `with` block: as a whole under gevent, each read elsewhere."""

    def __init__(self, connection: Any, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._timer: Any = None

    def __enter__(self) -> None:
        if self._connection is None:
            return
        if hasattr(self._connection, "_sock"):
            import gevent

            self._timer = gevent.Timeout.start_new(self._seconds, TimeoutError)
        else:
            self._connection.settimeout(self._seconds)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.close()
        elif self._connection is not None:
            self._connection.settimeout(None)
