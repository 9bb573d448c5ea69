"""Messages that arrive as deltas, which the upstream calls encoding `v1`.

    {"p": "", "o": "add", "v": {"message": {…}, "conversation_id": "…"}, "c": 0}
    {"p": "/message/content/parts/0", "o": "append", "v": "Hel"}
    {"v": "lo"}
    {"p": "", "o": "patch", "v": [{"p": "/message/status", "o": "replace", "v": "…"}, …]}

`p` is a place in the event that was added last, `o` what happens there; left out, they are those
of the delta before. Growing text is kept in pieces, so the time is linear in the reply.
"""

from __future__ import annotations

import copy
from typing import Any, get_type_hints

import msgspec

from services.core.errors import ProtocolError
from services.providers.backend_api.upstream_events import (
    Author,
    Content,
    Grown,
    Message,
    Metadata,
    UpstreamEvent,
)

_CONTENT = "/message/content"
_PART = f"{_CONTENT}/parts/0"
_TEXT = f"{_CONTENT}/text"
_METADATA = "/message/metadata"


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


class Appended(Grown):
    """What a delta `added` to the text before it; all of it is in `pieces`."""

    pieces: list[str] = []

    @property
    def whole(self) -> str:
        return "".join(self.pieces)


class Deltas:
    """`apply` the deltas of an answer in their order."""

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
            message.content = self._appended(known, -1 if self._rewritten else length)
        return self._event

    def _begin(self, value: dict[str, Any]) -> UpstreamEvent | None:
        try:
            self._event = msgspec.convert(value, _Event)
        except msgspec.ValidationError as exc:
            if b'"assistant"' in msgspec.json.encode(value):
                raise ProtocolError("the upstream sent a message of an unknown shape") from exc
            self._event = _Event()  # what follows is about it
        self._anchor()
        return self._event

    def _anchor(self) -> None:
        """The event has another message, or that has other content."""
        self._text_path = ""
        self._rewritten = True
        message = self._event.message
        if message is not None:
            message.metadata = message.metadata or _Metadata()
            self._content = message.content = message.content or Content()

    def _appended(self, known: int, start: int) -> Appended:
        """The text, of which so many pieces and `start` characters were known before."""
        added = "".join(self._pieces[known:])
        kind, language = self._content.content_type, self._content.language
        return Appended(
            kind, [added], language=language, start=start, added=added, pieces=self._pieces
        )

    def _change(self, path: Any, operation: Any, value: Any) -> None:
        message = self._event.message
        if message is None or not isinstance(path, str) or not path.startswith("/"):
            return
        if operation == "append" and isinstance(value, str) and self._append(path, value):
            return
        if path.startswith(_CONTENT):
            self._settle()
        _change_at(self._event, path.split("/")[1:], operation, value)
        if message is not self._event.message or message.content is not self._content:
            self._anchor()
        elif path.startswith(_METADATA):
            # whoever has read the metadata sees that these are others
            message.metadata = copy.copy(message.metadata)

    def _append(self, path: str, text: str) -> bool:
        """Whether `path` leads to the message's only text, which then has `text` at its end."""
        if path != self._text_path:
            known = self._only_text(path)
            if known is None:
                return False
            self._settle()
            self._text_path, self._pieces, self._length = path, [known], len(known)
        self._pieces.append(text)
        self._length += len(text)
        return True

    def _only_text(self, path: str) -> str | None:
        content = self._content
        if path == _TEXT and not content.parts:
            return content.text or ""
        if path == _PART:
            parts = content.parts or [""]
            return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else None
        return None

    def _settle(self) -> None:
        """Put the pieces into the content: something else than its end changes."""
        if self._text_path == _PART:
            self._content.parts = ["".join(self._pieces)]
        elif self._text_path:
            self._content.text = "".join(self._pieces)
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
