"""The exchange itself: a refresh token goes out in one of three forms, an access token comes back.

Nothing of an endpoint's answer is ever quoted: some repeat the token that they refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

import msgspec

from services.accounts.failures import Reason, TokenFailure
from services.config import RefreshToAccess
from services.core.errors import GatewayError, InvalidRequest
from services.core.models import Secret
from services.providers.refusals import retry_after
from services.transport import Timeouts, Transport, UpstreamRequest

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
