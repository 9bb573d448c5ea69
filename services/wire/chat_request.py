"""OpenAI's chat completion request, decoded and validated into a `ChatRequest`.

Field list: OpenAI's API reference, `chat/completion_create_params`. What we do not name stays in
`source`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from services.core.errors import InvalidRequest
from services.core.requests import (
    AudioPart,
    ChatRequest,
    FilePart,
    FunctionCall,
    ImagePart,
    Message,
    OtherPart,
    Part,
    Role,
    TextPart,
    Tool,
    ToolChoice,
)
from services.wire.json_body import decode_json, printable

T = TypeVar("T")

MAX_MODEL_NAME = 256

_Tokens = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
"""Some clients say "as many as you like" by a number below 1."""


class RequestLimits(msgspec.Struct, frozen=True):
    """How large a request may be."""

    max_messages: int = 4096


class _ImageURL(msgspec.Struct):
    url: str
    detail: str | None = None


class _Audio(msgspec.Struct):
    data: str
    format: str


class _File(msgspec.Struct):
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image_url: _ImageURL | str | None = None
    input_audio: _Audio | None = None
    file: _File | None = None
    refusal: str | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""
    input: str = ""


class _Call(msgspec.Struct):
    id: str = ""
    type: str = "function"
    function: _Function | None = None
    custom: _Function | None = None


class _Message(msgspec.Struct):
    role: Role
    content: str | list[_Part | str] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: _Function | None = None


class _ToolFunction(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _ToolFunction | None = None
    custom: _ToolFunction | None = None


class _Named(msgspec.Struct):
    name: str


class _ChosenTool(msgspec.Struct):
    type: str = "function"
    function: _Named | None = None
    custom: _Named | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _ChosenTool | None = None
    functions: list[_ToolFunction] | None = None
    function_call: str | _Named | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    user: str | None = None


# msgspec's first look at a type is not safe with several threads: it happens here, once
_decode_source = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
msgspec.json.Decoder(_Body)


def decode_chat_request(body: bytes, limits: RequestLimits) -> ChatRequest:
    """A `ChatRequest` from a request body.

    Raises `InvalidRequest`, with `param`, for anything else.
    """
    wire = decode_json(body, _Body)
    _check(wire, limits)
    return ChatRequest(
        model=wire.model,
        messages=tuple([_message(m, i) for i, m in enumerate(wire.messages)]),
        stream=bool(wire.stream),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        temperature=wire.temperature,
        top_p=wire.top_p,
        max_tokens=wire.max_completion_tokens or wire.max_tokens,
        stop=(wire.stop,) if isinstance(wire.stop, str) else tuple(wire.stop or ()),
        n=wire.n or 1,
        tools=_tools(wire),
        tool_choice=_tool_choice(wire),
        parallel_tool_calls=wire.parallel_tool_calls,
        response_format=wire.response_format,
        reasoning_effort=wire.reasoning_effort,
        user=wire.user,
        source=_decode_source(body),
    )


def _check(wire: _Body, limits: RequestLimits) -> None:
    if not wire.model or len(wire.model) > MAX_MODEL_NAME or not wire.model.isprintable():
        raise InvalidRequest(
            f"model must be 1 to {MAX_MODEL_NAME} printable characters", param="model"
        )
    if not wire.messages:
        raise InvalidRequest("messages is empty: send at least one message", param="messages")
    if len(wire.messages) > limits.max_messages:
        raise InvalidRequest(
            f"{len(wire.messages)} messages are more than the {limits.max_messages} allowed here",
            param="messages",
        )
    if wire.n is not None and not 1 <= wire.n <= 128:
        raise InvalidRequest("n must be 1 to 128", param="n")


def _message(wire: _Message, index: int) -> Message:
    content = wire.content
    if content is None and wire.role in ("user", "system", "developer"):
        _present(content, f"messages[{index}].content")
    return Message(
        role=wire.role,
        content=content
        if content is None or isinstance(content, str)
        else tuple([_part(p, f"messages[{index}].content[{i}]") for i, p in enumerate(content)]),
        name=wire.name,
        tool_calls=_calls(wire, index) if wire.tool_calls or wire.function_call else (),
        tool_call_id=wire.tool_call_id,
        reasoning=wire.reasoning_content,
    )


def _part(part: _Part | str, path: str) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    match part.type:
        case "text" | "input_text" | "output_text":
            return TextPart(_present(part.text, f"{path}.text"))
        case "refusal":
            return TextPart(_present(part.refusal, f"{path}.refusal"))
        case "image_url" | "input_image":
            return _image(part, path)
        case "input_audio":
            audio = _present(part.input_audio, f"{path}.input_audio")
            return AudioPart(audio.data, audio.format)
        case "file":
            return _file(_present(part.file, f"{path}.file"), f"{path}.file")
        case other:
            return OtherPart(printable(other))


def _image(part: _Part, path: str) -> ImagePart:
    image = part.image_url
    if isinstance(image, str):
        return ImagePart(image)
    image = _present(image, f"{path}.image_url")
    return ImagePart(image.url, image.detail)


def _file(file: _File, path: str) -> FilePart:
    if not (file.file_data or file.file_id or file.file_url):
        raise InvalidRequest(
            f"{path} needs file_data, file_id or file_url",
            param=path,
            code="missing_required_parameter",
        )
    return FilePart(file.file_data, file.file_id, file.file_url, file.filename)


def _present(value: T | None, path: str) -> T:
    if value is None:
        raise InvalidRequest(
            f"missing required parameter: {path}", param=path, code="missing_required_parameter"
        )
    return value


def _calls(wire: _Message, index: int) -> tuple[FunctionCall, ...]:
    if not wire.tool_calls:
        old = wire.function_call
        return (FunctionCall("", old.name, old.arguments),) if old else ()
    calls = []
    for position, call in enumerate(wire.tool_calls):
        path = f"messages[{index}].tool_calls[{position}]"
        if call.type == "custom":
            custom = _present(call.custom, f"{path}.custom")
            calls.append(FunctionCall(call.id, custom.name, custom.input, "custom"))
        else:
            function = _present(call.function, f"{path}.function")
            calls.append(FunctionCall(call.id, function.name, function.arguments))
    return tuple(calls)


def _tools(wire: _Body) -> tuple[Tool, ...]:
    tools = [_tool("function", function) for function in wire.functions or ()]
    for index, tool in enumerate(wire.tools or ()):
        if tool.type == "function":
            tools.append(_tool("function", _present(tool.function, f"tools[{index}].function")))
        elif tool.type == "custom":
            tools.append(_tool("custom", _present(tool.custom, f"tools[{index}].custom")))
    return tuple(tools)


def _tool(kind: str, wire: _ToolFunction) -> Tool:
    return Tool(wire.name, wire.description or "", wire.parameters, kind, wire.strict)


def _tool_choice(wire: _Body) -> ToolChoice | None:
    choice = wire.tool_choice if wire.tool_choice is not None else wire.function_call
    if choice is None:
        return None
    if isinstance(choice, _Named):
        return ToolChoice("function", choice.name)
    if isinstance(choice, _ChosenTool):
        named = choice.function or choice.custom
        return ToolChoice("function", named.name) if named else ToolChoice("auto")
    mode: dict[str, Literal["none", "auto", "required"]] = {
        "none": "none",
        "auto": "auto",
        "required": "required",
        "any": "required",
    }
    if choice not in mode:
        field = "tool_choice" if wire.tool_choice is not None else "function_call"
        raise InvalidRequest(
            f"{field} must be none, auto, required or a named function", param=field
        )
    return ToolChoice(mode[choice])
