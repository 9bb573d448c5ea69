"""From the upstream's events to ours, for one answer. Pure.

`Answer` keeps the state of the whole answer; one handler for each message of it turns the growing
content of that message into events.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import msgspec

from services.core.errors import UpstreamError
from services.core.events import (
    CodeBlock,
    Conversation,
    ExecutionOutput,
    Finish,
    FinishReason,
    Reasoning,
    Text,
)
from services.core.models import Credential
from services.providers.backend_api.calls import error_in_stream
from services.providers.backend_api.citations import Citations, Link, Mark, Marker, Piece, Scanner
from services.providers.backend_api.decoder import EventDecoder
from services.providers.backend_api.files import Asset, Item, SandboxFile, file_id
from services.providers.backend_api.stream import DONE
from services.providers.backend_api.upstream_events import (
    Appended,
    Confirmation,
    Content,
    Message,
    confirmation,
    finish_type,
    plots,
)

REASONING_TOOLS = frozenset({"a8km123"})
"""Tools whose text is the model's thinking."""
PLOT_MARKER = "<<ImageDisplayed>>"
UPLOADS_READ = "All the files uploaded by the user have been fully loaded"
"""How a tool's remark begins that all uploads are read."""
_MAX_WAIT = 8
"""Events for which a citation mark waits for its sources."""
_COMPARED = 64
"""Characters before the new part that must be as they were. Comparing all of them would look at the
whole text again for every event."""
_LANGUAGE = re.compile(r"[\w+#.-]{1,30}", re.ASCII)
_POLICY = re.compile(
    r"(did not|didn['\u2019]t) follow our content polic|violates? our content polic", re.IGNORECASE
)
"""What the drawing tool tells the model when it does not draw; looked for in the beginning."""
_BEGINNING = 300


class Answer:
    """One answer. `feed` it the data of events; after `done`, or once it is `complete` and the
    upstream says no more, `finish` it.

    `name_conversation` makes no sense for a conversation that goes away.
    """

    def __init__(
        self,
        credential: Credential,
        *,
        plot_notice: str,
        upload_notice: str,
        name_conversation: bool,
    ) -> None:
        self.done = self.complete = False
        self.has_content = False
        self.conversation_id = ""
        self.message_id = ""
        self.confirmation: Confirmation | None = None
        self._credential = credential
        self._plot_notice = plot_notice
        self._upload_notice = upload_notice
        self._name_conversation = name_conversation
        self._conversation_named = not name_conversation
        self._decode = EventDecoder().decode
        self._citations = Citations()
        self._handlers: dict[tuple[str, str], _Handler | None] = {}
        self._current: _Handler | None = None
        self._reason: FinishReason = "stop"
        self._blocked = False
        self._picture_refused = False

    def feed_all(self, frames: list[bytes], out: list[Item]) -> None:
        """`feed` the frames up to the end mark."""
        for frame in frames:
            if not self.done:
                self.feed(frame, out)

    def feed(self, frame: bytes, out: list[Item]) -> None:
        """Append what an event says. Raises the error it holds."""
        if frame == DONE:
            self.done = True
            return
        event = self._decode(frame)
        if event is None:
            return
        if event.conversation_id:
            self.conversation_id = event.conversation_id
        if event.error or event.detail:
            raise error_in_stream(event.error or event.detail, self._credential)
        if event.moderation_response is not None and event.moderation_response.blocked:
            self._blocked = True
        message = event.message
        if message is None:
            self.complete = self.complete or event.type == "message_stream_complete"
            return
        author, content = message.author, message.content
        if author is None or content is None or author.role not in ("assistant", "tool"):
            return
        self.message_id = message.id
        before = len(out)
        self._handle(message, author.role, content, out)
        if len(out) > before:
            self._note_content(out, before)
            if not self._conversation_named and self.conversation_id:
                self._conversation_named = True
                out.insert(before, Conversation(self.conversation_id))

    def close(self, out: list[Item]) -> None:
        """Append what is held back."""
        if self._current is not None:
            before = len(out)
            self._current.close(out)
            self._note_content(out, before)
            self._current = None

    def add_text(self, text: str, out: list[Item]) -> None:
        """Append words of our own."""
        self.close(out)
        self.has_content = True
        out.append(Text(text))

    def finish(self, out: list[Item]) -> None:
        """Append the end. Raises `UpstreamError` if nothing was said."""
        self.close(out)
        if self._blocked or self._picture_refused:
            self._reason = "content_filter"
        elif not self.has_content:
            raise UpstreamError("the upstream's answer is empty", code="empty_answer")
        if self._name_conversation and self.conversation_id and self.message_id:
            out.append(Conversation(self.conversation_id, self.message_id))
        out.append(Finish(self._reason))

    def _note_content(self, out: list[Item], start: int) -> None:
        """Thinking alone is no answer."""
        if not self.has_content:
            self.has_content = any(type(item) is not Reasoning for item in out[start:])

    def _handle(self, message: Message, role: str, content: Content, out: list[Item]) -> None:
        """Pass a message to its handler; the one before it has then said everything."""
        is_finished = message.is_finished
        if is_finished:
            self._citations.learn(message.metadata)
        key = (message.id, content.content_type)
        if key in self._handlers:
            handler = self._handlers[key]
        else:
            handler = self._handlers[key] = self._new_handler(message, role, content)
        if handler is not None:
            if handler is not self._current:
                if self._current is not None:
                    self._current.close(out)
                self._current = handler
            handler.update(message, content, out)
            if is_finished:
                handler.close(out)
        if is_finished:
            self._end_message(message, role, content)

    def _new_handler(self, message: Message, role: str, content: Content) -> _Handler | None:
        kind = content.content_type
        if role == "assistant":
            if kind == "code" or (kind == "text" and message.recipient not in (None, "", "all")):
                return _Code()
            if kind in ("text", "multimodal_text"):
                self._reason = "stop"
                return _Text(self._citations)
            return None
        match kind:
            case "execution_output":
                return _Output(self._plot_notice)
            case "multimodal_text":
                return _Pictures()
            case "text" if message.author and message.author.name in REASONING_TOOLS:
                return _Reasoning()
            case "text":
                return _UploadNotice(self._upload_notice)
            case _:
                return None

    def _end_message(self, message: Message, role: str, content: Content) -> None:
        if role == "tool" and content.content_type == "multimodal_text":
            self._picture_refused = False  # a second try went well
        elif role == "tool" and content.content_type == "text":
            refused = _POLICY.search(content.whole[:_BEGINNING]) is not None
            self._picture_refused = refused or self._picture_refused
        if message.metadata is None:
            return
        reason = finish_type(message.metadata.finish_details)
        if reason and role == "assistant":
            self._reason = "length" if reason in ("max_tokens", "interrupted") else "stop"
        self.confirmation = confirmation(message) or self.confirmation


