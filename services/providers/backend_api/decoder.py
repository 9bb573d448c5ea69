"""Decodes the events of one answer in time linear in its text: events that each repeat the whole
text so far, and deltas, which the upstream calls encoding `v1`:

    {"p": "", "o": "add", "v": {"message": {…}, "conversation_id": "…"}, "c": 0}
    {"p": "/message/content/parts/0", "o": "append", "v": "Hel"}
    {"v": "lo"}
    {"p": "", "o": "patch", "v": [{"p": "/message/status", "o": "replace", "v": "…"}, …]}

`p` is a place in the event that was added last, `o` what happens there; left out, they are those
of the delta before.
"""

from __future__ import annotations

import copy
import re
from typing import Any, get_type_hints

import msgspec

from services.core.errors import ProtocolError
from services.providers.backend_api.upstream_events import (
    Appended,
    Author,
    Content,
    Message,
    Metadata,
    UpstreamEvent,
    decode_event,
    decode_text,
)

_TEXT_START = re.compile(rb'"parts":\s*+\["')
"""What stands before a message's text: a guess that `_extendable` tests."""
_BACKSLASH = ord("\\")
_CREDIT = 32
_FAILURE = 4
"""The shortcut is given up when failures, at this price, have used up what successes have earned.
To look where a text stands takes as long as to decode it a few times, and an upstream may stamp its
events, or rewrite every other one.
"""

_CONTENT = "/message/content"
_PART = f"{_CONTENT}/parts/0"
_TEXT = f"{_CONTENT}/text"
_METADATA = "/message/metadata"


class EventDecoder:
    """`decode` the data of events in their order.

    Where every event repeats the whole text so far, decoding them all takes time quadratic in the
    reply. An event that is the one before it but for more text at the end of the message's only
    part is compared with that one, which is many times faster, and only the new text is decoded:
    its content is then `Appended`. Any other event is decoded as a whole.
    """

    __slots__ = ("_credit", "_deltas", "_last")

    def __init__(self) -> None:
        self._deltas = Deltas()
        self._last: _Extendable | None = None
        self._credit = _CREDIT

    def decode(self, frame: bytes) -> UpstreamEvent | None:
        """As `decode_event`, what it raises included. An event holds until the next is decoded."""
        last = self._last
        if last is not None and last.extend(frame):
            if self._credit < _CREDIT:
                self._credit += 1
            return last.event
        event = decode_event(frame)
        if event is None:
            return None
        if event.is_delta:
            return self._deltas.apply(event)
        if last is not None:
            self._credit -= _FAILURE
        self._last = _extendable(frame, event) if self._credit > 0 else None
        return event


class _Extendable:
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

    def extend(self, frame: bytes) -> bool:
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
        self._message.content = Appended(
            self._kind, [added], start=self._length, added=added, source=self
        )
        self._length += len(added)
        return True

    def whole(self) -> str:
        return decode_text(bytes(self._known[self._start :]))


def _extendable(frame: bytes, event: UpstreamEvent) -> _Extendable | None:
    """`event`, which is in `frame`, for the next to add to; None if nothing can be added to it, or
    it is more than a text.
    """
    text = _only_text(event)
    if not text or (place := _TEXT_START.search(frame)) is None:
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
    return _Extendable(frame, start, end, len(text), without)


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


class _Metadata(Metadata):
    """Decoded, since deltas change parts of it."""

    citations: Any = None
    content_references: Any = None
    search_result_groups: Any = None
    aggregate_result: Any = None
    jit_plugin_data: Any = None
    finish_details: Any = None


class _Message(Message):
    metadata: _Metadata | None = None


class _Event(UpstreamEvent):
    message: _Message | None = None


_FIELDS = {kind: get_type_hints(kind) for kind in (_Event, _Message, Author, Content, _Metadata)}


