"""Replaces a fixed marker in a text that is still arriving."""

from __future__ import annotations


class Replacement:
    """`feed` increments of one text; a marker may be split over several."""

    __slots__ = ("_held", "_instead", "_marker")

    def __init__(self, marker: str, instead: str) -> None:
        self._marker = marker
        self._instead = instead
        self._held = ""

    def feed(self, delta: str) -> str:
        text = (self._held + delta).replace(self._marker, self._instead)
        keep = self._begun(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """How much of the text's end may be the start of a marker."""
        for size in range(min(len(self._marker) - 1, len(text)), 0, -1):
            if text.endswith(self._marker[:size]):
                return size
        return 0