class TextDiff:
    """Increments out of the text of one message, which mostly comes whole."""

    __slots__ = ("_length", "_more", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._more = StringIO()
        self._length = 0

    def advance(self, content: Content) -> str:
        """What `content` adds.

        What was given out cannot be taken back. So a text that became shorter adds nothing until it
        is longer again, and of one that was rewritten comes all that follows their common start.
        """
        if isinstance(content, Appended) and content.start == self._length:
            self._more.write(content.added)
            self._length += len(content.added)
            return content.added
        return self._advance(content.whole)

    def _advance(self, text: str) -> str:
        if len(self._text) < self._length:
            self._text += self._more.getvalue()
            self._more = StringIO()
        old, length = self._text, self._length
        if len(text) < length and old.startswith(text):
            return ""
        self._text, self._length = text, len(text)
        if len(text) >= length and text.startswith(old[-_COMPARED:], max(0, length - _COMPARED)):
            return text[length:]
        return text[_common(old, text) :]


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


class _Handler:
    """One message. `update` takes each of its events, `close` what is held back; both append."""

    def __init__(self) -> None:
        self._diff = TextDiff()
        self._first = True

    def update(self, message: Message, content: Content, out: list[Item]) -> None:
        """Most handlers look at the new text alone."""
        delta = self._diff.advance(content)
        if delta:
            self.add(delta, message, content, out)

    def add(self, delta: str, message: Message, content: Content, out: list[Item]) -> None:
        """Append what new text says."""

    def close(self, out: list[Item]) -> None:
        """Append what is held back, if anything can be."""


class _Text(_Handler):
    """The answer's text, with citation marks and links into the sandbox; and pictures in it.

    A mark's sources may come later than the mark; then the text behind it waits, for `_MAX_WAIT`
    events, and if they do not come, not again.
    """

    def __init__(self, citations: Citations) -> None:
        super().__init__()
        self._citations = citations
        self._scanner = Scanner()
        self._pictures = _Pictures()
        self._message = Message()
        self._waiting: list[Piece] = []
        self._wait = _MAX_WAIT

    def update(self, message: Message, content: Content, out: list[Item]) -> None:
        self._message = message
        delta = self._diff.advance(content)
        if delta or self._waiting:
            self._append(self._scanner.feed(delta), out)
        if type(content) is not Appended:
            self._pictures.update(message, content, out)

    def close(self, out: list[Item]) -> None:
        self._append(self._scanner.flush(), out, final=True)
        self._pictures.close(out)

    def _append(self, pieces: list[Piece], out: list[Item], *, final: bool = False) -> None:
        if self._waiting:
            self._wait -= 1
            pieces, self._waiting = self._waiting + pieces, []
        rest = iter(pieces)
        for piece in rest:
            if isinstance(piece, str):
                out.append(Text(piece))
                continue
            items = self._items(piece, final=final or self._wait <= 0)
            if items is None:
                self._waiting = [piece, *rest]
                return
            out += items
            if isinstance(piece, Marker) and self._wait > 0:
                self._wait = _MAX_WAIT

    def _items(self, piece: Mark | Marker | Link, *, final: bool) -> Sequence[Item] | None:
        match piece:
            case Mark():
                return self._citations.cited(piece, self._message.metadata)
            case Marker():
                return self._citations.marked(piece, self._message.metadata, final=final)
            case Link():
                return [SandboxFile(piece.target, self._message.id)]


class _Code(_Handler):
    """What a tool is called with."""

    def add(self, delta: str, message: Message, content: Content, out: list[Item]) -> None:
        language = ""
        if self._first:
            language = content.language or ""
            if language == "unknown" or not _LANGUAGE.fullmatch(language):
                is_json = delta.lstrip().startswith(("{", "["))
                language = "json" if is_json else "text"
                if message.recipient == "python":
                    language = "python"
        out.append(CodeBlock(delta, self._first, language))
        self._first = False


class _Reasoning(_Handler):
    """The steps of a model that thinks aloud."""

    def add(self, delta: str, message: Message, content: Content, out: list[Item]) -> None:
        out.append(Reasoning(delta))


class _Output(_Handler):
    """What running code printed, then the plots it has shown."""

    def __init__(self, plot_notice: str) -> None:
        super().__init__()
        self._notice = Replacement(PLOT_MARKER, plot_notice)
        self._plots: dict[str, None] = {}

    def update(self, message: Message, content: Content, out: list[Item]) -> None:
        self._append(self._notice.feed(self._diff.advance(content)), out)
        if message.metadata is not None:
            shown = map(file_id, plots(message.metadata.aggregate_result))
            self._plots.update((name, None) for name in shown if name)

    def close(self, out: list[Item]) -> None:
        self._append(self._notice.flush(), out)
        out.extend(Asset(name) for name in self._plots)
        self._plots.clear()

    def _append(self, text: str, out: list[Item]) -> None:
        if text:
            out.append(ExecutionOutput(text, self._first))
            self._first = False


class Replacement:
    """Replaces a fixed marker in a text; `feed` increments, which may split the marker."""

    __slots__ = ("_held", "_marker", "_replacement")

    def __init__(self, marker: str, replacement: str) -> None:
        self._marker = marker
        self._replacement = replacement
        self._held = ""

    def feed(self, delta: str) -> str:
        text = (self._held + delta).replace(self._marker, self._replacement)
        keep = min(len(self._marker) - 1, len(text))
        while keep and not text.endswith(self._marker[:keep]):
            keep -= 1
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


class _Pictures(_Handler):
    """Pictures that a tool has drawn: all of them, each once, when the message is complete."""

    def __init__(self) -> None:
        self._found: dict[str, Asset] = {}
        self._given: set[str] = set()

    def update(self, message: Message, content: Content, out: list[Item]) -> None:
        for part in content.parts or ():
            if isinstance(part, dict) and (asset := _asset(part)) is not None:
                self._found[asset.file_id] = asset

    def close(self, out: list[Item]) -> None:
        out.extend(asset for name, asset in self._found.items() if name not in self._given)
        self._given.update(self._found)
        self._found.clear()


class _UploadNotice(_Handler):
    """The tool's remark that all uploads are read; `notice` is said for it once, if anything."""

    def __init__(self, notice: str) -> None:
        self._notice = notice
        self._whole = ""

    def update(self, message: Message, content: Content, out: list[Item]) -> None:
        self._whole = content.whole

    def close(self, out: list[Item]) -> None:
        if self._notice and self._whole.lstrip().startswith(UPLOADS_READ):
            out.append(Text(self._notice))
            self._notice = ""


class _Dalle(msgspec.Struct):
    prompt: str | None = None


class _ImageMetadata(msgspec.Struct):
    dalle: _Dalle | None = None


class _ImagePart(msgspec.Struct):
    asset_pointer: str
    metadata: _ImageMetadata | None = None


def _asset(part: dict[str, Any]) -> Asset | None:
    """The picture that a part of a message points at, if it does."""
    try:
        found = msgspec.convert(part, _ImagePart)
    except msgspec.ValidationError:
        return None
    name = file_id(found.asset_pointer)
    dalle = found.metadata.dalle if found.metadata is not None else None
    return Asset(name, dalle.prompt if dalle else None) if name else None
