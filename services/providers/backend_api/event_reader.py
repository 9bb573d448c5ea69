"""Reads one answer's events without decoding the same text again and again: whole ones, each of
which repeats all of it, and deltas.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from services.core.errors import ProtocolError
from services.providers.backend_api.deltas import Deltas
from services.providers.backend_api.upstream_events import (
    Grown,
    UpstreamEvent,
    decode_event,
    decode_text,
)

_TEXT = re.compile(rb'"parts":\s*+\["')
"""What stands before a message's text: a guess that `_known` tests."""

_BACKSLASH = ord("\\")
_CREDIT = 32
_FAILURE = 4
"""The shortcut is given up when failures, at this price, have used up what successes have earned.
To look where a text stands takes as long as to decode it a few times, and an upstream may stamp its
events, or rewrite every other one.
"""


class Repeated(Grown):
    """`known` is the event as far as the end of the text, which begins at `begin`."""

    known: bytearray = msgspec.field(default_factory=bytearray)
    begin: int = 0

    @property
    def whole(self) -> str:
        return decode_text(bytes(self.known[self.begin :]))


class EventReader:
    """`read` the data of events in their order.

    Where every event repeats the whole text so far, decoding them all takes time quadratic in the
    reply. An event that is the one before it but for more text at the end of the message's only
    part is compared with that one, which is many times faster, and only the new text is decoded:
    its content is then `Grown`. Any other event is decoded as a whole.
    """

    __slots__ = ("_credit", "_deltas", "_last")

    def __init__(self) -> None:
        self._deltas = Deltas()
        self._last: _Known | None = None
        self._credit = _CREDIT

    def read(self, frame: bytes) -> UpstreamEvent | None:
        """As `decode_event`, what it raises included. An event holds until the next is read."""
        last = self._last
        if last is not None and last.grow(frame):
            self._credit = min(self._credit + 1, _CREDIT)
            return last.event
        event = decode_event(frame)
        if event is not None and event.is_delta:
            return self._deltas.apply(event)
        if event is not None:
            if last is not None:
                self._credit -= _FAILURE
            self._last = _known(frame, event) if self._credit > 0 else None
        return event


class _Known:
    """The last event: `known` is its bytes up to the end of the text, which begins at `start` and
    has `length` characters; `tail` is the rest. Of `event` only the content of `message` changes.
    """

    __slots__ = ("_kind", "_known", "_length", "_message", "_start", "_tail", "event")

    def __init__(self, frame: bytes, start: int, end: int, length: int, event: UpstreamEvent):
        assert event.message is not None
        assert event.message.content is not None
        self._known = bytearray(memoryview(frame)[:end])
        self._start = start
        self._length = length
        self._tail = frame[end:]
        self._message = event.message
        self._kind = event.message.content.content_type
        self.event = event

    def grow(self, frame: bytes) -> bool:
        """Become the event in `frame`; False if that does more than add to the text."""
        known, tail = self._known, self._tail
        if not (frame.startswith(known) and frame.endswith(tail)):
            return False
        end = len(frame) - len(tail)
        if end < len(known):
            return False
        literal = frame[len(known) : end]
        try:
            added = decode_text(literal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        known += literal
        self._message.content = Repeated(
            self._kind, [added], start=self._length, added=added, known=known, begin=self._start
        )
        self._length += len(added)
        return True


def _known(frame: bytes, event: UpstreamEvent) -> _Known | None:
    """`event`, which is in `frame`, for the next to add to; None if nothing can be added to it, or
    it is more than a text.
    """
    text = _only_text(event)
    if not text or (place := _TEXT.search(frame)) is None:
        return None
    start = place.end()
    end = _end_of_string(frame, start)
    # the guess is right if the message is empty without what stands there
    try:
        without = decode_event(frame[:start] + frame[end:])
    except ProtocolError:
        return None
    if without is None or _only_text(without) != "":
        return None
    return _Known(frame, start, end, len(text), without)


def _end_of_string(frame: bytes, start: int) -> int:
    """Where the closing quote stands of a JSON string whose text begins at `start`."""
    end = frame.index(b'"', start)
    while True:
        text_end = end
        while frame[text_end - 1] == _BACKSLASH:
            text_end -= 1
        if (end - text_end) % 2 == 0:
            return end
        end = frame.index(b'"', end + 1)


def _only_text(event: UpstreamEvent) -> str | None:
    """The text of an unfinished message that consists of nothing else."""
    message = event.message
    if message is None or message.content is None or message.is_finished:
        return None
    parts: list[Any] = message.content.parts or []
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else None
