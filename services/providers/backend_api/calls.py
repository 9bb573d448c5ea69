"""The HTTP calls to the upstream for one account: headers, calls a minute, and what errors mean.

Waiting yields an empty batch for every second of silence, so that the edge can keep its client
alive or notice that it has left. Hence most functions here are generators of batches that return
their result.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from services.core.errors import (
    GatewayError,
    ProtocolError,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
)
from services.core.events import SILENCE, Event
from services.core.models import CallLimit, Credential
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.base import MAX_ERROR_BODY, TICK, ProviderContext
from services.providers.refusals import clean, not_an_answer, refusal, retry_after
from services.transport import Timeouts, Transport, UpstreamRequest, UpstreamResponse

T = TypeVar("T")
Waiting = Generator[list[Event], None, T]
"""Yields batches while it waits, and returns a T."""

SMALL_CALL = Timeouts(connect=10.0, first_byte=30.0, idle=30.0, total=60.0)
"""Limits of the small calls around an answer."""
_ARKOSE_CALL = Timeouts(connect=5.0, first_byte=10.0, idle=10.0, total=15.0)

FILE_CALLS = 4
"""How many calls about files an account may get for each other call of its minute.

They are counted apart: a message with 16 pictures takes 32 of them, which would be the whole minute
of the account. An upstream's own page makes as many, so they are not what its limit is about.
"""
LONGEST_WAIT = 60.0
"""Seconds after which a minute has a free place, unless others take it."""

_ACCOUNT_CODES = {"account_deactivated", "token_expired", "token_invalidated", "user_deactivated"}
_LIMIT_CODES = {"model_cap_exceeded", "rate_limit_exceeded", "usage_limit_reached"}
_ACCOUNT_STATUSES = {401, 402, 403, 418}
_MAX_RETRY_AFTER = 86400.0


class Calls:
    """One account's calls under one path prefix. `base` ends before `/backend-api`.

    `account_key` is the key under which what belongs to the account is cached.
    """

    def __init__(
        self, context: ProviderContext, own: BackendApiSettings, base: str, credential: Credential
    ) -> None:
        assert credential.token is not None
        self.credential = credential
        self.account_key = account_key(credential)
        self.is_secure = base.startswith("https:")
        self._context = context
        self._own = own
        self._base = f"{base}/backend-api/"
        self._headers = {"Authorization": f"Bearer {credential.token.reveal()}"}
        if credential.account:
            self._headers["ChatGPT-Account-ID"] = credential.account

    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        about_file: bool = False,
    ) -> Waiting[UpstreamResponse]:
        """Wait for the rate limit and for the response's headers; the caller closes the response.

        Raises `RateLimited` when the wait would be too long, and what the transport raises.
        """
        yield from self._wait_for_limit(about_file)
        sent = {**self._headers, **(headers or {})}
        data = b""
        if body is not None:
            sent["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        request = UpstreamRequest(method, self._base + path, sent, data)
        response = self._context.transport.open(request, timeouts=timeouts)
        try:
            yield from wait_for_headers(response)
        except BaseException:
            response.close()
            raise
        return response

    def ask(
        self, method: str, path: str, kind: type[T], body: Any = None, about_file: bool = False
    ) -> Waiting[T]:
        """A small JSON answer as a `kind`. Raises what `error_of` makes of any other."""
        response = yield from self.open(
            method, path, body, timeouts=SMALL_CALL, about_file=about_file
        )
        with response:
            data = yield from read_body(response)
        if response.status != 200:
            raise error_of(response.status, response.headers, data, self.credential)
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as exc:
            raise ProtocolError("the upstream gave a small answer of another shape") from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise not_an_answer(response.headers.get("content-type", "")) from exc

    def delete_conversation(self, conversation_id: str) -> None:
        """Hide a conversation for good, without yielding; one that is gone already is no failure.

        Raises `GatewayError` on failure, so that the background queue tries again.
        """
        deque(self._delete(f"conversation/{quote(conversation_id, safe='')}"), maxlen=0)

    def _delete(self, path: str) -> Waiting[None]:
        body = {"is_visible": False}
        with (yield from self.open("PATCH", path, body, timeouts=SMALL_CALL)) as response:
            yield from read_body(response)
        if response.status not in (200, 204, 404):
            raise UpstreamError(f"the upstream answered {response.status} to a deletion")

    def _wait_for_limit(self, about_file: bool) -> Waiting[None]:
        """Take one call of the account's minute. Raises `RateLimited`."""
        limit, longest = call_limit(self._own, self.account_key), self._own.queue_patience
        if limit is None:
            return
        if about_file:
            limit = CallLimit(
                limit.provider, f"{limit.account}:files", limit.per_minute * FILE_CALLS
            )
            longest = max(longest, LONGEST_WAIT)
        deadline = time.monotonic() + longest
        while (wait := self._context.call_limiter.take(limit)) is not None:
            if wait > deadline - time.monotonic():
                raise RateLimited(
                    f"more than {limit.per_minute} calls a minute for this upstream account",
                    retry_after=wait,
                )
            time.sleep(min(wait, TICK))
            yield SILENCE


