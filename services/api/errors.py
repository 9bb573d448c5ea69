"""Every failure as JSON in OpenAI's shape, whoever raised it."""

from __future__ import annotations

import logging

from flask import Flask, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.exceptions import NotFound as UnknownPath

from services.core import errors
from services.dialects.errors import error_body, error_headers

log = logging.getLogger(__name__)


def register(app: Flask) -> None:
    """Install the handlers."""
    app.register_error_handler(errors.GatewayError, respond)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, unexpected)


def respond(error: errors.GatewayError) -> Response:
    return Response(
        error_body(error), error.status, error_headers(error), mimetype="application/json"
    )


def unexpected(error: Exception) -> Response:
    """A defect of ours: all of it to the log, none of it to the caller."""
    return respond(as_gateway_error(error))


def as_gateway_error(error: Exception) -> errors.GatewayError:
    """The error to show for any exception; defects are logged here, once."""
    if isinstance(error, errors.GatewayError):
        return error
    log.error("unexpected error", exc_info=error)
    return errors.GatewayError("an internal error occurred; the log has it under this request's id")


def _http_error(error: HTTPException) -> Response:
    response = respond(_from_http(error))
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _from_http(error: HTTPException) -> errors.GatewayError:
    match error:
        case UnknownPath():
            return errors.NotFound("there is no such path here")
        case MethodNotAllowed():
            return errors.MethodNotAllowed("this path does not take this method")
        case RequestEntityTooLarge():
            return errors.PayloadTooLarge("the request body is larger than this service accepts")
        case _:
            status = error.code or 500
            kind = errors.InvalidRequest if status < 500 else errors.GatewayError
            return kind(error.name.lower(), status=status)
