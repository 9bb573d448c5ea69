"""Error answers of `openai_compat`, in OpenAI's words and in other vendors' shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from .openai_answer import dumps
from .openai_markers import STATUSES, Markers

HTML = (
    "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head>"
    "<body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body></html>\n"
)
# status: message, type, param, code
ERRORS: dict[int, tuple[str, str, str | None, str | None]] = {
    400: ("Invalid value for 'temperature'.", "invalid_request_error", "temperature", None),
    401: ("Incorrect API key provided.", "invalid_request_error", None, "invalid_api_key"),
    403: ("You are not allowed to use this model.", "permission_error", None, "not_allowed"),
    404: ("The model does not exist.", "invalid_request_error", "model", "model_not_found"),
    409: ("The resource is being changed.", "conflict_error", None, "conflict"),
    413: ("The request is too large.", "invalid_request_error", None, "request_too_large"),
    422: ("The request cannot be processed.", "invalid_request_error", "messages", None),
    429: ("Rate limit reached, try again.", "rate_limit_error", None, "rate_limit_exceeded"),
    500: ("The server had an error.", "server_error", None, None),
    502: ("Bad gateway.", "server_error", None, "bad_gateway"),
    503: ("The engine is overloaded.", "service_unavailable_error", None, "server_is_overloaded"),
    529: ("Overloaded.", "overloaded_error", None, "overloaded"),
}
RETRY_AFTER = 7  # seconds
JSON = "application/json"


@dataclass(frozen=True)
class Whole:
    """A whole answer: status, body, media type, headers."""

    status: int
    body: str
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def error_body(message: str, type: str, param: str | None = None, code: str | None = None) -> str:
    return dumps({"error": {"message": message, "type": type, "param": param, "code": code}})


def refusal(status: int, message: str | None = None, param: str | None = None) -> Whole:
    """OpenAI's error answer for a status; `message` and `param` replace the usual ones."""
    text, kind, usual, code = ERRORS[status]
    return Whole(status, error_body(message or text, kind, param or usual, code))


def chosen(markers: Markers) -> Whole | None:
    """The error answer that the markers ask for, if they ask for one."""
    for status in STATUSES:
        if str(status) in markers:
            return _with_retry(refusal(status), markers[str(status)])
    if "error-string" in markers:
        return Whole(int(markers["error-string"] or 400), dumps({"error": "upstream said no"}))
    if "error-200" in markers:
        return Whole(200, refusal(500).body)
    if "context" in markers:
        return Whole(400, _context_error())
    if "quota" in markers:
        text = "You exceeded your current quota, please check your plan and billing details."
        return Whole(429, error_body(text, "insufficient_quota", None, "insufficient_quota"))
    for status, name in ((200, "html200"), (502, "html502")):
        if name in markers:
            return Whole(status, HTML, "text/html")
    return None


def _with_retry(answer: Whole, seconds: float | None) -> Whole:
    if answer.status != 429 and seconds is None:
        return answer
    headers = {"Retry-After": f"{seconds or RETRY_AFTER:g}"}
    return Whole(answer.status, answer.body, answer.content_type, headers)


def _context_error() -> str:
    text = "This model's maximum context length is 4096 tokens, your messages have 5000."
    return error_body(text, "invalid_request_error", "messages", "context_length_exceeded")