class Deltas:
    """`apply` the deltas of an answer in their order. Growing text is kept in pieces."""

    def __init__(self) -> None:
        self._event = _Event()
        self._path = ""
        self._operation = "add"
        self._content = Content()
        self._text_path = ""
        self._pieces: list[str] = []
        self._length = 0
        self._rewritten = False

    def apply(self, delta: UpstreamEvent) -> UpstreamEvent | None:
        """The event as the delta leaves it, until the next; None while there is none.

        A delta for a place that is not read here changes nothing. Raises `ProtocolError` for an
        answer's message that cannot be read.
        """
        path = self._path = self._path if delta.p is None else delta.p
        operation = self._operation = self._operation if delta.o is None else delta.o
        value = delta.v
        if isinstance(value, dict) and "message" in value:
            return self._begin(value)
        message = self._event.message
        if message is None:
            return None
        message.content = self._content
        pieces, known, length = self._pieces, len(self._pieces), self._length
        self._rewritten = False
        if operation != "patch":
            self._change(path, operation, value)
        elif isinstance(value, list):
            for change in value:
                if isinstance(change, dict):
                    self._change(change.get("p"), change.get("o"), change.get("v"))
        else:  # not known to happen; what is lost cannot be had again
            self._change(self._text_path or _PART, "append", value)
        if self._text_path:
            if self._pieces is not pieces:
                known, length = 1, len(self._pieces[0])
            added = "".join(self._pieces[known:])
            message.content = Appended(
                self._content.content_type,
                [added],
                language=self._content.language,
                start=-1 if self._rewritten else length,
                added=added,
                source=self,
            )
        return self._event

    def whole(self) -> str:
        """The text that `_text_path` leads to."""
        return "".join(self._pieces)

    def _begin(self, value: dict[str, Any]) -> UpstreamEvent | None:
        try:
            self._event = msgspec.convert(value, _Event)
        except msgspec.ValidationError as exc:
            if b'"assistant"' in msgspec.json.encode(value):
                raise ProtocolError("the upstream sent a message of an unknown shape") from exc
            self._event = _Event()  # what follows is about it
        self._take_content()
        return self._event

    def _take_content(self) -> None:
        """The event has another message, or that has other content."""
        self._text_path = ""
        self._rewritten = True
        message = self._event.message
        if message is not None:
            message.metadata = message.metadata or _Metadata()
            self._content = message.content = message.content or Content()

    def _change(self, path: Any, operation: Any, value: Any) -> None:
        message = self._event.message
        if message is None or not isinstance(path, str) or not path.startswith("/"):
            return
        if operation == "append" and isinstance(value, str) and self._append(path, value):
            return
        if path.startswith(_CONTENT):
            self._store_text()
        _change_at(self._event, path.split("/")[1:], operation, value)
        if message is not self._event.message or message.content is not self._content:
            self._take_content()
        elif path.startswith(_METADATA):
            # whoever has read the metadata sees that these are others
            message.metadata = copy.copy(message.metadata)

    def _append(self, path: str, text: str) -> bool:
        """Whether `path` leads to the message's only text, which then has `text` at its end."""
        if path != self._text_path:
            parts, known = self._content.parts or [""], None
            if path == _TEXT and not self._content.parts:
                known = self._content.text or ""
            elif path == _PART and len(parts) == 1:
                known = parts[0]
            if not isinstance(known, str):
                return False
            self._store_text()
            self._text_path, self._pieces, self._length = path, [known], len(known)
        self._pieces.append(text)
        self._length += len(text)
        return True

    def _store_text(self) -> None:
        """Put the pieces into the content: something else than its end changes."""
        if self._text_path == _PART:
            self._content.parts = [self.whole()]
        elif self._text_path:
            self._content.text = self.whole()
        self._rewritten = self._rewritten or bool(self._text_path)
        self._text_path = ""


def _change_at(node: Any, way: list[str], operation: Any, value: Any) -> None:
    """Change what `way` leads to, if there is such a place."""
    *steps, last = way
    for name in steps:
        node = _get(node, name)
    old = _get(node, last)
    match operation:
        case "append" if isinstance(old, list) and last != "-":
            old.extend(value if isinstance(value, list) else [value])
        case "append" if isinstance(old, str) and isinstance(value, str):
            _set(node, last, old + value)
        case "append" if isinstance(value, dict) and old is not None:
            for name, item in value.items():
                _set(old, name, item)
        case "truncate" if isinstance(old, str | list) and isinstance(value, int):
            _set(node, last, old[:value])
        case "remove":
            _remove(node, last)
        case "add" if isinstance(node, list) and last.isdecimal():
            node.insert(int(last), value)
        case "add" | "append" | "replace":
            _set(node, last, value)


def _get(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if isinstance(node, list):
        return node[int(name)] if name.isdecimal() and int(name) < len(node) else None
    return getattr(node, name) if name in _FIELDS.get(type(node), {}) else None


def _set(node: Any, name: str, value: Any) -> None:
    if isinstance(node, dict):
        node[name] = value
    elif isinstance(node, list):
        if name == "-" or name == str(len(node)):
            node.append(value)
        elif name.isdecimal() and int(name) < len(node):
            node[int(name)] = value
    elif name in (kinds := _FIELDS.get(type(node), {})):
        try:
            setattr(node, name, msgspec.convert(value, kinds[name]))
        except msgspec.ValidationError:
            return  # of a shape that nobody knows


def _remove(node: Any, name: str) -> None:
    if isinstance(node, dict):
        node.pop(name, None)
    elif isinstance(node, list):
        if name.isdecimal() and int(name) < len(node):
            del node[int(name)]
    else:
        _set(node, name, None)
