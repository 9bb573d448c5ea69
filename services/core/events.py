"""What an upstream can say (`Event`) and what a chat dialect can say (`WireEvent`).

A stream of events travels in batches, one per read from the upstream's socket:
`Iterator[list[Event]]`. An empty batch means that the upstream was silent for one tick (a
second); stages pass it on, and the edge uses it for keep-alive and to notice that the client has
left. Text is always an increment. A choice ends with exactly one `Finish`; a stream that ends
without one is an error (see pipeline/guard).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Text(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer. `logprobs` is OpenAI's object for this piece, as JSON."""

    text: str
    index: int = 0
    logprobs: msgspec.Raw | None = None


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's thinking, never part of the answer (`reasoning_content` on the
    wire).
    """

    text: str
    index: int = 0


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call. The first piece of a call has `id` and `name`; `arguments` is an
    increment.

    `position` numbers the calls of one answer from 0. `kind` is "function" or "custom".
    """

    position: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    kind: str = "function"
    index: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts.

    `details` holds whatever else the upstream reported, by OpenAI's field names.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    details: Mapping[str, Any] | None = None
    estimated: bool = False


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The end of one choice."""

    reason: FinishReason
    index: int = 0


class Extra(msgspec.Struct, frozen=True):
    """Fields of an OpenAI-compatible upstream that we do not know, passed through as they are.

    `place` says where they stood: in the chunk, in its choice, or in the choice's delta (or
    message).
    """

    place: Literal["chunk", "choice", "delta"]
    fields: Mapping[str, Any]
    index: int = 0


class Image(msgspec.Struct, frozen=True):
    """A picture made by the upstream: `url` of the upstream's, or `data`.

    `title` is for its alt text. `missing` is what is said in its place if it cannot be had.
    """

    url: str | None = None
    data: bytes | None = None
    title: str = "image"
    revised_prompt: str | None = None
    missing: str | None = None


class File(msgspec.Struct, frozen=True):
    """A file made by the upstream, and the exact `link` text in the answer that it replaces, if
    any.
    """

    url: str | None = None
    data: bytes | None = None
    name: str = "file"
    link: str | None = None


class Citation(msgspec.Struct, frozen=True):
    """A source of the sentence before it. `mark` is the number the upstream gave it."""

    mark: str
    url: str | None
    title: str = ""


class CodeBlock(msgspec.Struct, frozen=True):
    """A piece of code that the upstream is about to run: one plugin call.

    `first` opens a block.
    """

    text: str
    first: bool = False
    language: str = ""


class ExecutionOutput(msgspec.Struct, frozen=True):
    """A piece of what running the code printed. `first` opens a block."""

    text: str
    first: bool = False


class Conversation(msgspec.Struct, frozen=True):
    """The upstream's own name for this conversation, and the message that ended this turn."""

    id: str
    message_id: str | None = None


Event = (
    Text
    | Reasoning
    | ToolCall
    | Usage
    | Finish
    | Extra
    | Image
    | File
    | Citation
    | CodeBlock
    | ExecutionOutput
    | Conversation
)
WireEvent = Text | Reasoning | ToolCall | Usage | Finish | Extra | Conversation

Events = Iterator[list[Event]]
WireEvents = Iterator[list[WireEvent]]

SILENCE: list[Any] = []
"""The empty batch: nothing arrived for one tick."""
