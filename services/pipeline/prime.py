"""Wait for the first event, so that a refusal can still be a real HTTP status."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.core.events import SILENCE, WireEvent, WireEvents


class Primed:
    """Events whose beginning has been awaited: `first`, then the rest.

    Closing it closes the source.
    """

    def __init__(self, first: list[WireEvent], rest: WireEvents) -> None:
        self._first: list[WireEvent] | None = first
        self._rest = rest

    def __iter__(self) -> Primed:
        return self

    def __next__(self) -> list[WireEvent]:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return next(self._rest)

    def close(self) -> None:
        closing = getattr(self._rest, "close", None)
        if closing is not None:
            closing()


def prime(events: WireEvents, window: float, on_silence: Callable[[], None]) -> Primed:
    """Advance `events` to the first event, or for `window` seconds; what fails until then is
    raised here.

    `on_silence` is called on every silent second; it may raise, for instance when the caller has
    left. After a full window the first batch is an empty one.
    """
    deadline = time.monotonic() + window
    for batch in events:
        if batch:
            return Primed(batch, events)
        on_silence()
        if time.monotonic() >= deadline:
            break
    return Primed(SILENCE, events)
