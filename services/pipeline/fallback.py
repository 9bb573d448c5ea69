"""Another model, or another provider, where the one asked for fails before its first event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from services.core.errors import (
    GatewayError,
    KeyLimitReached,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from services.core.events import Events

log = logging.getLogger(__name__)

_TOO_MANY = 429
_SERVER_ERROR = 500


class Source(msgspec.Struct, frozen=True):
    """A model that may answer; `name` is for the log."""

    name: str
    events: Callable[[], Events]


def first_to_answer(sources: Sequence[Source], patience: float = 0.0) -> Events:
    """The answer of the first of `sources` that begins one within `patience` seconds (0: however
    long it takes; the last one always gets that).

    Once an event has come nobody else is asked. If all fail, raises what the first one did: that is
    the model the caller named. Raises at once what is the request's own fault.
    """
    failure: GatewayError | None = None
    for source in sources:
        limit = patience if source is not sources[-1] else 0.0
        begun = False
        try:
            for batch in _begun_within(limit, source.events()) if limit else source.events():
                begun = begun or bool(batch)
                yield batch
            return
        except GatewayError as exc:
            if begun or isinstance(exc, KeyLimitReached):
                raise
            if not another_may_serve(exc):
                if failure is None:
                    raise
                raise failure from exc
            log.warning("model failed model=%s reason=%s", source.name, exc.message)
            failure = failure or exc
    if failure is not None:
        raise failure


def another_may_serve(error: GatewayError) -> bool:
    """Whether the failure is the model's or its upstream's, and not the request's."""
    if isinstance(error, UpstreamError):
        return error.status >= _SERVER_ERROR or error.status == _TOO_MANY
    return isinstance(error, RateLimited | Unavailable)


def _begun_within(seconds: float, events: Events) -> Events:
    """Pass events on. Raises `UpstreamTimeout` if the first does not come in time; an upstream that
    sends nothing is noticed by its silent seconds.
    """
    deadline = time.monotonic() + seconds
    begun = False
    try:
        for batch in events:
            begun = begun or bool(batch)
            if not begun and time.monotonic() > deadline:
                raise UpstreamTimeout("the upstream did not begin its answer in time")
            yield batch
    finally:
        closing = getattr(events, "close", None)
        if closing is not None:
            closing()
