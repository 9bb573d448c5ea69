"""Scenarios of GPT actions: the turn stops to ask for leave, and goes on once allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..backend_api_records import Confirmation
from .steps import Step
from .turn import Turn

ACTION = "weather_example_com__jit_plugin"


def action_json(turn: Turn) -> Iterator[Step]:
    """Asks; the confirming POST is answered by JSON and the rest comes over the socket."""
    return _asking(turn, "action_json_allowed")


def action_sse(turn: Turn) -> Iterator[Step]:
    """Asks; the confirming POST is answered by the rest as SSE."""
    return _asking(turn, "action_sse_allowed")


def action_allowed(turn: Turn) -> Iterator[Step]:
    """What follows the permission: the action's result and the answer `Sunny, 21 degrees.`"""
    tool, answer = turn.tool(ACTION), turn.assistant()
    return turn.framed(
        tool.finish('{"ACTION RESULT":"sunny"}'),
        answer.grow("Sunny,", " 21 degrees."),
        answer.finish(),
    )


def _asking(turn: Turn, afterwards: str) -> Iterator[Step]:
    call, question = turn.assistant(ACTION, "code"), turn.tool(ACTION)
    operation_hash = f"hash-{question.message_id[:8]}"
    turn.conversation.confirmations[question.message_id] = Confirmation(
        call.message_id, operation_hash, afterwards
    )
    asked = {"jit_plugin_data": {"from_server": _question(call.message_id, operation_hash)}}
    return turn.framed(
        call.grow('{"city":', '"Paris"}'), call.finish(), question.finish(metadata=asked)
    )


def _question(target_message_id: str, operation_hash: str) -> dict[str, Any]:
    target = {"target_message_id": target_message_id}
    actions: list[dict[str, Any]] = [
        {"name": "allow", "type": "allow", "allow": target},
        {
            "name": "always_allow",
            "type": "always_allow",
            "always_allow": {**target, "operation_hash": operation_hash},
        },
        {"name": "deny", "type": "deny", "deny": target},
    ]
    body = {
        "domain": "weather.example.com",
        "is_consequential": False,
        "privacy_policy": "https://weather.example.com/privacy",
        "method": "get",
        "path": "/now",
        "operation": "now",
        "params": {"city": "Paris"},
        "actions": actions,
    }
    return {"type": "confirm_action", "body": body}


SCENES = {
    "action_json": action_json,
    "action_sse": action_sse,
    "action_json_allowed": action_allowed,
    "action_sse_allowed": action_allowed,
}
