"""Calls to the upstream for one account: where they go, what they carry, how many a minute."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import msgspec

from services.core.errors import ProtocolError, RateLimited
from services.core.events import SILENCE, Event
from services.core.models import CallLimit, Credential
from services.providers.backend_api.owner import owner_of
from services.providers.backend_api.refused import refused
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.backend_api.waiting import body_of, headers_of
from services.providers.base import MAX_ERROR_BODY, TICK, ProviderContext
from services.providers.refusals import not_an_answer
from services.transport import Timeouts, UpstreamRequest, UpstreamResponse

T = TypeVar("T")

QUICK = Timeouts(connect=10.0, first_byte=30.0, idle=30.0, total=60.0)
"""Limits of the small calls around an answer."""


FILE_CALLS = 4
"""How many calls about files an account may get for each other call of its minute.

They are counted apart: a message with 16 pictures takes 32 of them, which would be the whole minute
of the account. An upstream's own page makes as many, so they are not what its limit is about.
"""
LONGEST_WAIT = 60.0
"""Seconds after which a minute has a free place, unless others take it."""


def call_limit(own: BackendApiSettings, owner: str) -> CallLimit | None:
    """How many calls a minute an account may get, if the operator bounds them."""
    return CallLimit("backend_api", owner, own.calls_per_minute) if own.calls_per_minute else None


class Calls:
    """One account's calls under one path prefix. `base` ends before `/backend-api`."""

    def __init__(
        self, context: ProviderContext, own: BackendApiSettings, base: str, credential: Credential
    ) -> None:
        assert credential.token is not None
        self.credential = credential
        self.owner = owner_of(credential)
        self._context = context
        self._own = own
        self._base = f"{base}/backend-api/"
        self._headers = {"Authorization": f"Bearer {credential.token.reveal()}"}
        if credential.account:
            self._headers["ChatGPT-Account-ID"] = credential.account

    @property
    def holder(self) -> str:
        """Whose the conversations are: the account's, and in it the gateway key's."""
        return f"{self.owner}:{self.credential.holder}"

    @property
    def secure(self) -> bool:
        return self._base.startswith("https:")

    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        about_file: bool = False,
    ) -> Generator[list[Event], None, UpstreamResponse]:
        """Wait for our place and for the answer's headers; the caller closes the response.

        Raises `RateLimited` when the queue is longer than the patience, and what the transport
        raises.
        """
        yield from self._take_place(about_file)
        sent = {**self._headers, **(headers or {})}
        data = b""
        if body is not None:
            sent["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        request = UpstreamRequest(method, self._base + path, sent, data)
        response = self._context.transport.open(request, timeouts=timeouts)
        try:
            yield from headers_of(response)
        except BaseException:
            response.close()
            raise
        return response

    def ask(
        self, method: str, path: str, kind: type[T], body: Any = None, about_file: bool = False
    ) -> Generator[list[Event], None, T]:
        """A small JSON answer as a `kind`. Raises what `refused` makes of any other."""
        response = yield from self.open(method, path, body, timeouts=QUICK, about_file=about_file)
        with response:
            answer = yield from body_of(response, MAX_ERROR_BODY)
        if response.status != 200:
            raise refused(response.status, response.headers, answer, self.credential)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.ValidationError as exc:
            raise ProtocolError("the upstream gave a small answer of another shape") from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise not_an_answer(response.headers.get("content-type", "")) from exc

    def _take_place(self, about_file: bool) -> Generator[list[Event], None, None]:
        """One place in the account's minute, or `RateLimited`."""
        limit, patience = call_limit(self._own, self.owner), self._own.queue_patience
        if limit is None:
            return
        if about_file:
            limit = CallLimit(
                limit.provider, f"{limit.account}:files", limit.per_minute * FILE_CALLS
            )
            patience = max(patience, LONGEST_WAIT)
        deadline = time.monotonic() + patience
        while (wait := self._context.call_limiter.take(limit)) is not None:
            if wait > deadline - time.monotonic():
                raise RateLimited(
                    f"more than {limit.per_minute} calls a minute for this upstream account",
                    retry_after=wait,
                )
            time.sleep(min(wait, TICK))
            yield SILENCE
