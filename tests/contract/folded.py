"""What an answer's events add up to, however they were cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from services.core.events import Conversation, Event, Extra, Finish, Reasoning, Text, ToolCall


def folded(batches: Iterable[list[Event]]) -> dict[Any, Any]:
    """Text by kind and choice, tool calls by place, finish by choice; other events as they are.

    Names of conversations and fields we do not know are left out: they differ by answer.
    """
    said: dict[Any, Any] = defaultdict(str)
    for batch in batches:
        for event in batch:
            match event:
                case Text() | Reasoning():
                    said[type(event).__name__, event.index] += event.text
                case ToolCall():
                    call = ("call", event.index, event.position)
                    said[*call, "name"] += event.name or ""
                    said[*call, "arguments"] += event.arguments
                case Finish():
                    said["finish", event.index] += event.reason
                case Conversation() | Extra():
                    continue
                case _:
                    said[type(event).__name__] += repr(event)
    return dict(said)


def plain_text(answer: dict[Any, Any]) -> str:
    """The text of the first choice."""
    return str(answer.get(("Text", 0), ""))
