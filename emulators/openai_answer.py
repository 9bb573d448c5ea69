"""What `openai_compat` answers: deltas per choice, told as chunks or as one object."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from .openai_markers import Markers, content_text, last_user_text, strip

CREATED = 1_700_000_000
FINGERPRINT = "fp_emulator"
TEXTS = (
    "The quick brown fox jumps over the lazy dog near the old stone bridge.",
    "A second answer takes another road, and it makes all the difference.",
    "Third time lucky: the kettle sings while the rain writes on the window.",
)
CHINESE = "你好，世界！这是一段用于测试的中文文本，包含全角标点。"
EMOJI = "Hi 👋 family 👨‍👩‍👧‍👦 flag 🇨🇳 tone 👍🏽 end 🎉"
REASONING = "First weigh the question, then choose the plainest words."
REFUSAL = "I'm sorry, I can't help with that."
TOOLS = (("get_weather", '{"city":"北京","days":2}'), ("get_time", '{"zone":"Europe/Paris"}'))
TOP_LEVEL = {"x_provider": "emulator", "x_trace": {"hops": [1, 2]}}
IN_CHOICE = {"x_stop_detail": {"matched": None}}
IN_DELTA = {"x_annotation": {"lang": "en"}}
WORDS = ("alder", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "isle", "kelp")
_PIECE = re.compile(r"\s*[!-~]+|\s*[^\s!-~]|\s+\Z")

Delta = dict[str, Any]


def pieces(text: str) -> list[str]:
    """A text in the pieces that count as its tokens: words, or single characters beyond ASCII."""
    return _PIECE.findall(text)


@dataclass(frozen=True)
class Choice:
    """One choice: its deltas in order (without the role) and its end."""

    index: int
    deltas: tuple[Delta, ...]
    finish_reason: str
    logprobs: bool = False

    @property
    def first(self) -> Delta:
        speaks = not any("tool_calls" in d or "refusal" in d for d in self.deltas)
        return {"role": "assistant", "content": "" if speaks else None}


@dataclass(frozen=True)
class Answer:
    """A whole answer. `usage` is OpenAI's object."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: dict[str, Any]
    unknown: bool = False

    def chunks(self, include_usage: bool) -> Iterator[dict[str, Any]]:
        """The stream's chunks: roles, deltas of all choices in turn, ends, usage if asked for."""
        tail: dict[str, Any] = {"usage": None} if include_usage else {}
        for choice in self.choices:
            yield self._chunk(choice, choice.first, tail)
        for row in zip_longest(*(choice.deltas for choice in self.choices)):
            for choice, delta in zip(self.choices, row, strict=True):
                if delta is not None:
                    yield self._chunk(choice, delta, tail)
        for choice in self.choices:
            yield self._chunk(choice, {}, tail, choice.finish_reason)
        if include_usage:
            yield self._envelope("chat.completion.chunk", []) | {"usage": self.usage}

    def completion(self) -> dict[str, Any]:
        """The answer as one `chat.completion` object."""
        choices = [self._folded(choice) for choice in self.choices]
        return self._envelope("chat.completion", choices) | {"usage": self.usage}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": CREATED,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **(TOP_LEVEL if self.unknown else {}),
        }

    def _chunk(
        self, choice: Choice, delta: Delta, tail: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        body = {
            "index": choice.index,
            "delta": delta,
            "logprobs": _logprobs(delta) if choice.logprobs else None,
            "finish_reason": finish,
            **(IN_CHOICE if self.unknown and finish else {}),
        }
        return self._envelope("chat.completion.chunk", [body]) | tail

    def _folded(self, choice: Choice) -> dict[str, Any]:
        entries = [_logprobs(delta) for delta in choice.deltas] if choice.logprobs else []
        content = [entry for found in entries if found for entry in found["content"]]
        return {
            "index": choice.index,
            "message": fold(choice.first, choice.deltas),
            "logprobs": {"content": content, "refusal": None} if choice.logprobs else None,
            "finish_reason": choice.finish_reason,
            **(IN_CHOICE if self.unknown else {}),
        }


def fold(first: Delta, deltas: tuple[Delta, ...]) -> dict[str, Any]:
    """The message that a choice's deltas add up to."""
    message: dict[str, Any] = {**first, "refusal": None}
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for key, value in delta.items():
            if key == "tool_calls":
                _add_call(calls, value[0])
            elif isinstance(value, str):
                message[key] = (message.get(key) or "") + value
            else:
                message[key] = value
    return message | ({"tool_calls": calls} if calls else {})


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    if piece["index"] == len(calls):
        function = dict(piece["function"])
        calls.append({"id": piece["id"], "type": piece["type"], "function": function})
    else:
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]


