"""The body of `POST conversation`: what each model family wants, our messages in the upstream's
shape, and the request that allows an action. Pure, given the files that were uploaded before.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, assert_never

import msgspec

from services.core.errors import InvalidRequest
from services.core.requests import Message, Part
from services.providers.backend_api.files import Uploaded
from services.providers.backend_api.gpts import Gizmo
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.backend_api.upstream_events import Confirmation

_TIMEZONE = -480
"""Minutes from local time to UTC; the upstream only tells the time by it."""

PartIndex = tuple[int, int]
"""Which message of the request, and which part of it."""


class Family(msgspec.Struct, frozen=True):
    """One kind of model. `slug` is the upstream's name, `extra` its own keys of a request.

    `text_only` takes neither pictures nor files, `no_system` only user and assistant messages.
    `arkose`: asks for such a token, where the operator has switched that on. `draws`: makes
    pictures; None where that depends on the account or, of a GPT, on its tools.
    """

    slug: str
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)
    text_only: bool = False
    no_system: bool = False
    arkose: bool = True
    draws: bool | None = None


GIZMO = Family("gpt-4-gizmo")
"""GPTs. They take no `suggestions`."""


def families(own: BackendApiSettings) -> dict[str, Family]:
    """All but GPTs, by the name that routes call them."""
    plain: dict[str, Any] = {"suggestions": []}
    no_token = {**plain, "arkose_token": None}
    o1 = {
        **plain,
        "variant_purpose": "comparison_implicit",
        "force_paragen_model_slug": "",
        "force_nulligen": False,
        "reset_rate_limits": False,
        "force_use_sse": True,
    }
    return {
        "gpt-3.5": Family(own.gpt_3_5_slug, no_token, text_only=True, arkose=False, draws=False),
        "gpt-4-s": Family("gpt-4", plain, draws=True),
        "gpt-4-mobile": Family(own.gpt_4_mobile_slug, plain, draws=True),
        "gpt-4o": Family("gpt-4o", no_token, draws=True),
        "gpt-4o-mini": Family("gpt-4o-mini", {**no_token, "force_paragen_model_slug": ""}),
        "o1-preview": Family("o1-preview", o1, no_system=True),
        "o1-mini": Family("o1-mini", o1, no_system=True),
    }


class Continued(msgspec.Struct, frozen=True):
    """A conversation to go on with, after the message `message_id`."""

    id: str
    message_id: str


class Common(msgspec.Struct, frozen=True):
    """What all requests for one answer have in common."""

    family: Family
    gizmo: Gizmo | None = None
    temporary: bool = False
    arkose_token: str | None = None

    def body(self, messages: list[dict[str, Any]], parent: str) -> dict[str, Any]:
        """`supported_encodings` is left out, so that events carry the whole text so far."""
        mode: dict[str, Any] = {"kind": "primary_assistant"}
        if self.gizmo is not None:
            mode = {
                "kind": "gizmo_interaction",
                "gizmo_id": self.gizmo.id,
                "gizmo": self.gizmo.info,
            }
        return {
            "action": "next",
            "messages": messages,
            "parent_message_id": parent,
            "model": self.family.slug,
            "timezone_offset_min": _TIMEZONE,
            "history_and_training_disabled": self.temporary,
            "conversation_mode": mode,
            "force_paragen": False,
            "force_rate_limit": False,
        }


def conversation_body(
    common: Common, messages: list[dict[str, Any]], continued: Continued | None
) -> dict[str, Any]:
    """The request for an answer to `messages`."""
    parent = continued.message_id if continued else str(uuid.uuid4())
    body = {**common.body(messages, parent), **common.family.extra}
    if continued is not None:
        body["conversation_id"] = continued.id
    if common.arkose_token is not None:
        body["arkose_token"] = common.arkose_token
    return body


def confirmation_body(common: Common, asked: Confirmation, conversation_id: str) -> dict[str, Any]:
    """The request that allows the action which `asked` is about."""
    action = {"type": "always_allow", "operation_hash": asked.operation_hash}
    answer = {"user_action": {"data": action, "target_message_id": asked.target_message_id}}
    message = {
        "id": str(uuid.uuid4()),
        "author": {"role": asked.role, "name": asked.name},
        "content": {"content_type": "text", "parts": [""]},
        "recipient": "all",
        "metadata": {"jit_plugin_data": {"from_client": answer}},
    }
    body = common.body([message], asked.message_id)
    return body | {"conversation_id": conversation_id, "arkose_token": None}


def file_parts(messages: tuple[Message, ...], family: Family) -> Iterator[tuple[PartIndex, Part]]:
    """The parts that must be uploaded, with their places.

    Raises `InvalidRequest` for a part that this family cannot be sent.
    """
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            match part.kind:
                case "text":
                    continue
                case "image" | "file" if not family.text_only:
                    yield (i, j), part
                    continue
                case "image" | "file":
                    reason = "this model takes no pictures or files"
                case "audio":
                    reason = "this model takes no audio"
                case "other":
                    reason = "parts of this type are not known here"
                case kind:
                    assert_never(kind)
            raise InvalidRequest(reason, param=f"messages[{i}].content[{j}]")


def first_new(messages: tuple[Message, ...]) -> int:
    """Where the new messages begin when the upstream knows the conversation: after the last
    answer.
    """
    last = len(messages) - 1
    answers = [i for i, m in enumerate(messages) if m.role == "assistant" and i < last]
    return answers[-1] + 1 if answers else 0


class _Draft(msgspec.Struct):
    """A message to send: texts and pictures in their order, and the files to attach."""

    role: str
    parts: list[str | Uploaded]
    files: list[Uploaded]


def upstream_messages(
    messages: tuple[Message, ...],
    family: Family,
    uploaded: Mapping[PartIndex, Uploaded],
    start: int = 0,
) -> list[dict[str, Any]]:
    """The value of `messages`, from the message number `start` on."""
    tools = {call.id: call.name for message in messages for call in message.calls}
    drafts = [_draft(m, i, tools, uploaded) for i, m in enumerate(messages) if i >= start]
    if family.no_system:
        drafts = _without_system(drafts)
    return [_message_object(draft, family) for draft in drafts]


def _draft(
    message: Message, index: int, tools: Mapping[str, str], uploaded: Mapping[PartIndex, Uploaded]
) -> _Draft:
    role = message.role
    if role in ("tool", "function"):
        name = message.name or tools.get(message.tool_call_id or "", "") or "tool"
        return _Draft("user", [f"Result of the tool {name}:\n{message.text}"], [])
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
    return _Draft("system" if role == "developer" else role, parts or [""], files)


def _without_system(drafts: list[_Draft]) -> list[_Draft]:
    """System texts move into the first user message, for models that know no system role."""
    system = [p for m in drafts if m.role == "system" for p in m.parts if isinstance(p, str) and p]
    rest = [message for message in drafts if message.role in ("user", "assistant")]
    if not system:
        return rest
    preface = "\n\n".join(system)
    first = next((message for message in rest if message.role == "user"), None)
    if first is None:
        return [_Draft("user", [preface], []), *rest]
    if first.parts and isinstance(first.parts[0], str):
        first.parts[0] = f"{preface}\n\n{first.parts[0]}"
    else:
        first.parts.insert(0, preface)
    return rest


def _message_object(draft: _Draft, family: Family) -> dict[str, Any]:
    parts: list[Any] = [_image_object(p) if isinstance(p, Uploaded) else p for p in draft.parts]
    if family.text_only:
        parts = ["\n".join(parts)]
    pictures = any(isinstance(part, dict) for part in parts)
    attachments = [_attachment_object(file) for file in draft.files]
    return {
        "id": str(uuid.uuid4()),
        "author": {"role": draft.role},
        "content": {"content_type": "multimodal_text" if pictures else "text", "parts": parts},
        "metadata": {"attachments": attachments} if attachments else {},
    }


def _image_object(file: Uploaded) -> dict[str, Any]:
    return {
        "content_type": "image_asset_pointer",
        "asset_pointer": f"file-service://{file.file_id}",
        "size_bytes": file.size,
        "width": file.width,
        "height": file.height,
    }


def _attachment_object(file: Uploaded) -> dict[str, Any]:
    about = {"name": file.name, "id": file.file_id, "mimeType": file.mime, "size": file.size}
    size = {"width": file.width, "height": file.height} if file.width is not None else {}
    return {**about, **size}
