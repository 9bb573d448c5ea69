"""Write an answer to the client: as server-sent events while it comes, or folded into one JSON
object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Literal, Protocol

import msgspec

from services.api.client import Client, ClientGone
from services.api.errors import as_gateway_error
from services.core.errors import GatewayError
from services.core.events import SILENCE, WireEvent, WireEvents
from services.dialects.sse import COMMENT

HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class StreamEncoder(Protocol):
    """A dialect's way to put events on the wire."""

    def open(self) -> bytes: ...
    def encode(self, batch: list[WireEvent]) -> bytes: ...
    def keep_alive(self) -> bytes: ...
    def end(self) -> bytes: ...
    def error(self, error: GatewayError) -> bytes: ...


class KeepAlive(msgspec.Struct, frozen=True):
    """What goes out when nothing else does, and after how many silent seconds."""

    kind: Literal["chunk", "comment", "off"]
    interval: float


def first_batch(
    events: WireEvents, window: float, on_silence: Callable[[], None]
) -> list[WireEvent]:
    """Wait for the first event, for `window` seconds: what fails until then is raised here, so that
    it can still be a real HTTP status.

    `on_silence` is called on every silent second; it may raise, for instance when the caller has
    left. After a full window the batch is an empty one.
    """
    deadline = time.monotonic() + window
    for batch in events:
        if batch:
            return batch
        on_silence()
        if time.monotonic() >= deadline:
            break
    return SILENCE


def write_stream(
    first: list[WireEvent],
    events: WireEvents,
    encoder: StreamEncoder,
    client: Client,
    keep_alive: KeepAlive,
) -> Iterator[bytes]:
    """Frames of one answer: of its `first` batch, then of the rest.

    It ends with the dialect's end mark, or with an error frame, or with the client.
    """
    now = time.monotonic
    written = 0.0
    try:
        for batch in chain((first,), events):
            frames = encoder.encode(batch) if batch else b""
            if not frames:
                client.check()
                frames = _filler(encoder, keep_alive, now() - written if written else None)
            if frames:
                yield frames
                written = now()
        yield encoder.end()
    except ClientGone:
        return
    except Exception as exc:  # noqa: BLE001  # the 500 handler of a stream whose status is already out
        yield encoder.error(as_gateway_error(exc))
    finally:
        close(events)


def _filler(encoder: StreamEncoder, keep_alive: KeepAlive, silent_for: float | None) -> bytes:
    """What to write when there is nothing to say; the opening, so that headers go out, comes at
    once.
    """
    if silent_for is None:
        return encoder.open()
    if keep_alive.kind == "off" or silent_for < keep_alive.interval:
        return b""
    return COMMENT if keep_alive.kind == "comment" else encoder.keep_alive()


def close(events: Iterator[list[WireEvent]]) -> None:
    """Close an iterator and, through it, the upstream connection."""
    closing = getattr(events, "close", None)
    if closing is not None:
        closing()
