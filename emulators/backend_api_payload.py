"""What a conversation request must look like; the `backend-api` emulator notes every breach.

`malformed` finds what the real upstream would refuse with 422, `oddities` what it would let pass
but a client should not send.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from .backend_api_records import Account, StoredFile

ROLES = ("system", "user", "assistant", "tool")
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "action": str,
    "messages": list,
    "parent_message_id": str,
    "model": str,
    "timezone_offset_min": int,
    "history_and_training_disabled": bool,
    "conversation_mode": dict,
    "force_paragen": bool,
    "force_rate_limit": bool,
}
OPTIONAL = {
    "suggestions",
    "arkose_token",
    "conversation_id",
    "force_paragen_model_slug",
    "variant_purpose",
    "force_nulligen",
    "reset_rate_limits",
    "force_use_sse",
}
O1 = {
    "variant_purpose": "comparison_implicit",
    "force_paragen_model_slug": "",
    "force_nulligen": False,
    "reset_rate_limits": False,
    "force_use_sse": True,
}
POINTER = "file-service://"


def malformed(payload: Mapping[str, Any]) -> Iterator[str]:
    """Breaches of the schema itself."""
    for key in ("action", "messages", "parent_message_id", "model"):
        if not isinstance(payload.get(key), TYPES[key]):
            yield f"{key} is missing or of the wrong type"
    messages = payload.get("messages")
    if isinstance(messages, list):
        if not messages:
            yield "messages is empty"
        for index, message in enumerate(messages):
            yield from (f"messages[{index}]{fault}" for fault in _message_faults(message))


def oddities(
    payload: Mapping[str, Any], account: Account, files: Mapping[str, StoredFile]
) -> Iterator[str]:
    """Breaches a client should not make, in a payload that is well-formed."""
    yield from _key_oddities(payload)
    yield from _family_oddities(payload)
    ids = [message.get("id") for message in payload["messages"]]
    if len(set(ids)) != len(ids):
        yield "message ids repeat"
    for value in (payload["parent_message_id"], *ids):
        if not _is_uuid(value):
            yield f"{value!r} is no uuid"
    for message in payload["messages"]:
        yield from _file_oddities(message, account, files)


def is_confirmation(payload: Mapping[str, Any]) -> bool:
    """Whether this answers an action's question instead of saying something."""
    return bool(_from_client(payload))


def confirmed(payload: Mapping[str, Any]) -> tuple[str, str]:
    """The target message id and operation hash a confirmation gives."""
    action = _from_client(payload).get("user_action", {})
    data = action.get("data", {})
    return str(action.get("target_message_id", "")), str(data.get("operation_hash", ""))


def _from_client(payload: Mapping[str, Any]) -> dict[str, Any]:
    metadata = payload["messages"][0].get("metadata") or {}
    found: dict[str, Any] = (metadata.get("jit_plugin_data") or {}).get("from_client") or {}
    return found


def _message_faults(message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield " is no object"
        return
    author, content = message.get("author"), message.get("content")
    if not isinstance(author, dict) or author.get("role") not in ROLES:
        yield ".author.role is missing or unknown"
    if not isinstance(content, dict) or not isinstance(content.get("parts"), list):
        yield ".content.parts is missing"
        return
    if content.get("content_type") not in ("text", "multimodal_text"):
        yield ".content.content_type is unknown"
    for part in content["parts"]:
        if not isinstance(part, str | dict):
            yield ".content.parts holds something else than text and objects"
        if isinstance(part, dict) and not str(part.get("asset_pointer")).startswith(POINTER):
            yield ".content.parts holds an object without asset_pointer"


def _key_oddities(payload: Mapping[str, Any]) -> Iterator[str]:
    for key, kind in TYPES.items():
        if not isinstance(payload.get(key), kind) and not is_confirmation(payload):
            yield f"{key} is missing or of the wrong type"
    for key in payload.keys() - TYPES.keys() - OPTIONAL:
        yield f"{key} is not a key of this request"
    if payload.get("action") != "next":
        yield "action is not next"
    for key in ("force_paragen", "force_rate_limit"):
        if payload.get(key):
            yield f"{key} is true"


def _family_oddities(payload: Mapping[str, Any]) -> Iterator[str]:
    mode, model = payload.get("conversation_mode") or {}, payload["model"]
    if model == "gpt-4-gizmo":
        if mode.get("kind") != "gizmo_interaction" or not mode.get("gizmo_id"):
            yield "conversation_mode is no gizmo_interaction with a gizmo_id"
        if not isinstance(mode.get("gizmo"), dict) or "gizmo" not in mode["gizmo"]:
            yield "conversation_mode.gizmo is not the whole gizmo info"
        if "suggestions" in payload:
            yield "a gizmo takes no suggestions"
        return
    if mode != {"kind": "primary_assistant"}:
        yield "conversation_mode is not primary_assistant"
    if not isinstance(payload.get("suggestions"), list):
        yield "suggestions is missing"
    if model.startswith("o1"):
        for key, value in O1.items():
            if payload.get(key, "missing") != value:
                yield f"{key} is not {value!r} for an o1 model"
        roles = {message["author"]["role"] for message in payload["messages"]}
        if roles - {"user", "assistant"}:
            yield "an o1 model takes only user and assistant messages"


def _file_oddities(
    message: Mapping[str, Any], account: Account, files: Mapping[str, StoredFile]
) -> Iterator[str]:
    pictures = [part for part in message["content"]["parts"] if isinstance(part, dict)]
    if bool(pictures) != (message["content"]["content_type"] == "multimodal_text"):
        yield "content_type does not match the parts"
    attachments = (message.get("metadata") or {}).get("attachments") or []
    attached = [str(attachment.get("id")) for attachment in attachments]
    for part in pictures:
        file_id = part["asset_pointer"].removeprefix(POINTER)
        if part.get("content_type") != "image_asset_pointer":
            yield f"{file_id} has no content_type image_asset_pointer"
        if file_id not in attached:
            yield f"{file_id} is not among the attachments"
    for file_id in attached:
        file = files.get(file_id)
        if file is None or file.owner != account.name or not file.uploaded:
            yield f"{file_id} is not an uploaded file of this account"


def _is_uuid(value: Any) -> bool:
    try:
        return str(uuid.UUID(str(value))) == str(value).lower()
    except ValueError:
        return False
