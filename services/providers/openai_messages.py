"""Our messages in OpenAI's shape, for upstreams that speak it, when the caller's own JSON no
longer holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

from services.core.errors import InvalidRequest
from services.core.requests import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    OtherPart,
    Part,
    TextPart,
)


def message_objects(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The value of `messages` of a chat completion request."""
    return [_message(message) for message in messages]


def _message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role}
    content = message.content
    out["content"] = [_part(p) for p in content] if isinstance(content, tuple) else content
    if message.name is not None:
        out["name"] = message.name
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": call.kind,
                call.kind: {
                    "name": call.name,
                    "input" if call.kind == "custom" else "arguments": call.arguments,
                },
            }
            for call in message.tool_calls
        ]
    return out


def _part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            detail = {"detail": part.detail} if part.detail else {}
            return {"type": "image_url", "image_url": {"url": part.url, **detail}}
        case AudioPart():
            return {
                "type": "input_audio",
                "input_audio": {"data": part.data, "format": part.format},
            }
        case FilePart():
            known = {
                "file_data": part.data,
                "file_id": part.file_id,
                "file_url": part.url,
                "filename": part.name,
            }
            return {"type": "file", "file": {k: v for k, v in known.items() if v is not None}}
        case OtherPart():
            raise InvalidRequest(f"a message part of type {part.type} cannot be changed here")
        case _:
            assert_never(part)
