"""From what an upstream can say to what a chat dialect can say.

The only way from `Event` to `WireEvent`. The markdown is written so that the common front ends
(marked, react-markdown) show it alike.
"""

from __future__ import annotations

import re
from typing import assert_never
from urllib.parse import quote

from services.core.errors import GatewayError
from services.core.events import (
    Citation,
    CodeBlock,
    Conversation,
    Event,
    Events,
    ExecutionOutput,
    Extra,
    File,
    Finish,
    Image,
    Reasoning,
    Text,
    ToolCall,
    Usage,
    WireEvent,
    WireEvents,
)
from services.pipeline.plain_text import PlainText
from services.pipeline.profiles import NORMAL, Profile

__all__ = ["NORMAL", "Profile", "render"]

_RICH = frozenset((Citation, CodeBlock, ExecutionOutput, File, Image))
_RESULT = "`Result:` \n```\n"
_IN_TITLE = str.maketrans({"[": "(", "]": ")", "\n": " ", "\r": " "})
_LINE_ENDS = re.compile(r"[\t\r\n]+")
_NOT_IN_TARGET = re.compile(r"[\s\x00-\x20\x7f()<>\"|`\\$]")
"""What ends a link's target early, or is a mark (of code, of a cell, of a formula) even in it."""


def render(events: Events, profile: Profile) -> WireEvents:
    """Turn rich events into text; in the normal profile, batches without any pass as they are."""
    renderer = _Renderer(profile)
    try:
        for batch in events:
            yield renderer.batch(batch)
        if rest := renderer.end():
            yield rest
    except GatewayError:
        # what was held back is still part of an answer that broke off after it had begun
        if renderer.has_spoken and (rest := renderer.end()):
            yield rest
        raise
    finally:
        closing = getattr(events, "close", None)
        if closing is not None:
            closing()


class _Renderer:
    """State of one answer. Rich events belong to choice 0."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._open: type[CodeBlock] | type[ExecutionOutput] | None = None
        self._said = ""
        self._after_output = False
        self._plain: dict[int, PlainText] = {}
        self.has_spoken = False

    def batch(self, batch: list[Event]) -> list[WireEvent]:
        if (
            self._open is None
            and not self._profile.plain_text
            and _RICH.isdisjoint(map(type, batch))
        ):
            self._remember(batch)
            return batch  # type: ignore[return-value]  # no rich event in it
        out: list[WireEvent] = []
        for event in batch:
            self._event(event, out)
        self.has_spoken = self.has_spoken or bool(out)
        return out

    def _remember(self, batch: list[Event]) -> None:
        """All that a rich event in a later batch may ask for: how the last text ended."""
        for event in reversed(batch):
            if type(event) is Text and event.text and not event.index:
                self._said = event.text
                self._after_output = False
                return

    def end(self) -> list[WireEvent]:
        """What is held back or open; there is nothing after a choice's `Finish`."""
        out: list[WireEvent] = []
        self._close(out)
        held = [(index, plain.flush()) for index, plain in self._plain.items()]
        return out + [Text(text, index) for index, text in held if text]

    def _event(self, event: Event, out: list[WireEvent]) -> None:
        match event:
            case Text():
                self._text(event, out)
            case CodeBlock():
                self._block(event, CodeBlock, f"\n```{event.language}\n", out)
            case ExecutionOutput():
                self._block(event, ExecutionOutput, _RESULT, out)
                self._after_output = True
            case Image():
                self._close(out)
                self._insert(self._image(event), out)
            case File():
                self._close(out)
                self._text(Text(self._file(event)), out)
            case Citation():
                self._close(out)
                if self._profile.references and event.url:
                    self._insert(f"[[{event.mark}]]({_target(event.url)})", out)
            case Finish():
                self._finish(event, out)
            case Reasoning() | ToolCall() | Usage() | Extra() | Conversation():
                out.append(event)
            case _:
                assert_never(event)

    def _text(self, event: Text, out: list[WireEvent]) -> None:
        if event.text and not event.index:
            self._close(out)
            self._after_output = False
            self._said = event.text
        if not self._profile.plain_text:
            out.append(event)
        elif text := self._plain_text(event.index).feed(event.text):
            out.append(Text(text, event.index))

    def _plain_text(self, index: int) -> PlainText:
        if index not in self._plain:
            keep = self._profile.images == "markdown"
            self._plain[index] = PlainText(keep_images=keep)
        return self._plain[index]

    def _insert(self, markup: str, out: list[WireEvent]) -> None:
        """Put text of our own into choice 0, as it is, after all that was said before."""
        if not markup:
            return
        if 0 in self._plain:
            held = self._plain[0].flush(then=markup)
            if held:
                out.append(Text(held))
        out.append(Text(markup))
        self._said = markup

    def _block(
        self,
        event: CodeBlock | ExecutionOutput,
        kind: type[CodeBlock] | type[ExecutionOutput],
        opening: str,
        out: list[WireEvent],
    ) -> None:
        """One piece of a fenced block."""
        if not self._profile.plugins:
            return
        if self._open is kind and not event.first:
            self._insert(event.text, out)
            return
        self._close(out)
        self._open = kind
        self._insert(opening + event.text, out)

    def _close(self, out: list[WireEvent]) -> None:
        if self._open is not None:
            self._open = None
            self._insert("```\n" if self._said.endswith("\n") else "\n```\n", out)

    def _image(self, event: Image) -> str:
        if event.url is None:
            return ""
        labels = self._profile.labels
        if self._profile.images == "url":
            before = "" if not self._said or self._said.endswith("\n") else "\n"
            return f"{before}{labels.plain_image}{event.url}\n"
        before = "" if self._after_output else "\n"
        target = _target(event.url)
        title = event.title.translate(_IN_TITLE)
        download = f"[{labels.download}]({target})\n" if labels.download else ""
        return f"{before}![{title}]({target})\n{download}"

    def _file(self, event: File) -> str:
        """Its address where a link's target is due, else a link of its own."""
        if event.url is None:
            return event.link or event.name
        target = _target(event.url)
        if event.link is not None or self._said.endswith("("):
            return target
        return f"[{event.name.translate(_IN_TITLE)}]({target})"

    def _finish(self, event: Finish, out: list[WireEvent]) -> None:
        if not event.index:
            self._close(out)
        if event.index in self._plain:
            held = self._plain[event.index].flush()
            if held:
                out.append(Text(held, event.index))
        out.append(event)


def _target(url: str) -> str:
    """`url` so that it can stand between the parentheses of a link."""
    return _NOT_IN_TARGET.sub(lambda found: quote(found[0], safe=""), _LINE_ENDS.sub("", url))
