"""Files that a message names by the id of an upload to /v1/files, as the bytes they stand for."""

from __future__ import annotations

from base64 import b64encode

from services.core.models import Caller
from services.core.requests import ChatRequest, FilePart, Message, Part
from services.files.attachments import Sources, resolve_attachment


def fill_in_uploads(request: ChatRequest, sources: Sources, caller: Caller) -> ChatRequest:
    """The request with every `file_id` replaced by its bytes; the same one if it has none.

    Raise InvalidRequest, naming the part, for an id that is not the caller's.
    """
    if not any(_has_upload(message) for message in request.messages):
        return request
    return request.replace_messages(
        tuple(
            _filled(message, f"messages[{index}]", sources, caller)
            for index, message in enumerate(request.messages)
        )
    )


def _has_upload(message: Message) -> bool:
    return isinstance(message.content, tuple) and any(map(_is_upload, message.content))


def _is_upload(part: Part) -> bool:
    return isinstance(part, FilePart) and part.file_id is not None


def _filled(message: Message, path: str, sources: Sources, caller: Caller) -> Message:
    if not isinstance(message.content, tuple):
        return message
    content = tuple(
        _as_data(part, f"{path}.content[{place}]", sources, caller)
        if isinstance(part, FilePart) and part.file_id is not None
        else part
        for place, part in enumerate(message.content)
    )
    return Message(
        role=message.role,
        content=content,
        name=message.name,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning,
    )


def _as_data(part: FilePart, path: str, sources: Sources, caller: Caller) -> FilePart:
    found = resolve_attachment(part, sources, caller, param=path)
    data = f"data:{found.mime};base64,{b64encode(found.data).decode()}"
    return FilePart(data=data, name=part.name or found.name)
