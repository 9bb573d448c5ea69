"""Increments out of a text that always comes whole."""

from __future__ import annotations

_COMPARED = 64
"""Characters before the new part that must be as they were. Comparing all of them would look at the
whole text again for every event."""


class Growth:
    """What was said of one message so far."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said = ""

    def advance(self, text: str) -> str:
        """What `text` adds.

        What was given out cannot be taken back. So a text that became shorter adds nothing until it
        is longer again, and of one that was rewritten comes all that follows their common start.
        """
        said = self._said
        length = len(said)
        if len(text) < length:
            if said.startswith(text):
                return ""
        elif text.startswith(said[-_COMPARED:], max(0, length - _COMPARED)):
            self._said = text
            return text[length:]
        self._said = text
        return text[_common(said, text) :]


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