def _logprobs(delta: Delta) -> dict[str, Any] | None:
    text = delta.get("content")
    if not text:
        return None
    token = {"token": text, "logprob": -0.25, "bytes": list(text.encode())}
    return {"content": [token | {"top_logprobs": [token]}], "refusal": None}


def build(body: dict[str, Any], markers: Markers, number: int, text: str | None = None) -> Answer:
    """The answer to a chat request; `text` replaces the text of its first choice."""
    count = int(markers.get("n") or body.get("n") or 1)
    choices = tuple(_choice(body, markers, index, text) for index in range(count))
    return Answer(
        id=f"chatcmpl-emu-{number:06}",
        model=str(body["model"]),
        choices=choices,
        usage=_usage(body, choices),
        unknown="unknown" in markers,
    )


def _choice(body: dict[str, Any], markers: Markers, index: int, text: str | None) -> Choice:
    said = text if text is not None and index == 0 else _text(body, markers, index)
    deltas, finish = _speech(body, markers, said)
    if "unknown" in markers and deltas:
        deltas[0] = deltas[0] | IN_DELTA
    if "reasoning" in markers:
        deltas = [{"reasoning_content": piece} for piece in pieces(REASONING)] + deltas
    logprobs = "logprobs" in markers or bool(body.get("logprobs"))
    return Choice(index, tuple(deltas), finish, logprobs)


def _speech(body: dict[str, Any], markers: Markers, text: str) -> tuple[list[Delta], str]:
    """The deltas of an answer and its finish reason."""
    if _calls_tools(body, markers):
        return list(_tool_deltas(body)), "tool_calls"
    if "empty" in markers:
        return [], "stop"
    if "refusal" in markers:
        return [{"refusal": piece} for piece in pieces(REFUSAL)], "stop"
    said = [text] if "big" in markers else pieces(text)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    finish = "content_filter" if "filter" in markers else "stop"
    if "length" in markers or (limit and limit < len(said)):
        said, finish = said[: limit or 5], "length"
    return [{"content": piece} for piece in said], finish


def _text(body: dict[str, Any], markers: Markers, index: int) -> str:
    if "echo" in markers:
        return strip(last_user_text(body))
    if "big" in markers:
        size = int((markers["big"] or 64) * 1024)
        return (TEXTS[0] * (size // len(TEXTS[0]) + 1))[:size]
    if "long" in markers:
        words = random.Random(index)
        return " ".join(words.choice(WORDS) for _ in range(int(markers["long"] or 1000)))
    if "chinese" in markers or "cut-utf8" in markers:
        return CHINESE
    return EMOJI if "emoji" in markers else TEXTS[index % len(TEXTS)]


def _calls_tools(body: dict[str, Any], markers: Markers) -> bool:
    """Not after a tool's result: an agent's loop has to end."""
    answered = body["messages"][-1].get("role") == "tool"
    return not answered and ("tools" in markers or body.get("tool_choice") == "required")


def _tool_deltas(body: dict[str, Any]) -> Iterator[Delta]:
    offered = [tool.get("function", {}).get("name") for tool in body.get("tools") or []]
    for index, (name, arguments) in enumerate(TOOLS):
        called = offered[index % len(offered)] if offered else name
        head = {"index": index, "id": f"call_emu_{index + 1}", "type": "function"}
        yield {"tool_calls": [head | {"function": {"name": called, "arguments": ""}}]}
        for start in range(0, len(arguments), 7):
            piece = {"arguments": arguments[start : start + 7]}
            yield {"tool_calls": [{"index": index, "function": piece}]}


def _usage(body: dict[str, Any], choices: tuple[Choice, ...]) -> dict[str, Any]:
    prompt = sum(len(pieces(content_text(m.get("content")))) + 4 for m in body["messages"])
    deltas = [delta for choice in choices for delta in choice.deltas]
    reasoning = sum("reasoning_content" in delta for delta in deltas)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": len(deltas),
        "total_tokens": prompt + len(deltas),
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def dumps(value: Any) -> str:
    """JSON with raw UTF-8, as upstreams send it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
