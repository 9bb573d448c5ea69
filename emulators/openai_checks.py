"""What OpenAI would say against a chat request: each check names the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROLES = {"developer", "system", "user", "assistant", "tool", "function"}
# fmt: off
FIELDS = {
    "messages", "model", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed",
    "stop", "n", "logit_bias", "logprobs", "top_logprobs", "max_completion_tokens", "max_tokens",
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
    "response_format", "modalities", "audio", "prediction", "verbosity", "reasoning_effort",
    "stream", "stream_options", "metadata", "store", "service_tier", "user", "safety_identifier",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "moderation",
    "web_search_options",
}
# fmt: on
RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "top_logprobs": (0, 20),
    "n": (1, 128),
    "max_tokens": (1, 10**7),
    "max_completion_tokens": (1, 10**7),
}

Problem = tuple[str, str]


def unknown_fields(body: dict[str, Any]) -> list[str]:
    """Top-level fields that OpenAI does not have."""
    return sorted(set(body) - FIELDS)


def problems(body: Any) -> list[Problem]:
    """What is wrong with a chat request, as (field, text); empty when it is sound."""
    if not isinstance(body, dict):
        return [("body", "the body is no JSON object")]
    return [*_top(body), *_messages(body.get("messages")), *_tools(body.get("tools"))]


def _top(body: dict[str, Any]) -> Iterator[Problem]:
    if not isinstance(body.get("model"), str) or not body["model"]:
        yield "model", "you must provide a model parameter"
    if not isinstance(body.get("stream", False), bool | None):
        yield "stream", "is no boolean"
    if body.get("stream_options") is not None and not body.get("stream"):
        yield "stream_options", "is only allowed when stream is true"
    for name, (low, high) in RANGES.items():
        value = body.get(name)
        if value is not None and not _within(value, low, high):
            yield name, f"is not a number from {low} to {high}"


def _within(value: Any, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and low <= value <= high


def _messages(messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list) or not messages:
        yield "messages", "is no list with at least one message"
        return
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            yield f"messages[{index}].role", "is no known role"
            continue
        for name, text in _message(message):
            yield f"messages[{index}].{name}", text


def _message(message: dict[str, Any]) -> Iterator[Problem]:
    content, role = message.get("content"), message["role"]
    speaks_otherwise = role == "assistant" and any(
        message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio")
    )
    if content is None and not speaks_otherwise:
        yield "content", "is missing"
    elif not isinstance(content, str | list | None):
        yield "content", "is neither a string nor a list of parts"
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                yield f"content[{number}].type", "is missing"
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        yield "tool_call_id", "is missing"


def _tools(tools: Any) -> Iterator[Problem]:
    if tools is None:
        return
    if not isinstance(tools, list) or not tools:
        yield "tools", "is no list with at least one tool"
        return
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or not isinstance(tool.get(kind), dict):
            yield f"tools[{index}]", "has no type with its object"
        elif not tool[kind].get("name"):
            yield f"tools[{index}]", "has no name"
