"""A chat request as typed values, in OpenAI's own shape: what is decoded at the edge is what
providers read, so that nothing is converted in between.

Only fields that something here acts on are named. The rest is in `ChatRequest.source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
PartKind = Literal["text", "image", "audio", "file", "other"]

_KINDS: dict[str, PartKind] = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "text",
    "image_url": "image",
    "input_image": "image",
    "input_audio": "audio",
    "file": "file",
}


class ImageURL(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A picture by http(s) or `data:` URL, as the caller sent it."""

    url: str
    detail: str | None = None


class Audio(msgspec.Struct, frozen=True, gc=False):
    """`data` is base64, `format` is "wav" or "mp3"."""

    data: str
    format: str


class File(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A file by `data:` URL or base64 (`file_data`), by URL, or by the id of an upload."""

    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part of a message. Which field is set goes with `kind`; "other" is a type that we do not
    know, whose fields only a provider that passes requests through can send on.
    """

    type: str
    text: str | None = None
    image_url: ImageURL | str | None = None
    input_audio: Audio | None = None
    file: File | None = None
    refusal: str | None = None

    @property
    def kind(self) -> PartKind:
        return _KINDS.get(self.type, "other")

    @property
    def words(self) -> str:
        """The text of a text part, "" for any other."""
        if self.kind != "text":
            return ""
        return (self.refusal if self.type == "refusal" else self.text) or ""

    @property
    def image(self) -> ImageURL | None:
        """The picture of an image part."""
        if self.kind != "image":
            return None
        return ImageURL(self.image_url) if isinstance(self.image_url, str) else self.image_url

    @property
    def attached(self) -> File | None:
        """The file of a file part."""
        return self.file if self.type == "file" else None


def text_part(text: str) -> Part:
    """A part that is a text."""
    return Part("text", text)


def image_part(url: str, detail: str | None = None) -> Part:
    """A part that is a picture."""
    return Part("image_url", image_url=ImageURL(url, detail))


def file_part(
    data: str | None = None,
    name: str | None = None,
    *,
    url: str | None = None,
    file_id: str | None = None,
) -> Part:
    """A part that is a file: `data` is a `data:` URL or base64."""
    return Part("file", file=File(data, file_id, url, name))


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that was called. `arguments` is JSON text; some clients send the object."""

    name: str
    arguments: str | dict[str, msgspec.Raw] | None = ""
    input: str = ""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tool call in an assistant message: of a `function`, or of a `custom` tool, whose input is
    any text.
    """

    id: str = ""
    type: str = "function"
    function: Function | None = None
    custom: Function | None = None

    @property
    def name(self) -> str:
        called = self.custom if self.type == "custom" else self.function
        return called.name if called else ""

    @property
    def arguments(self) -> str:
        """JSON text, or a custom tool's input."""
        if self.type == "custom":
            return self.custom.input if self.custom else ""
        given = self.function.arguments if self.function else ""
        return msgspec.json.encode(given).decode() if isinstance(given, dict) else given or ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message.

    `content` is text, a tuple of parts and plain texts, or None (an assistant that only called
    tools).
    """

    role: Role
    content: str | tuple[Part | str, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: Function | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a content that is not one text."""
        content = self.content if isinstance(self.content, tuple) else ()
        return tuple([text_part(part) if isinstance(part, str) else part for part in content])

    @property
    def text(self) -> str:
        """All text of the message, parts joined without a separator."""
        if isinstance(self.content, str):
            return self.content
        return "".join([part.words for part in self.parts])

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, also one in the old form of `function_call`."""
        if self.tool_calls or self.function_call is None:
            return self.tool_calls or ()
        return (ToolCall(function=self.function_call),)


class ToolFunction(msgspec.Struct, frozen=True, gc=False):
    """`parameters` is a JSON schema as the caller wrote it."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"null")


class Tool(msgspec.Struct, frozen=True):
    """A tool that the model may call."""

    type: str = "function"
    function: ToolFunction | None = None
    custom: ToolFunction | None = None


class NamedTool(msgspec.Struct, frozen=True, gc=False):
    name: str


class ChosenTool(msgspec.Struct, frozen=True):
    """The one tool that must be called."""

    type: str = "function"
    function: NamedTool | None = None
    custom: NamedTool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, gc=False):
    """`type` is text, json_object or json_schema."""

    type: str = "text"


class ChatRequest(msgspec.Struct, frozen=True):
    """One turn. `model` is the name the caller used and is echoed in every answer.

    `tool_choice` is a tool, or one of none, auto, required and any. `source` holds the body's
    top-level fields as raw JSON, for providers that pass requests through; `replace_messages` drops
    from it what no longer holds.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    tools: tuple[Tool, ...] = ()
    tool_choice: str | ChosenTool | None = None
    response_format: ResponseFormat | None = None
    source: Mapping[str, msgspec.Raw] = msgspec.field(default_factory=dict)

    def replace_messages(self, messages: tuple[Message, ...]) -> ChatRequest:
        """The same request with other messages; pass-through providers then encode the typed
        ones.
        """
        source = {key: value for key, value in self.source.items() if key != "messages"}
        return msgspec.structs.replace(self, messages=messages, source=source)
