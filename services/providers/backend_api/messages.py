"""Our messages in the upstream's shape. Pure, given the files that were uploaded before."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, assert_never

import msgspec

from services.core.errors import InvalidRequest
from services.core.requests import Message, Part
from services.providers.backend_api.model_names import Family
from services.providers.backend_api.uploads import Uploaded

Place = tuple[int, int]
"""Which message of the request, and which part of it."""


class _Said(msgspec.Struct):
    """A message on its way: texts and pictures in their order, and the files to attach."""

    role: str
    parts: list[str | Uploaded]
    files: list[Uploaded]


def file_parts(messages: tuple[Message, ...], family: Family) -> Iterator[tuple[Place, Part]]:
    """The parts that must be uploaded, with their places.

    Raises `InvalidRequest` for a part that this family cannot be sent.
    """
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            match part.kind:
                case "text":
                    continue
                case "image" | "file":
                    if family.text_only:
                        raise _unsupported("this model takes no pictures or files", i, j)
                    yield (i, j), part
                case "audio":
                    raise _unsupported("this model takes no audio", i, j)
                case "other":
                    raise _unsupported("parts of this type are not known here", i, j)
                case kind:
                    assert_never(kind)


def latest(messages: tuple[Message, ...]) -> int:
    """Where the new messages begin when the upstream knows the conversation: after the last
    answer.
    """
    last = len(messages) - 1
    answers = [i for i, m in enumerate(messages) if m.role == "assistant" and i < last]
    return answers[-1] + 1 if answers else 0


def upstream_messages(
    messages: tuple[Message, ...],
    family: Family,
    uploaded: Mapping[Place, Uploaded],
    start: int = 0,
) -> list[dict[str, Any]]:
    """The value of `messages`, from the message number `start` on."""
    tools = _tool_names(messages)
    said = [_said(m, i, tools, uploaded) for i, m in enumerate(messages) if i >= start]
    if family.talk_only:
        said = _talk_only(said)
    return [_object(message, family) for message in said]


def _said(
    message: Message, index: int, tools: Mapping[str, str], uploaded: Mapping[Place, Uploaded]
) -> _Said:
    match message.role:
        case "tool" | "function":
            name = message.name or tools.get(message.tool_call_id or "", "") or "tool"
            return _Said("user", [f"Result of the tool {name}:\n{message.text}"], [])
        case "developer" | "system":
            role = "system"
        case role:
            pass
    parts: list[str | Uploaded] = []
    files: list[Uploaded] = []
    for j, part in enumerate(message.parts):
        file = uploaded.get((index, j))
        if file is not None:
            files.append(file)
        if file is not None and file.width is not None:
            parts.append(file)
        elif part.kind == "text":
            parts.append(part.words)
    if isinstance(message.content, str):
        parts.append(message.content)
    if message.calls:
        calls = [f"Called the tool {c.name} with {c.arguments or '{}'}" for c in message.calls]
        parts = [part for part in parts if part] + ["\n".join(calls)]
    return _Said(role, parts or [""], files)


def _tool_names(messages: tuple[Message, ...]) -> dict[str, str]:
    return {call.id: call.name for message in messages for call in message.calls}


def _talk_only(said: list[_Said]) -> list[_Said]:
    """System texts move into the first user message, for models that know no system role."""
    rules = [part for m in said if m.role == "system" for part in m.parts if isinstance(part, str)]
    talk = [message for message in said if message.role in ("user", "assistant")]
    preface = "\n\n".join(rule for rule in rules if rule)
    if not preface:
        return talk
    first = next((message for message in talk if message.role == "user"), None)
    if first is None:
        return [_Said("user", [preface], []), *talk]
    if first.parts and isinstance(first.parts[0], str):
        first.parts[0] = f"{preface}\n\n{first.parts[0]}"
    else:
        first.parts.insert(0, preface)
    return talk


def _object(said: _Said, family: Family) -> dict[str, Any]:
    parts: list[Any] = [_pointer(p) if isinstance(p, Uploaded) else p for p in said.parts]
    if family.text_only:
        parts = ["\n".join(parts)]
    pictures = any(isinstance(part, dict) for part in parts)
    metadata = {"attachments": [_attachment(file) for file in said.files]} if said.files else {}
    return {
        "id": str(uuid.uuid4()),
        "author": {"role": said.role},
        "content": {"content_type": "multimodal_text" if pictures else "text", "parts": parts},
        "metadata": metadata,
    }


def _pointer(file: Uploaded) -> dict[str, Any]:
    return {
        "content_type": "image_asset_pointer",
        "asset_pointer": f"file-service://{file.file_id}",
        "size_bytes": file.size,
        "width": file.width,
        "height": file.height,
    }


def _attachment(file: Uploaded) -> dict[str, Any]:
    about = {"name": file.name, "id": file.file_id, "mimeType": file.mime, "size": file.size}
    size = {"width": file.width, "height": file.height} if file.width is not None else {}
    return {**about, **size}


def _unsupported(reason: str, message: int, part: int) -> InvalidRequest:
    return InvalidRequest(reason, param=f"messages[{message}].content[{part}]")
