"""OpenAI's chat completion request, decoded and validated into a `ChatRequest`.

Field list: OpenAI's API reference, `chat/completion_create_params`. Fields that nothing here acts
on are not looked at: they stay in `source`, for the upstream to judge.
"""

from __future__ import annotations

import msgspec

from services.core.errors import InvalidRequest
from services.core.requests import (
    ChatRequest,
    ChosenTool,
    File,
    Message,
    ResponseFormat,
    Tool,
)
from services.dialects.json_body import decode_json

MAX_MODEL_NAME = 256
MAX_CHOICES = 128

_PART_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "image_url": "image_url",
    "input_image": "image_url",
    "input_audio": "input_audio",
    "file": "file",
}
"""The field that a part of each type must have."""


class RequestLimits(msgspec.Struct, frozen=True):
    """How large a request may be."""

    max_messages: int = 4096


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    messages: tuple[Message, ...]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | float | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: str | ChosenTool | None = None
    response_format: ResponseFormat | None = None


# msgspec's first look at a type is not safe with several threads: it happens here, once
_decode_source = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
msgspec.json.Decoder(_Body)


def decode_chat_request(body: bytes, limits: RequestLimits) -> ChatRequest:
    """A `ChatRequest` from a request body.

    Raises `InvalidRequest`, with `param`, for anything else.
    """
    asked = decode_json(body, _Body)
    _check(asked, limits)
    _check_messages(asked.messages)
    return ChatRequest(
        model=asked.model,
        messages=asked.messages,
        stream=bool(asked.stream),
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        n=int(asked.n or 1),
        tools=asked.tools or (),
        tool_choice=asked.tool_choice,
        response_format=asked.response_format,
        source=_decode_source(body),
    )


def _check(asked: _Body, limits: RequestLimits) -> None:
    if not asked.model or len(asked.model) > MAX_MODEL_NAME or not asked.model.isprintable():
        raise InvalidRequest(
            f"model must be 1 to {MAX_MODEL_NAME} printable characters", param="model"
        )
    if not asked.messages:
        raise InvalidRequest("messages is empty: send at least one message", param="messages")
    if len(asked.messages) > limits.max_messages:
        raise InvalidRequest(
            f"{len(asked.messages)} messages are more than the {limits.max_messages} allowed here",
            param="messages",
        )
    if asked.n is not None and not (1 <= asked.n <= MAX_CHOICES and asked.n == int(asked.n)):
        raise InvalidRequest(f"n must be a whole number from 1 to {MAX_CHOICES}", param="n")
    for index, tool in enumerate(asked.tools or ()):
        if tool.function is None and tool.type == "function":
            raise _missing(f"tools[{index}].function")
        if tool.custom is None and tool.type == "custom":
            raise _missing(f"tools[{index}].custom")
    choice = asked.tool_choice
    if isinstance(choice, str) and choice not in ("none", "auto", "required", "any"):
        raise InvalidRequest(
            "tool_choice must be none, auto, required or a named function", param="tool_choice"
        )


def _check_messages(messages: tuple[Message, ...]) -> None:
    """Each must have what goes with its role, and with the types of its parts and calls."""
    for index, message in enumerate(messages):
        content = message.content
        if content is None and message.role in ("user", "system", "developer"):
            raise _missing(f"messages[{index}].content")
        for place, part in enumerate(content if type(content) is tuple else ()):
            if isinstance(part, str):
                continue
            field = _PART_FIELDS.get(part.type)
            if field is not None and getattr(part, field) is None:
                raise _missing(f"messages[{index}].content[{place}].{field}")
            if field == "file":
                _check_file(part.file, f"messages[{index}].content[{place}].file")
        for place, call in enumerate(message.tool_calls or ()):
            field = "custom" if call.type == "custom" else "function"
            if getattr(call, field) is None:
                raise _missing(f"messages[{index}].tool_calls[{place}].{field}")


def _check_file(file: File | None, path: str) -> None:
    if file is not None and not (file.file_data or file.file_id or file.file_url):
        raise InvalidRequest(
            f"{path} needs file_data, file_id or file_url",
            param=path,
            code="missing_required_parameter",
        )


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"missing required parameter: {path}", param=path, code="missing_required_parameter"
    )
