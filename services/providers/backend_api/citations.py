"""Citation marks, of both kinds, and links into the sandbox: `Scanner` finds them in a text that is
still arriving, `Citations` knows what the marks refer to.

Held back is what stands behind a possible start, and a bounded number of characters of it, so the
time is linear in the text; and a blank at the end, which goes if a newer mark follows it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from services.core.events import Citation, Text
from services.providers.backend_api.upstream_events import Metadata, all_of, converted

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
_SOURCE_WORDS = {"source", "来源"}
_UNSETTLED = 16
"""References at the end of the list that may still change."""
_ADDRESS = re.compile(r"https?://.", re.IGNORECASE)
_IN_TITLE = str.maketrans({"[": "(", "]": ")", "\n": " "})
_IN_TARGET = str.maketrans({"(": "%28", ")": "%29", " ": "%20", "<": "%3C", ">": "%3E"})


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


class _Extra(msgspec.Struct):
    cited_message_idx: int | None = None


class _Source(msgspec.Struct):
    """What an older mark refers to: a page, or a file by its name."""

    title: str | None = None
    name: str | None = None
    url: str | None = None
    extra: _Extra | None = None


class _Citation(msgspec.Struct):
    metadata: _Source | None = None


class _Ref(msgspec.Struct):
    """`turn0search3` in the text."""

    turn_index: int
    ref_type: str
    ref_index: int

    def __str__(self) -> str:
        return f"turn{self.turn_index}{self.ref_type}{self.ref_index}"


class _Page(msgspec.Struct):
    """A page; a grouped one brings those that support it, and `refs` numbers it and then them."""

    url: str | None = None
    title: str | None = None
    ref_id: Any = None
    refs: Any = None
    supporting_websites: Any = None

    @property
    def address(self) -> str:
        return self.url if self.url and _ADDRESS.match(self.url) else ""


class _Group(msgspec.Struct):
    entries: Any = None


class _Reference(_Page):
    """What one newer mark refers to: pages, or itself one."""

    matched_text: str = ""
    items: Any = None


class Citations:
    """Those of one answer. Sources of newer marks are numbered in the order they are cited in."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}
        self._by_text: dict[str, list[_Page]] = {}
        self._numbers: dict[str, int] = {}
        self._learnt: Metadata | None = None
        self._references: list[Any] = []
        self._settled = 0

    def learn(self, metadata: Metadata | None) -> None:
        """Note the pages that a message has found or refers to."""
        if metadata is None or metadata is self._learnt:
            return
        self._learnt = metadata
        for group in all_of(metadata.search_result_groups, _Group):
            for entry in all_of(group.entries, _Page):
                self._note(entry.ref_id, entry)
        references = converted(metadata.content_references, list[Any]) or []
        if references is not self._references:
            self._references, self._settled = references, 0
        for reference in all_of(references[self._settled :], _Reference):
            self._refer(reference)
        self._settled = max(self._settled, len(references) - _UNSETTLED)

    def cited(self, mark: Mark, metadata: Metadata | None) -> list[Citation | Text]:
        """An older mark as a citation; one without a source goes, unless it hardly is a mark."""
        number = int(mark.number.partition(":")[0])
        for citation in all_of(metadata.citations, _Citation) if metadata else ():
            source = citation.metadata
            if source is None:
                continue
            by_number = source.extra is not None and source.extra.cited_message_idx == number
            if by_number or (source.name and source.name == mark.name):
                title = source.title or source.name or ""
                return [Citation(mark.number, source.url or None, title)]
        if ":" not in mark.number and mark.name not in _SOURCE_WORDS:
            return [Text(mark.text)]
        return []

    def marked(
        self, marker: Marker, metadata: Metadata | None, *, final: bool
    ) -> list[Citation | Text] | None:
        """What a newer mark becomes; None if its sources may still come, and it is not `final`."""
        match marker.kind:
            case "cite":
                pages = self._found(marker, marker.args, metadata, final)
                return None if pages is None else self._citations(pages)
            case "url" | "link_title" | "video" if marker.args:
                pages = self._found(marker, marker.args[1:], metadata, final)
                return None if pages is None else [_linked(marker.args[0], pages)]
            case "entity" | "product_entity" if marker.args:
                return [Text(_name(marker.args[0]))]
            case _:
                return []

    def _found(
        self, marker: Marker, refs: tuple[str, ...], metadata: Metadata | None, final: bool
    ) -> list[_Page] | None:
        pages = self._known(refs)
        if len(pages) < len(refs):
            self.learn(metadata)
            pages = self._known(refs)
        if len(pages) == len(refs) or final:
            return pages or self._by_text.get(marker.text, [])
        return self._by_text.get(marker.text)

    def _known(self, refs: tuple[str, ...]) -> list[_Page]:
        found = (_Page(ref) if _ADDRESS.match(ref) else self._pages.get(ref) for ref in refs)
        return [page for page in found if page is not None]

    def _citations(self, pages: list[_Page]) -> list[Citation | Text]:
        titles = {page.address: page.title for page in pages if page.address}
        numbers = self._numbers
        return [
            Citation(str(numbers.setdefault(url, len(numbers) + 1)), url, title or "")
            for url, title in titles.items()
        ]

    def _refer(self, reference: _Reference) -> None:
        items = all_of(reference.items, _Page) or [reference]
        for item in items:
            pages = [item, *all_of(item.supporting_websites, _Page)]
            refs = item.refs if isinstance(item.refs, list) else []
            for ref, page in zip(refs, pages, strict=False):
                self._note(ref, page)
        if found := [item for item in items if item.address]:
            self._by_text[reference.matched_text] = found

    def _note(self, ref: Any, page: _Page) -> None:
        named = converted(ref, _Ref)
        if named is not None and page.address:
            self._pages.setdefault(str(named), page)


def _linked(title: str, pages: list[_Page]) -> Text:
    if not pages:
        return Text(title)
    return Text(f"[{title.translate(_IN_TITLE)}]({pages[0].address.translate(_IN_TARGET)})")


def _name(entity: str) -> str:
    """`["software","Node.js","javascript runtime"]`: the second is what it is called."""
    try:
        _, name, *_ = msgspec.json.decode(entity, type=list[Any])
    except (msgspec.DecodeError, ValueError):
        return ""
    return name if isinstance(name, str) else ""
