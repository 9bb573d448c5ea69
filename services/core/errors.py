"""Every failure a caller can see, as one tree.

GatewayError                      500  what went wrong, as an HTTP status and OpenAI's error object
├── InvalidRequest                400  the caller's request is wrong; `param` names the field
│   ├── PayloadTooLarge           413
│   └── UnsupportedMedia          415
├── Unauthorized                  401  no key, or a key that this gateway does not know
├── PermissionDenied              403  the key may not do this
├── NotFound                      404
│   └── ModelNotFound             404  no provider serves this model
├── MethodNotAllowed              405
├── RateLimited                   429  ours or an upstream's limit; `retry_after` in seconds
│   └── KeyLimitReached           429  a limit of the caller's own key
├── Unavailable                   503  nothing can serve this now; another channel might
├── NotSupported                  501  a thing this provider's upstream does not offer
└── UpstreamError                 502  the upstream failed
    ├── UpstreamRefused           any  it answered with an error status, mapped for the caller
    ├── UpstreamUnreachable       502  no connection, name or TLS session
    ├── UpstreamTimeout           503  too slow: never 504, which new-api does not retry
    └── ProtocolError             502  it spoke nonsense, or stopped without its end mark

one-api bans a channel on 401 and on certain words; it retries 429 and 5xx, never 400.
"""

from __future__ import annotations

from collections.abc import Mapping


class GatewayError(Exception):
    """A failure with an HTTP status and OpenAI's `message`, `type`, `code`, `param`.

    `message` is for the caller: lower case, no secrets, no upstream HTML.
    `retry_after` is in seconds. `headers` go out with the answer.
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.code
        self.type = type if type is not None else self.type
        self.status = status if status is not None else self.status
        self.retry_after = retry_after
        self.headers = dict(headers or {})


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class Unauthorized(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(GatewayError):
    status = 403
    type = "invalid_request_error"
    code = "not_allowed"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class KeyLimitReached(RateLimited):
    """No other model or account would help."""


class Unavailable(GatewayError):
    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class NotSupported(GatewayError):
    status = 501
    type = "invalid_request_error"
    code = "not_supported"


class UpstreamError(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamRefused(UpstreamError):
    """The upstream answered with an error status; `upstream_status` is that status, `status` the
    caller's.
    """

    def __init__(self, message: str, *, upstream_status: int, status: int, **rest: object) -> None:
        super().__init__(message, status=status, **rest)  # type: ignore[arg-type]  # keywords pass through
        self.upstream_status = upstream_status


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    status = 503
    code = "upstream_timeout"


class ProtocolError(UpstreamError):
    code = "upstream_protocol_error"
