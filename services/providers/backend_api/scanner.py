"""Finds citation marks and links into the sandbox in a text that is still arriving.

Held back is only what stands behind a possible start, and at most `MAX_LINK` characters of it, so
the time is linear in the text.
"""

from __future__ import annotations

import re

import msgspec

MAX_LINK = 2048
_MAX_MARK = 300

_SPECIAL = re.compile(r"[【(]")
_MARK = re.compile(r"【(\d{1,9}(?::\d{1,9})?)†([^【】\n]{0,200})】", re.ASCII)
_MARK_BEGUN = re.compile(r"【(?:\d{1,9}(?::\d{0,9})?(?:†[^【】\n]{0,200})?)?\Z", re.ASCII)
_LINK_START = "(sandbox:/"
_LINK = re.compile(r"\((sandbox:/(?:[^()\n]|\([^()\n]{0,500}\)){0,2048})\)")
_LINK_BEGUN = re.compile(
    r"\(sandbox:/(?:[^()\n]|\([^()\n]{0,500}\)){0,2048}(?:\([^()\n]{0,500})?\Z"
)


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A citation mark: `text` as it stood, its number (`5` or `8:0`) and the name behind it."""

    text: str
    number: str
    name: str


class Link(msgspec.Struct, frozen=True, gc=False):
    """A link's target into the sandbox, without its parentheses: `sandbox:/…`."""

    target: str


Piece = str | Mark | Link


class Scanner:
    """One message's text."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, delta: str) -> list[Piece]:
        """The pieces that are certain by now; texts are never empty."""
        if not self._held and "【" not in delta and "(" not in delta:
            return [delta] if delta else []
        return self._scan(self._held + delta, final=False)

    def flush(self) -> list[Piece]:
        """What is held back. The text may go on."""
        return self._scan(self._held, final=True) if self._held else []

    def _scan(self, text: str, *, final: bool) -> list[Piece]:
        self._held = ""
        out: list[Piece] = []
        start = at = 0
        while (special := _SPECIAL.search(text, at)) is not None:
            at = special.start()
            found, end = _mark(text, at) if text[at] == "【" else _link(text, at)
            if found is not None:
                if start < at:
                    out.append(text[start:at])
                out.append(found)
                start = at = end
            elif end and not final:
                self._held = text[at:]
                text = text[:at]
                break
            else:
                at += 1
        if start < len(text):
            out.append(text[start:])
        return out


def _mark(text: str, at: int) -> tuple[Mark | None, int]:
    """A mark at `at` and its end; else None, and whether one may still come of it."""
    found = _MARK.match(text, at)
    if found is not None:
        return Mark(found[0], found[1], found[2]), found.end()
    open_still = len(text) - at < _MAX_MARK and _MARK_BEGUN.match(text, at) is not None
    return None, int(open_still)


def _link(text: str, at: int) -> tuple[Link | None, int]:
    """As `_mark`, for a link."""
    rest = text[at : at + len(_LINK_START)]
    if rest != _LINK_START:
        return None, int(at + len(rest) == len(text) and _LINK_START.startswith(rest))
    found = _LINK.match(text, at)
    if found is not None:
        return Link(found[1].strip()), found.end()
    open_still = len(text) - at < MAX_LINK and _LINK_BEGUN.match(text, at) is not None
    return None, int(open_still)