def wait_for_headers(response: UpstreamResponse) -> Waiting[None]:
    """Wait for status and headers."""
    while not response.wait(TICK):
        yield SILENCE


def read_body(response: UpstreamResponse) -> Waiting[bytes]:
    """The whole body of a small answer. Raises `ProtocolError` beyond `MAX_ERROR_BODY` bytes."""
    body = bytearray()
    while (data := response.read(TICK)) != b"":
        if data is None:
            yield SILENCE
            continue
        body += data
        if len(body) > MAX_ERROR_BODY:
            raise ProtocolError(f"an answer of the upstream is larger than {MAX_ERROR_BODY} bytes")
    return bytes(body)


def call_limit(own: BackendApiSettings, account: str) -> CallLimit | None:
    """How many calls a minute an account may get, if the operator bounds them."""
    return CallLimit("backend_api", account, own.calls_per_minute) if own.calls_per_minute else None


class _Claims(msgspec.Struct):
    sub: str
    iss: str = ""


def account_key(credential: Credential) -> str:
    """A hash that stays the same when the account's access token is renewed.

    Where the account has a name of ours, that counts. Else the token's subject is read without
    checking its signature. That is safe, since the upstream checks it in every call that uses what
    is found under this key.
    """
    name = credential.owner
    if not name:
        assert credential.token is not None
        token = credential.token.reveal()
        claims = _claims(token)
        name = f"{claims.iss}\n{claims.sub}" if claims else token
    return hashlib.sha256(f"{name}\n{credential.account or ''}".encode()).hexdigest()[:32]


def _claims(token: str) -> _Claims | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=_Claims)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None


class _ArkoseAnswer(msgspec.Struct):
    token: str = ""


def arkose_token(transport: Transport, urls: tuple[str, ...]) -> Waiting[str]:
    """The first token that one of the operator's `urls` gives, asked in their order; nothing is
    solved here. Raises `Unavailable`.
    """
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for url in urls:
        request = UpstreamRequest(
            "POST", f"{url.rstrip('/')}/api/arkose/token", form, b"type=gpt-4"
        )
        try:
            with transport.open(request, timeouts=_ARKOSE_CALL) as response:
                yield from wait_for_headers(response)
                body = yield from read_body(response)
            if response.status == 200:
                token = msgspec.json.decode(body, type=_ArkoseAnswer).token
                if token:
                    return token
        except (GatewayError, msgspec.DecodeError, UnicodeDecodeError):
            continue
    raise Unavailable("none of the addresses in arkose_urls gave a token")


class _Detail(msgspec.Struct):
    code: str | None = None
    clears_in: float | None = None


class _ErrorBody(msgspec.Struct):
    detail: _Detail | str | list[Any] | None = None
    error: _Detail | str | list[Any] | None = None


def error_of(
    status: int, headers: Mapping[str, str], body: bytes, credential: Credential
) -> GatewayError:
    """The error that an answer without content means: `{"detail": …}` with a code, a string or a
    list, or an HTML page. `status` may be 200: some errors come so.

    A fault of the account keeps its `upstream_status` (401: the token can be renewed).
    """
    detail = _detail(body)
    if status == 401 or detail.code in _ACCOUNT_CODES:
        return _account_error(status, headers, body, credential, detail)
    code = None  # the upstream's, unless it may say something about the operator's account
    if detail.code and (credential.from_caller or detail.code in _LIMIT_CODES):
        code = clean(detail.code, credential)
    if status == 429 or detail.code in _LIMIT_CODES:
        message = refusal(429, headers, body, credential).message
        wait = detail.clears_in if detail.clears_in is not None else retry_after(headers)
        after = None if wait is None else min(max(wait, 0.0), _MAX_RETRY_AFTER)
        return RateLimited(message, code=code, retry_after=after)
    if status < 400:
        return UpstreamError(refusal(502, headers, body, credential).message, code=code)
    if status in _ACCOUNT_STATUSES:
        return _account_error(status, headers, body, credential, detail)
    return refusal(status, headers, body, credential)


def error_in_stream(error: Any, credential: Credential) -> GatewayError:
    """The error for an `error` or `detail` that came as an event of the answer."""
    return error_of(200, {}, msgspec.json.encode({"detail": error}), credential)


def _account_error(
    status: int, headers: Mapping[str, str], body: bytes, credential: Credential, detail: _Detail
) -> GatewayError:
    """In neutral words and as 503 where the account is the operator's: gateways in front of us
    disable a channel on 401 and on certain words.
    """
    if not credential.from_caller:
        return UpstreamRefused(
            "this model's upstream account cannot serve requests now",
            upstream_status=status,
            status=503,
            type="service_unavailable_error",
            code="unavailable",
        )
    return UpstreamRefused(
        refusal(status if status >= 400 else 403, headers, body, credential).message,
        upstream_status=status,
        status=401 if status == 401 else 403,
        type="invalid_request_error",
        code=clean(detail.code, credential) if detail.code else None,
    )


def _detail(body: bytes) -> _Detail:
    try:
        answer = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Detail()
    found = answer.detail or answer.error
    return found if isinstance(found, _Detail) else _Detail()
