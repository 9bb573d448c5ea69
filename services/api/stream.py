"""Write an answer to the client: as server-sent events while it comes, or folded into one JSON
object.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec

from services.api.client import Client, ClientGone
from services.api.errors import as_gateway_error
from services.core.errors import GatewayError
from services.core.events import WireEvent
from services.wire.sse import COMMENT

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


def write_stream(
    events: Iterator[list[WireEvent]],
    encoder: StreamEncoder,
    client: Client,
    keep_alive: KeepAlive,
) -> Iterator[bytes]:
    """Frames of one answer.

    It ends with the dialect's end mark, or with an error frame, or with the client.
    """
    now = time.monotonic
    written = 0.0
    try:
        for batch in events:
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
