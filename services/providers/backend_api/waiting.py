"""Wait for a response without falling silent: every quiet second gives an empty batch, so that
the edge can keep its client alive or notice that it has left.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from services.core.errors import ProtocolError
from services.core.events import SILENCE, Event
from services.providers.base import TICK
from services.transport import UpstreamResponse

T = TypeVar("T")


def headers_of(response: UpstreamResponse) -> Generator[list[Event], None, None]:
    """Wait for status and headers."""
    while not response.wait(TICK):
        yield SILENCE


def body_of(response: UpstreamResponse, limit: int) -> Generator[list[Event], None, bytes]:
    """The whole body. Raises `ProtocolError` beyond `limit` bytes."""
    body = bytearray()
    while (data := response.read(TICK)) != b"":
        if data is None:
            yield SILENCE
            continue
        body += data
        if len(body) > limit:
            raise ProtocolError(f"an answer of the upstream is larger than {limit} bytes")
    return bytes(body)


def result_of(steps: Generator[list[Event], None, T]) -> T:
    """What `steps` returns, where nobody waits for its silences."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
