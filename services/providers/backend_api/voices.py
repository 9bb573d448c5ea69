"""One class for each kind of message: what its growing text means to us."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, assert_never

import msgspec

from services.core.events import CodeBlock, ExecutionOutput, Reasoning, Text
from services.providers.backend_api.citations import Citations
from services.providers.backend_api.found import Asset, Found, SandboxFile, file_id
from services.providers.backend_api.growth import Growth
from services.providers.backend_api.notice import Replacement
from services.providers.backend_api.scanner import Link, Mark, Marker, Piece, Scanner
from services.providers.backend_api.upstream_events import Message, plots

PLOT_MARKER = "<<ImageDisplayed>>"
_PATIENCE = 8
_LANGUAGE = re.compile(r"[\w+#.-]{1,30}", re.ASCII)


class Voice(Protocol):
    """A message. `hear` takes each of its events, `close` says what is held back; both append."""

    def hear(self, message: Message, out: list[Found]) -> None: ...

    def close(self, out: list[Found]) -> None: ...


class Spoken:
    """The answer's text, with citation marks and links into the sandbox; and pictures in it.

    A mark's sources may come later than the mark; then the text behind it waits, for `_PATIENCE`
    events, and if they do not come, not again.
    """

    def __init__(self, citations: Citations) -> None:
        self._citations = citations
        self._growth = Growth()
        self._scanner = Scanner()
        self._pictures = Pictures()
        self._message = Message()
        self._waiting: list[Piece] = []
        self._patience = _PATIENCE

    def hear(self, message: Message, out: list[Found]) -> None:
        assert message.content is not None
        self._message = message
        delta = self._growth.advance(message.content)
        if delta or self._waiting:
            self._say(self._scanner.feed(delta), out)
        self._pictures.hear(message, out)

    def close(self, out: list[Found]) -> None:
        self._say(self._scanner.flush(), out, final=True)
        self._pictures.close(out)

    def _say(self, pieces: list[Piece], out: list[Found], *, final: bool = False) -> None:
        if self._waiting:
            self._patience -= 1
            pieces, self._waiting = self._waiting + pieces, []
        rest = iter(pieces)
        for piece in rest:
            if type(piece) is str:
                out.append(Text(piece))
                continue
            assert not isinstance(piece, str)
            said = self._said(piece, final=final or self._patience <= 0)
            if said is None:
                self._waiting = [piece, *rest]
                return
            out += said
            if isinstance(piece, Marker) and self._patience > 0:
                self._patience = _PATIENCE

    def _said(self, piece: Mark | Marker | Link, *, final: bool) -> Sequence[Found] | None:
        match piece:
            case Mark():
                return self._citations.cited(piece, self._message.metadata)
            case Marker():
                return self._citations.marked(piece, self._message.metadata, final=final)
            case Link():
                return [SandboxFile(piece.target, self._message.id)]
            case _:
                assert_never(piece)


class Code:
    """What a tool is called with."""

    def __init__(self) -> None:
        self._growth = Growth()
        self._first = True

    def hear(self, message: Message, out: list[Found]) -> None:
        assert message.content is not None
        delta = self._growth.advance(message.content)
        if delta:
            language = _language(message, delta) if self._first else ""
            out.append(CodeBlock(delta, self._first, language))
            self._first = False

    def close(self, out: list[Found]) -> None:
        """Nothing is held back."""


class Output:
    """What running code printed, then the plots it has shown."""

    def __init__(self, plot_notice: str) -> None:
        self._growth = Growth()
        self._notice = Replacement(PLOT_MARKER, plot_notice)
        self._plots: dict[str, None] = {}
        self._first = True

    def hear(self, message: Message, out: list[Found]) -> None:
        assert message.content is not None
        self._say(self._notice.feed(self._growth.advance(message.content)), out)
        if message.metadata is not None:
            shown = map(file_id, plots(message.metadata.aggregate_result))
            self._plots.update((name, None) for name in shown if name)

    def close(self, out: list[Found]) -> None:
        self._say(self._notice.flush(), out)
        out.extend(Asset(name) for name in self._plots)
        self._plots.clear()

    def _say(self, text: str, out: list[Found]) -> None:
        if text:
            out.append(ExecutionOutput(text, self._first))
            self._first = False


class Thinking:
    """The steps of a model that thinks aloud."""

    def __init__(self) -> None:
        self._growth = Growth()

    def hear(self, message: Message, out: list[Found]) -> None:
        assert message.content is not None
        delta = self._growth.advance(message.content)
        if delta:
            out.append(Reasoning(delta))

    def close(self, out: list[Found]) -> None:
        """Nothing is held back."""


class Pictures:
    """Pictures that a tool has drawn: all of them, each once, when the message is complete."""

    def __init__(self) -> None:
        self._waiting: dict[str, Asset] = {}
        self._told: set[str] = set()

    def hear(self, message: Message, out: list[Found]) -> None:
        assert message.content is not None
        for part in message.content.parts or ():
            if isinstance(part, dict) and (asset := _asset(part)) is not None:
                self._waiting[asset.file_id] = asset

    def close(self, out: list[Found]) -> None:
        out.extend(asset for name, asset in self._waiting.items() if name not in self._told)
        self._told.update(self._waiting)
        self._waiting.clear()


class Notice:
    """The tool's remark that all uploads are read; `instead` is said for it once, if anything."""

    START = "All the files uploaded by the user have been fully loaded"

    def __init__(self, instead: str) -> None:
        self._instead = instead
        self._whole = ""

    def hear(self, message: Message, out: list[Found]) -> None:
        assert message.content is not None
        self._whole = message.content.whole

    def close(self, out: list[Found]) -> None:
        if self._instead and self._whole.lstrip().startswith(self.START):
            out.append(Text(self._instead))
            self._instead = ""


def _language(message: Message, start: str) -> str:
    """What the code of a message is written in, for the block that shows it."""
    assert message.content is not None
    said = message.content.language or ""
    if said != "unknown" and _LANGUAGE.fullmatch(said):
        return said
    if message.recipient == "python":
        return "python"
    return "json" if start.lstrip().startswith(("{", "[")) else "text"


def _asset(part: dict[str, Any]) -> Asset | None:
    """The picture that a part of a message points at, if it does."""
    try:
        found = msgspec.convert(part, _ImagePart)
    except msgspec.ValidationError:
        return None
    name = file_id(found.asset_pointer)
    dalle = found.metadata.dalle if found.metadata is not None else None
    return Asset(name, dalle.prompt if dalle else None) if name else None


class _Dalle(msgspec.Struct):
    prompt: str | None = None


class _ImageMetadata(msgspec.Struct):
    dalle: _Dalle | None = None


class _ImagePart(msgspec.Struct):
    asset_pointer: str
    metadata: _ImageMetadata | None = None
