"""Tokens from addresses that the operator configured; nothing is solved here."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from services.core.errors import GatewayError, Unavailable
from services.core.events import Event
from services.providers.backend_api.waiting import body_of, headers_of
from services.providers.base import MAX_ERROR_BODY
from services.transport import Timeouts, Transport, UpstreamRequest

TIMEOUTS = Timeouts(connect=5.0, first_byte=10.0, idle=10.0, total=15.0)
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class _Answer(msgspec.Struct):
    token: str = ""


def arkose_token(transport: Transport, urls: tuple[str, ...]) -> Generator[list[Event], None, str]:
    """The first token that one of `urls` gives, asked in their order. Raises `Unavailable`."""
    for url in urls:
        try:
            token = yield from _ask(transport, f"{url.rstrip('/')}/api/arkose/token")
        except GatewayError:
            continue
        if token:
            return token
    raise Unavailable("none of the addresses in arkose_urls gave a token")


def _ask(transport: Transport, url: str) -> Generator[list[Event], None, str]:
    request = UpstreamRequest("POST", url, _FORM, b"type=gpt-4")
    with transport.open(request, timeouts=TIMEOUTS) as response:
        yield from headers_of(response)
        body = yield from body_of(response, MAX_ERROR_BODY)
    if response.status != 200:
        return ""
    try:
        return msgspec.json.decode(body, type=_Answer).token
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
