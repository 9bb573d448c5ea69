"""A chat request in our own words: decoded once at the edge, typed from there on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(msgspec.Struct, frozen=True):
    text: str


class ImagePart(msgspec.Struct, frozen=True):
    """A picture by http(s) or `data:` URL, as the caller sent it."""

    url: str
    detail: str | None = None


class AudioPart(msgspec.Struct, frozen=True):
    """`data` is base64, `format` is "wav" or "mp3"."""

    data: str
    format: str


class FilePart(msgspec.Struct, frozen=True):
    """A file by `data:` URL or base64 (`data`), by `url`, or by the id of an upload (`file_id`)."""

    data: str | None = None
    file_id: str | None = None
    url: str | None = None
    name: str | None = None


class OtherPart(msgspec.Struct, frozen=True):
    """A part of a type we do not know. Only pass-through providers take it."""

    type: str


Part = TextPart | ImagePart | AudioPart | FilePart | OtherPart


class FunctionCall(msgspec.Struct, frozen=True):
    """One tool call in an assistant message; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str
    kind: str = "function"


class Message(msgspec.Struct, frozen=True):
    """One message.

    `content` is text, a tuple of parts, or None (an assistant that only called tools).
    """

    role: Role
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[FunctionCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """All text of the message, parts joined without a separator."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class Tool(msgspec.Struct, frozen=True):
    """A tool the model may call. `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    kind: str = "function"
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`mode` is none, auto, required or function; `name` goes with function."""

    mode: Literal["none", "auto", "required", "function"] = "auto"
    name: str | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """One turn. `model` is the name the caller used and is echoed in every answer.

    `source` holds the body's top-level fields as raw JSON, for providers that pass requests
    through; `replace_messages` drops from it what no longer holds.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    source: Mapping[str, msgspec.Raw] = msgspec.field(default_factory=dict)

    def replace_messages(self, messages: tuple[Message, ...]) -> ChatRequest:
        """The same request with other messages; pass-through providers then encode the typed
        ones.
        """
        source = {key: value for key, value in self.source.items() if key != "messages"}
        return msgspec.structs.replace(self, messages=messages, source=source)
