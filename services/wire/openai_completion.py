"""A whole chat completion on OpenAI's wire: a fold of the events that a stream would show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from services.core.events import (
    Conversation,
    Extra,
    Finish,
    Reasoning,
    Text,
    ToolCall,
    Usage,
    WireEvent,
)
from services.wire.openai_chat import ResponseHead, usage_object

_encode = msgspec.json.Encoder().encode


class Completion:
    """Fold batches of events into one `chat.completion` object."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._choices: dict[int, _Choice] = {}
        self._fields: dict[str, Any] = {}
        self._usage: Usage | None = None

    @property
    def finished(self) -> bool:
        return any(choice.finish_reason for choice in self._choices.values())

    def add(self, batch: list[WireEvent]) -> None:
        for event in batch:
            match event:
                case Usage():
                    self._usage = event
                case Conversation():
                    self._fields["conversation_id"] = event.id
                case Extra(place="chunk"):
                    self._fields.update(event.fields)
                case _:
                    self._choice(event.index).add(event)

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            self._choices[index] = _Choice()
        return self._choices[index]

    def encode(self) -> bytes:
        """The whole answer as JSON."""
        answer: dict[str, Any] = {
            "id": self._head.id,
            "object": "chat.completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [
                {"index": index, **choice.as_object()}
                for index, choice in sorted(self._choices.items())
            ],
        }
        if self._usage is not None:
            answer["usage"] = usage_object(self._usage)
        return _encode(answer | self._fields)


class _Choice:
    """One choice in the making."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, Any] | None = None
        self._choice_fields: dict[str, Any] = {}
        self._message_fields: dict[str, Any] = {"refusal": None}

    def add(self, event: Text | Reasoning | ToolCall | Extra | Finish) -> None:
        match event:
            case Text():
                self._text.append(event.text)
                if event.logprobs is not None:
                    self._add_logprobs(msgspec.json.decode(event.logprobs))
            case Reasoning():
                self._reasoning.append(event.text)
            case ToolCall():
                self._add_call(event)
            case Extra(place="choice"):
                _merge(self._choice_fields, event.fields)
            case Extra():
                _merge(self._message_fields, event.fields)
            case Finish():
                self.finish_reason = event.reason
            case _:
                assert_never(event)

    def _add_call(self, event: ToolCall) -> None:
        value = "input" if event.kind == "custom" else "arguments"
        call = self._calls.setdefault(
            event.position, {"id": None, "type": event.kind, event.kind: {"name": "", value: ""}}
        )
        function = call[call["type"]]
        call["id"] = event.id or call["id"]
        function["name"] = event.name or function["name"]
        function["input" if call["type"] == "custom" else "arguments"] += event.arguments

    def _add_logprobs(self, logprobs: dict[str, Any]) -> None:
        if self._logprobs is None:
            self._logprobs = {}
        _merge(self._logprobs, logprobs)

    def as_object(self) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._calls and not text else text,
        }
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        return {
            "message": message | self._message_fields,
            "logprobs": self._logprobs,
            "finish_reason": self.finish_reason,
            **self._choice_fields,
        }


def _merge(into: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Merge increments of unknown fields: texts and lists grow, anything else is replaced."""
    for key, value in fields.items():
        old = into.get(key)
        both_grow = (isinstance(old, str) and isinstance(value, str)) or (
            isinstance(old, list) and isinstance(value, list)
        )
        into[key] = old + value if both_grow else value
