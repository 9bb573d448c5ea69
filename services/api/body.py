"""Read a request's body within a size and a time."""

from __future__ import annotations

from typing import Any

from flask import Request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from services.core.errors import InvalidRequest, UnsupportedMedia


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("the request body did not arrive in time")


def read_body(request: Request, seconds: float) -> bytes:
    """The whole body.

    Raises `BodyTooSlow`, and `RequestEntityTooLarge` for one over `MAX_CONTENT_LENGTH`.
    """
    environ = request.environ
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("a body with a content encoding is not accepted: send it plain")
    connection = environ.get("gunicorn.socket")
    if hasattr(connection, "_sock"):
        body = _read_under_gevent(request, seconds)
    else:
        body = _read_in_a_thread(request, connection, seconds)
    limit = request.max_content_length
    if limit is not None and request.content_length is None and len(body) >= limit:
        raise RequestEntityTooLarge  # werkzeug cuts a chunked body at the limit and says nothing
    return body


def _read_under_gevent(request: Request, seconds: float) -> bytes:
    """Limit the whole of the reading."""
    import gevent

    timer = gevent.Timeout.start_new(seconds, BodyTooSlow)
    try:
        return _whole(request)
    finally:
        timer.close()


def _whole(request: Request) -> bytes:
    """What `get_data` gives, without its layers, for a body whose length is told."""
    environ, limit = request.environ, request.max_content_length
    told = environ.get("CONTENT_LENGTH", "")
    if not told.isdecimal():  # the server has checked it; this one comes in chunks
        return request.get_data(cache=False)
    length = int(told)
    if limit is not None and length > limit:
        raise RequestEntityTooLarge
    body: bytes = environ["wsgi.input"].read(length)
    if len(body) < length:
        raise ClientDisconnected
    return body


def _read_in_a_thread(request: Request, connection: Any, seconds: float) -> bytes:
    """Limit each read: a thread cannot be interrupted. werkzeug takes the timeout for a hang-up."""
    if connection is None:
        return request.get_data(cache=False)
    connection.settimeout(seconds)
    try:
        return request.get_data(cache=False)
    except ClientDisconnected as exc:
        raise BodyTooSlow from exc
    finally:
        connection.settimeout(None)
