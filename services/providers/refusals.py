"""What an upstream's error means to our caller: its status, its words, and whose credential was
at fault.

With the caller's own credential an error is passed on as it is. With the operator's, a fault of
that account must not look like the caller's: one-api and new-api disable a channel on 401 and on
words such as "balance" or "permission denied", so these become 429 or 503 in neutral words.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec

from services.core.errors import (
    GatewayError,
    ProtocolError,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from services.core.models import Credential

MAX_MESSAGE = 1000
MAX_TEXT = 16 * 1024
_BAN_WORDS = re.compile(
    r"credit|balance|permission denied|organization has been disabled|your access was terminated"
    r"|violation of our policies|api key|quota|billing|deactivated|已欠费|suspended|insufficient"
    r"|security token|operation not allowed|not authorized",
    re.IGNORECASE,
)
_BAN_TYPES = {"insufficient_quota", "authentication_error", "permission_error", "forbidden"}
_BAN_CODES = {"invalid_api_key", "account_deactivated", "billing_not_active", "insufficient_quota"}
_MARKUP = re.compile(r"<!doctype|<html|<head|<body", re.IGNORECASE)
_PASSED_ON = {400, 404, 409, 413, 415, 422}


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, credential: Credential
) -> GatewayError:
    """The error for an upstream answer with an error `status`. `body` may be anything."""
    said = _read(body, credential)
    message = clean(said.message or f"the upstream answered {status}", credential)
    after = retry_after(headers)
    if status in _PASSED_ON or (credential.from_caller and status < 500 and status != 408):
        if not credential.from_caller:
            said, message = _harmless(said), _neutral(message, "the upstream refused the request")
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
        return UpstreamRefused(
            "this model's upstream account cannot serve requests now",
            upstream_status=status,
            status=503,
            type="service_unavailable_error",
            code="unavailable",
        )
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


def error_in_answer(answer: Mapping[str, Any], credential: Credential) -> GatewayError | None:
    """The error that a successful-looking JSON answer or chunk carries, if any."""
    error = answer.get("error")
    if not error:
        return None
    said = _read(msgspec.json.encode({"error": error}), credential)
    message = _neutral(clean(said.message, credential), "the upstream reported an error")
    return UpstreamError(message, code=_harmless(said).code)


def not_an_answer(content_type: str) -> ProtocolError:
    """For a 200 whose content is neither JSON nor an event stream, such as a login page."""
    kind = content_type.split(";")[0].strip() or "no content type"
    return ProtocolError(f"the upstream answered with {kind[:60]} instead of an answer")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (seconds or an HTTP date), at most a day."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    seconds = _number(headers.get("retry-after", ""))
    if milliseconds is not None:
        seconds = milliseconds / 1000
    if seconds is None:
        seconds = _seconds_until(headers.get("retry-after", ""))
    return None if seconds is None else min(max(seconds, 0.0), 86400.0)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _seconds_until(date: str) -> float | None:
    try:
        parsed = email.utils.parsedate_to_datetime(date)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


class _Said(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | None = None
    param: str | None = None


def _read(body: bytes, credential: Credential) -> _Said:
    """The readable part of an error body: OpenAI's, FastAPI's and a few relatives' shapes; never
    HTML, and never the credential in the short fields.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:MAX_TEXT].decode("utf-8", "replace").strip()
        return _Said("" if text.startswith("<") or not text.isprintable() else text)
    if not isinstance(answer, dict):
        return _Said(answer if isinstance(answer, str) else "")
    error = answer.get("error") or answer.get("detail") or answer
    if not isinstance(error, dict):
        return _Said("" if _MARKUP.search(str(error)) else str(error))
    message = next((error[k] for k in ("message", "msg", "error_msg", "error") if error.get(k)), "")
    message = "" if _MARKUP.search(str(message)) else str(message)
    return _Said(message, *(_text(error.get(k), credential) for k in ("type", "code", "param")))


def _harmless(said: _Said) -> _Said:
    """Without a type or code that bans a channel."""
    return _Said(
        said.message,
        None if said.type in _BAN_TYPES else said.type,
        None if said.code in _BAN_CODES else said.code,
        said.param,
    )


def _text(value: Any, credential: Credential) -> str | None:
    return None if value is None else clean(str(value), credential)[:100]


def clean(message: str, credential: Credential) -> str:
    """An upstream's words on one line and cut to size, but only after the token is out: half of one
    is one too many.
    """
    if credential.token is not None and len(credential.token.reveal()) >= 8:
        message = message.replace(credential.token.reveal(), "…")
    return " ".join(message.split())[:MAX_MESSAGE]


def _neutral(message: str, instead: str) -> str:
    return instead if not message or _BAN_WORDS.search(message) else message
