"""From what an upstream can say to what a chat dialect can say.

The only way from `Event` to `WireEvent`.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

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

_RICH = frozenset((Citation, CodeBlock, ExecutionOutput, File, Image))
_FENCE = "\n```\n"


class Profile(msgspec.Struct, frozen=True):
    """What of an upstream's rich output reaches the caller, and in which form."""

    name: str = "normal"


NORMAL = Profile()


def render(events: Events, profile: Profile) -> WireEvents:
    """Turn rich events into text; batches without any pass as they are."""
    renderer = _Renderer(profile)
    for batch in events:
        yield renderer.batch(batch)


class _Renderer:
    """State of one answer: whether a fenced block is open."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._open: type[CodeBlock] | type[ExecutionOutput] | None = None

    def batch(self, batch: list[Event]) -> list[WireEvent]:
        if not self._open and _RICH.isdisjoint(map(type, batch)):
            return batch  # type: ignore[return-value]  # no rich event in it
        out: list[WireEvent] = []
        for event in batch:
            if type(event) in _RICH or (self._open and isinstance(event, Text | Finish)):
                text = self._render(event)
                if text:
                    out.append(Text(text))
            if type(event) not in _RICH:
                out.append(event)  # type: ignore[arg-type]  # not rich, so a wire event
        return out

    def _render(self, event: Event) -> str:
        match event:
            case CodeBlock():
                return self._block(event, CodeBlock, _FENCE)
            case ExecutionOutput():
                return self._block(event, ExecutionOutput, f"`Result:` {_FENCE}")
            case Image():
                return f"{self._close()}\n![{event.title}]({event.url})\n"
            case File():
                return f"{self._close()}[{event.name}]({event.url})"
            case Citation():
                return f"[[{event.mark}]({event.url})]" if event.url else ""
            case Text() | Finish():
                return self._close()
            case Reasoning() | ToolCall() | Usage() | Extra() | Conversation():
                return ""
            case _:
                assert_never(event)

    def _block(
        self,
        event: CodeBlock | ExecutionOutput,
        kind: type[CodeBlock] | type[ExecutionOutput],
        opening: str,
    ) -> str:
        if self._open is kind and not event.first:
            return event.text
        before = self._close()
        self._open = kind
        return before + opening + event.text

    def _close(self) -> str:
        closing = _FENCE if self._open else ""
        self._open = None
        return closing
