"""The conversation request, and the one that allows an action. Pure."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from services.providers.backend_api.conversations import Continued
from services.providers.backend_api.gizmos import Gizmo
from services.providers.backend_api.model_names import Family

_TIMEZONE = -480
"""Minutes from local time to UTC; the upstream only tells the time by it."""


class Confirmation(msgspec.Struct, frozen=True):
    """A question whether an action may be called. Without `operation_hash` it cannot be allowed."""

    message_id: str
    role: str
    name: str | None
    domain: str
    target_message_id: str = ""
    operation_hash: str = ""


class Ask(msgspec.Struct, frozen=True):
    """What all requests of one turn have in common."""

    family: Family
    gizmo: Gizmo | None = None
    temporary: bool = False
    arkose_token: str | None = None

    @property
    def mode(self) -> dict[str, Any]:
        if self.gizmo is None:
            return {"kind": "primary_assistant"}
        return {
            "kind": "gizmo_interaction",
            "gizmo_id": self.gizmo.id,
            "gizmo": self.gizmo.info,
        }


def conversation_body(
    ask: Ask, messages: list[dict[str, Any]], continued: Continued | None
) -> dict[str, Any]:
    """A turn. `supported_encodings` is left out, so that events carry the whole text so far."""
    body: dict[str, Any] = {
        "action": "next",
        "messages": messages,
        "parent_message_id": continued.message_id if continued else str(uuid.uuid4()),
        "model": ask.family.slug,
        "timezone_offset_min": _TIMEZONE,
        "history_and_training_disabled": ask.temporary,
        "conversation_mode": ask.mode,
        "force_paragen": False,
        "force_rate_limit": False,
        **ask.family.extra,
    }
    if continued is not None:
        body["conversation_id"] = continued.id
    if ask.arkose_token is not None:
        body["arkose_token"] = ask.arkose_token
    return body


def confirmation_body(ask: Ask, asked: Confirmation, conversation_id: str) -> dict[str, Any]:
    """Allow the action that `asked` is about."""
    action = {"type": "always_allow", "operation_hash": asked.operation_hash}
    answer = {"user_action": {"data": action, "target_message_id": asked.target_message_id}}
    message = {
        "id": str(uuid.uuid4()),
        "author": {"role": asked.role, "name": asked.name},
        "content": {"content_type": "text", "parts": [""]},
        "recipient": "all",
        "metadata": {"jit_plugin_data": {"from_client": answer}},
    }
    return {
        "action": "next",
        "messages": [message],
        "conversation_id": conversation_id,
        "parent_message_id": asked.message_id,
        "model": ask.family.slug,
        "timezone_offset_min": _TIMEZONE,
        "history_and_training_disabled": ask.temporary,
        "arkose_token": None,
        "conversation_mode": ask.mode,
        "force_paragen": False,
        "force_rate_limit": False,
    }
