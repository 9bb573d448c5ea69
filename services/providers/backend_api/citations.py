"""What the citation marks of an answer refer to."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from services.core.events import Citation, Text
from services.providers.backend_api.scanner import Mark, Marker
from services.providers.backend_api.upstream_events import Metadata, all_of, converted, sources

_SOURCE_WORDS = {"source", "来源"}
_UNSETTLED = 16
"""References at the end of the list that may still change."""
_ADDRESS = re.compile(r"https?://.", re.IGNORECASE)
_IN_TITLE = str.maketrans({"[": "(", "]": ")", "\n": " "})
_IN_TARGET = str.maketrans({"(": "%28", ")": "%29", " ": "%20", "<": "%3C", ">": "%3E"})


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
        for source in sources(metadata.citations) if metadata else ():
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
