"""What this upstream's errors mean: `{"detail": …}` with a code, a string or a list; HTML pages;
and an `error` within a stream.

A fault of the account keeps its `upstream_status` (401: the token can be renewed). With the
operator's account it is told in neutral words and as 503, since gateways in front of us disable a
channel on 401 and on certain words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.core.errors import GatewayError, RateLimited, UpstreamError, UpstreamRefused
from services.core.models import Credential
from services.providers.refusals import clean, refusal, retry_after

_ACCOUNT_CODES = {"account_deactivated", "token_expired", "token_invalidated", "user_deactivated"}
_LIMIT_CODES = {"model_cap_exceeded", "rate_limit_exceeded", "usage_limit_reached"}
_ACCOUNT_STATUSES = {401, 402, 403, 418}
_LONGEST_WAIT = 86400.0


class _Detail(msgspec.Struct):
    code: str | None = None
    clears_in: float | None = None


class _Body(msgspec.Struct):
    detail: _Detail | str | list[Any] | None = None
    error: _Detail | str | list[Any] | None = None


def refused(
    status: int, headers: Mapping[str, str], body: bytes, credential: Credential
) -> GatewayError:
    """The error for an answer that is none. `status` may be 200: some errors come so."""
    detail = _detail(body)
    if status == 401 or detail.code in _ACCOUNT_CODES:
        return _account_fault(status, headers, body, credential, detail)
    if status == 429 or detail.code in _LIMIT_CODES:
        told = refusal(429, headers, body, credential)
        wait = detail.clears_in if detail.clears_in is not None else retry_after(headers)
        after = None if wait is None else min(max(wait, 0.0), _LONGEST_WAIT)
        return RateLimited(told.message, code=_shown(detail, credential), retry_after=after)
    if status < 400:
        told = refusal(502, headers, body, credential)
        return UpstreamError(told.message, code=_shown(detail, credential))
    if status in _ACCOUNT_STATUSES:
        return _account_fault(status, headers, body, credential, detail)
    return refusal(status, headers, body, credential)


def refused_in_stream(error: Any, credential: Credential) -> GatewayError:
    """The error for an `error` or `detail` that came as an event of the answer."""
    return refused(200, {}, msgspec.json.encode({"detail": error}), credential)


def _account_fault(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    credential: Credential,
    detail: _Detail,
) -> GatewayError:
    if not credential.from_caller:
        return UpstreamRefused(
            "this model's upstream account cannot serve requests now",
            upstream_status=status,
            status=503,
            type="service_unavailable_error",
            code="unavailable",
        )
    told = refusal(status if status >= 400 else 403, headers, body, credential)
    return UpstreamRefused(
        told.message,
        upstream_status=status,
        status=401 if status == 401 else 403,
        type="invalid_request_error",
        code=clean(detail.code, credential) if detail.code else None,
    )


def _shown(detail: _Detail, credential: Credential) -> str | None:
    """The upstream's code, unless it may say something about the operator's account."""
    if detail.code and (credential.from_caller or detail.code in _LIMIT_CODES):
        return clean(detail.code, credential)
    return None


def _detail(body: bytes) -> _Detail:
    try:
        answer = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Detail()
    said = answer.detail or answer.error
    return said if isinstance(said, _Detail) else _Detail()
