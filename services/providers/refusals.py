"""What an upstream's error means to our caller: its status, its words, and whose credential was
at fault.

With the caller's own credential an error is passed on as it is. With the operator's, a fault of
that account must not look like the caller's: one-api and new-api disable a channel on 401 and on
words such as "balance" or "permission denied", so these become 429 or 503 in neutral words.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from services.core.errors import (
    GatewayError,
    ProtocolError,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from services.core.models import Credential

MAX_MESSAGE = 1000
_BAN_WORDS = re.compile(
    r"credit|balance|permission denied|organization has been disabled|your access was terminated"
    r"|violation of our policies|api key|quota|billing|deactivated|已欠费|suspended|insufficient",
    re.IGNORECASE,
)
_BAN_TYPES = {"insufficient_quota", "authentication_error", "permission_error", "forbidden"}
_BAN_CODES = {"invalid_api_key", "account_deactivated", "billing_not_active", "insufficient_quota"}
_PASSED_ON = {400, 404, 409, 413, 415, 422}


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, credential: Credential
) -> GatewayError:
    """The error for an upstream answer with an error `status`. `body` may be anything."""
    said = _read(body)
    message = _clean(said.message or f"the upstream answered {status}", credential)
    after = retry_after(headers)
    if status in _PASSED_ON or (credential.from_caller and status < 500 and status != 408):
        return UpstreamRefused(
            message,
            upstream_status=status,
            status=status,
            type=said.type or "invalid_request_error",
            code=said.code,
            param=said.param,
            retry_after=after,
        )
    if status in (401, 402, 403):
        return Unavailable("this model's upstream account cannot serve requests now")
    if status == 429:
        return RateLimited(
            _neutral(message, "the upstream is busy, retry later"), retry_after=after
        )
    if status in (408, 504, 524):
        return UpstreamTimeout(_neutral(message, "the upstream took too long"))
    return UpstreamRefused(
        _neutral(message, f"the upstream answered {status}"),
        upstream_status=status,
        status=503 if status in (503, 529) else 502,
        retry_after=after,
    )


def error_in_answer(answer: Mapping[str, Any]) -> GatewayError | None:
    """The error that a successful-looking JSON answer or chunk carries, if any."""
    error = answer.get("error")
    if not error:
        return None
    said = _read(msgspec.json.encode({"error": error}))
    message = _neutral(_trim(said.message), "the upstream reported an error")
    return UpstreamError(message, code=said.code if said.code not in _BAN_CODES else None)


def not_an_answer(content_type: str) -> ProtocolError:
    """For a 200 whose content is neither JSON nor an event stream, such as a login page."""
    kind = content_type.split(";")[0].strip() or "no content type"
    return ProtocolError(f"the upstream answered with {kind[:60]} instead of an answer")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (seconds or an HTTP date), at most a day."""
    try:
        if "retry-after-ms" in headers:
            return _bounded(float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        return _bounded(float(value)) if value else None
    except ValueError:
        parsed = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return _bounded(email.utils.mktime_tz(parsed) - time.time()) if parsed else None


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, 0.0), 86400.0) if seconds == seconds else None


class _Said(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | None = None
    param: str | None = None


def _read(body: bytes) -> _Said:
    """The readable part of an error body: OpenAI's, FastAPI's and a few relatives' shapes; never
    HTML.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:MAX_MESSAGE].decode("utf-8", "replace").strip()
        return _Said("" if text.startswith("<") or not text.isprintable() else text)
    if not isinstance(answer, dict):
        return _Said(answer if isinstance(answer, str) else "")
    error = answer.get("error") or answer.get("detail") or answer
    if not isinstance(error, dict):
        return _Said(str(error))
    message = next((error[k] for k in ("message", "msg", "error_msg", "error") if error.get(k)), "")
    return _Said(str(message), *(_text(error.get(key)) for key in ("type", "code", "param")))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:100]


def _trim(message: str) -> str:
    return " ".join(message.split())[:MAX_MESSAGE]


def _clean(message: str, credential: Credential) -> str:
    message = _trim(message)
    if credential.token is not None and len(credential.token.reveal()) >= 8:
        message = message.replace(credential.token.reveal(), "…")
    return message


def _neutral(message: str, instead: str) -> str:
    return instead if not message or _BAN_WORDS.search(message) else message
