"""Finds citation marks, of both kinds, and links into the sandbox in a text that is still arriving.

Held back is what stands behind a possible start, and a bounded number of characters of it, so the
time is linear in the text; and a blank at the end, which goes if a newer mark follows it.
"""

from __future__ import annotations

import re

import msgspec

MAX_LINK = 2048
_MAX_MARK = 300

_MAX_MARKER = 32_768
"""Some hold a whole chart."""
_OPEN = -1

_BEGIN, _SEPARATOR = "\ue200", "\ue202"
_SPECIAL = re.compile("[【(\ue200-\ue20f]")
_MARK = re.compile(r"【(\d{1,9}(?::\d{1,9})?)†([^【】\n]{0,200})】", re.ASCII)
_MARK_BEGUN = re.compile(r"【(?:\d{1,9}(?::\d{0,9})?(?:†[^【】\n]{0,200})?)?\Z", re.ASCII)
_LINK_START = "(sandbox:/"
_LINK = re.compile(r"\((sandbox:/(?:[^()\n]|\([^()\n]{0,500}\)){0,2048})\)")
_LINK_BEGUN = re.compile(
    r"\(sandbox:/(?:[^()\n]|\([^()\n]{0,500}\)){0,2048}(?:\([^()\n]{0,500})?\Z"
)


_MARKER = re.compile(
    "\ue200(?:([a-z0-9_]{1,40})((?:\ue202[^\ue200-\ue202]*)*)\ue201"
    "|[a-z0-9_]{1,40}\ue202[^\ue200\ue201]*(?=\ue200))"
)
"""A newer mark; or without groups, one that another breaks off."""
_MARKER_BEGUN = re.compile("\ue200(?:[a-z0-9_]{0,40}|[a-z0-9_]{1,40}\ue202[^\ue200\ue201]*)\\Z")
_MARKER_END = re.compile("[\ue200\ue201]")


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A citation mark: `text` as it stood, its number (`5` or `8:0`) and the name behind it."""

    text: str
    number: str
    name: str


class Marker(msgspec.Struct, frozen=True, gc=False):
    """A newer mark, which stands between private-use characters: `text` with these; what `kind` it
    is, such as "cite", and its arguments, such as "turn0search0".
    """

    text: str
    kind: str
    args: tuple[str, ...]


class Link(msgspec.Struct, frozen=True, gc=False):
    """A link's target into the sandbox, without its parentheses: `sandbox:/…`."""

    target: str


Piece = str | Mark | Marker | Link

SPOKEN = frozenset({"entity", "product_entity", "url", "link_title", "video"})
"""Kinds of newer marks that are words of the sentence they stand in."""


class Scanner:
    """One message's text."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, delta: str) -> list[Piece]:
        """The pieces that are certain by now; texts are never empty."""
        if not self._held:
            plain = "(" not in delta and (delta.isascii() or _SPECIAL.search(delta) is None)
            if plain and delta[-1:] != " ":
                return [delta] if delta else []
            return self._scan(delta, final=False)
        text = self._held + delta
        if _is_open(self._held) and _MARKER_END.search(delta) is None and len(text) < _MAX_MARKER:
            self._held = text
            return []
        return self._scan(text, final=False)

    def flush(self) -> list[Piece]:
        """What is held back. The text may go on."""
        return self._scan(self._held, final=True) if self._held else []

    def _scan(self, text: str, *, final: bool) -> list[Piece]:
        self._held = ""
        out: list[Piece] = []
        start = at = 0
        while (special := _SPECIAL.search(text, at)) is not None:
            at = special.start()
            found, end = _FINDERS.get(text[at], _marker)(text, at, final)
            if end == _OPEN:
                self._held = text[at:]
                text = text[:at]
                break
            if end == at:
                at += 1
                continue
            before = text[start:at]
            if _leaves_a_gap(found, end - at):
                before = before.removesuffix(" ")
            out += [piece for piece in (before, found) if piece]
            start = at = end
        rest = text[start:]
        if rest.endswith(" ") and not final and self._held[:1] in ("", _BEGIN):
            rest, self._held = rest[:-1], f" {self._held}"
        if rest:
            out.append(rest)
        return out


def _leaves_a_gap(found: Piece | None, length: int) -> bool:
    """Whether what goes, or becomes a citation, had the blank before it to itself."""
    if isinstance(found, Marker):
        return found.kind not in SPOKEN
    return found is None and length > 1


def _is_open(held: str) -> bool:
    """Whether a newer mark is held, which ends nowhere but at its last character."""
    return held.startswith((_BEGIN, f" {_BEGIN}"))


def _mark(text: str, at: int, final: bool) -> tuple[Piece | None, int]:
    """What begins at `at` and where it ends: `at` if nothing does, `_OPEN` if more must come."""
    found = _MARK.match(text, at)
    if found is not None:
        return Mark(found[0], found[1], found[2]), found.end()
    is_open = not final and len(text) - at < _MAX_MARK and _MARK_BEGUN.match(text, at) is not None
    return None, _OPEN if is_open else at


def _link(text: str, at: int, final: bool) -> tuple[Piece | None, int]:
    """As `_mark`, for a link."""
    rest = text[at : at + len(_LINK_START)]
    if rest != _LINK_START:
        is_open = at + len(rest) == len(text) and _LINK_START.startswith(rest)
        return None, _OPEN if is_open and not final else at
    found = _LINK.match(text, at)
    if found is not None:
        return Link(found[1].strip()), found.end()
    is_open = not final and len(text) - at < MAX_LINK and _LINK_BEGUN.match(text, at) is not None
    return None, _OPEN if is_open else at


def _marker(text: str, at: int, final: bool) -> tuple[Piece | None, int]:
    """As `_mark`, for a newer mark; what is left of one goes, as do characters of theirs alone."""
    found = _MARKER.match(text, at)
    if found is not None and found[1]:
        return Marker(found[0], found[1], tuple(found[2].split(_SEPARATOR)[1:])), found.end()
    if found is not None:
        return None, found.end()
    if _MARKER_BEGUN.match(text, at) is None:
        return None, at + 1
    if final:
        return None, len(text)
    return None, _OPEN if len(text) - at < _MAX_MARKER else at + 1


_FINDERS = {"【": _mark, "(": _link}
