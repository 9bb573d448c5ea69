"""Exchanges refresh tokens: one goes out in one of three forms, an access token comes back.

Nothing of an endpoint's answer is ever quoted: some repeat the token that they refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol
from urllib.parse import urlencode

import msgspec

from services.config import RefreshToAccess
from services.core.errors import (
    GatewayError,
    InvalidRequest,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from services.core.models import Secret
from services.providers.refusals import retry_after
from services.transport import Timeouts, Transport, UpstreamRequest

Reason = Literal["refused", "limited", "unreachable", "failing", "nonsense", "unconfigured", "busy"]

FAILURE_SECONDS = 30.0
"""How long a failed token is not tried again."""

_LOG_WORDS: dict[Reason, str] = {
    "refused": "the token endpoint refuses this refresh token",
    "limited": "the token endpoint limits us",
    "unreachable": "the token endpoint cannot be reached or is too slow",
    "failing": "the token endpoint failed",
    "nonsense": "the token endpoint's answer holds no usable access token",
    "unconfigured": "no token endpoint is configured: set refresh_ToAccess",
    "busy": "another process takes too long over this refresh token",
}


class TokenFailure(Exception):
    """No access token. The text holds no secret; `retry_after` is in seconds."""

    def __init__(self, reason: Reason, retry_after: float = FAILURE_SECONDS) -> None:
        super().__init__(_LOG_WORDS[reason])
        self.reason: Reason = reason
        self.retry_after = retry_after

    @property
    def is_the_tokens(self) -> bool:
        """Whether the refresh token itself is at fault, and not the way to its issuer."""
        return self.reason == "refused"

    def as_error(self, from_caller: bool) -> GatewayError:
        """What the caller is told; 401 only about the caller's own token."""
        if from_caller and self.reason == "refused":
            return Unauthorized("the refresh token is not accepted by its issuer: get a new one")
        if from_caller and self.reason == "unconfigured":
            return Unauthorized("refresh tokens are not exchanged here: send an access token")
        if self.reason == "limited":
            return RateLimited(
                "too many tokens were asked for, retry later", retry_after=self.retry_after
            )
        return Unavailable(
            "an access token for this model's upstream cannot be had now",
            retry_after=self.retry_after,
        )


LIMITS = Timeouts(connect=5.0, first_byte=12.0, idle=5.0, total=15.0)
_LARGEST_ANSWER = 256 * 1024
_LONGEST_TOKEN = 16 * 1024
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"


class Granted(msgspec.Struct, frozen=True):
    """What an exchange gave. `refresh` is a new refresh token that replaces the one used;
    `expires_in` is in seconds, as the endpoint says.
    """

    access: Secret
    refresh: Secret | None = None
    expires_in: float | None = None


class Refresher(Protocol):
    """Exchanges refresh tokens. Raises `TokenFailure`."""

    def exchange(self, refresh_token: Secret) -> Granted: ...


class EndpointRefresher:
    """Asks an endpoint over HTTP; `form` makes the request from a token, None: none is set up."""

    def __init__(
        self,
        transport: Transport,
        form: Callable[[str], UpstreamRequest] | None,
        limits: Timeouts = LIMITS,
    ) -> None:
        self._transport = transport
        self._form = form
        self._limits = limits

    def exchange(self, refresh_token: Secret) -> Granted:
        if self._form is None:
            raise TokenFailure("unconfigured")
        request = self._form(refresh_token.reveal())
        try:
            with self._transport.open(request, timeouts=self._limits) as exchange:
                body = exchange.read_all(_LARGEST_ANSWER)
        except InvalidRequest:  # the token cannot be put in a header
            raise TokenFailure("refused") from None
        except GatewayError:
            raise TokenFailure("unreachable") from None
        if not 200 <= exchange.status < 300:
            raise _refused(exchange.status, exchange.headers, body)
        return _granted(body, refresh_token)


def refresher_of(
    group: RefreshToAccess, transport: Transport, limits: Timeouts = LIMITS
) -> EndpointRefresher:
    """The refresher that the settings describe: `enableOai` means the official form."""
    third = group.third_party
    form: Callable[[str], UpstreamRequest] | None = None
    if group.enableOai:
        form = _official(group) if group.oauth_token_url else None
    elif third is not None:
        url, kind = third
        form = _form(url) if kind == "form" else _bearer(url)
    return EndpointRefresher(transport, form, limits)


def _official(group: RefreshToAccess) -> Callable[[str], UpstreamRequest]:
    def request(token: str) -> UpstreamRequest:
        body = {
            "redirect_uri": group.oauth_redirect_uri,
            "grant_type": "refresh_token",
            "client_id": group.oauth_client_id,
            "refresh_token": token,
        }
        headers = {"Content-Type": _JSON, "Accept": _JSON}
        return UpstreamRequest("POST", group.oauth_token_url, headers, msgspec.json.encode(body))

    return request


def _form(url: str) -> Callable[[str], UpstreamRequest]:
    headers = {"Content-Type": _FORM, "Accept": _JSON}
    return lambda token: UpstreamRequest(
        "POST", url, headers, urlencode({"refresh_token": token}).encode()
    )


def _bearer(url: str) -> Callable[[str], UpstreamRequest]:
    return lambda token: UpstreamRequest(
        "POST", url, {"Authorization": f"Bearer {token}", "Accept": _JSON}
    )


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> TokenFailure:
    """A JSON answer speaks of the token; a page, such as a blocking one, says nothing about it."""
    if status == 429:
        wait = retry_after(headers)
        return TokenFailure("limited") if wait is None else TokenFailure("limited", wait)
    reason: Reason = "failing"
    if status in (400, 401, 403):
        reason = "refused" if _object(body) is not None else "nonsense"
    return TokenFailure(reason)


def _granted(body: bytes, used: Secret) -> Granted:
    answer = _object(body)
    access = _token(answer.get("access_token")) if answer else None
    if answer is None or access is None:
        raise TokenFailure("nonsense")
    rotated = _token(answer.get("refresh_token"))
    lifetime = answer.get("expires_in")
    return Granted(
        access,
        rotated if rotated != used else None,
        float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else None,
    )


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _token(value: object) -> Secret | None:
    """A token is something that fits in a header: visible ASCII, not too long."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TOKEN:
        return None
    return Secret(value) if value.isascii() and value.isprintable() and " " not in value else None
