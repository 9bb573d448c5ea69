"""Increments out of a text that always comes whole."""

from __future__ import annotations

from io import StringIO

from services.providers.backend_api.upstream_events import Content, Grown

_COMPARED = 64
"""Characters before the new part that must be as they were. Comparing all of them would look at the
whole text again for every event."""


class Growth:
    """What was said of one message so far."""

    __slots__ = ("_length", "_more", "_said")

    def __init__(self) -> None:
        self._said = ""
        self._more = StringIO()
        self._length = 0

    def advance(self, content: Content) -> str:
        """What `content` adds.

        What was given out cannot be taken back. So a text that became shorter adds nothing until it
        is longer again, and of one that was rewritten comes all that follows their common start.
        """
        if isinstance(content, Grown) and content.start == self._length:
            self._more.write(content.added)
            self._length += len(content.added)
            return content.added
        return self._advance(content.whole)

    def _advance(self, text: str) -> str:
        said = self._all_said()
        length = len(said)
        if len(text) < length:
            if said.startswith(text):
                return ""
        elif text.startswith(said[-_COMPARED:], max(0, length - _COMPARED)):
            self._set(text)
            return text[length:]
        self._set(text)
        return text[_common(said, text) :]

    def _set(self, text: str) -> None:
        self._said = text
        self._length = len(text)

    def _all_said(self) -> str:
        if len(self._said) < self._length:
            self._said += self._more.getvalue()
            self._more = StringIO()
        return self._said


def _common(one: str, other: str) -> int:
    """Length of the common start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if other.startswith(one[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low
