"""Chat completions in OpenAI's shape: events as `chat.completion.chunk` frames of a stream, or as
one `chat.completion` object, which says what the stream would.

A chunk's constant prefix and suffix are encoded once a response; per event only the new text is
escaped. Order at the end, as one-api and new-api need it: finish chunk, usage chunk with empty
`choices`, `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from services.core.errors import GatewayError
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
from services.dialects.errors import error_object
from services.dialects.sse import DONE, MAX_VALUE, json_pieces

_encode = msgspec.json.Encoder().encode
_NO_FINISH = b'},"logprobs":null,"finish_reason":null}]'


class ResponseHead(msgspec.Struct, frozen=True):
    """What is the same in every chunk of one response. `created` is epoch seconds."""

    id: str
    model: str
    created: int

    def fields(self, kind: str) -> dict[str, Any]:
        """The fields that open an object of this kind."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`, with whatever details the upstream reported."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        **(usage.details or {}),
    }


class ChatChunks:
    """Encode batches of events as `chat.completion.chunk` frames."""

    def __init__(self, head: ResponseHead, *, with_usage: bool) -> None:
        self._head = head
        self._with_usage = with_usage
        self._fields: dict[str, Any] = {}
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"
        self._opened: set[int] = set()
        self._usage: Usage | None = None
        self.finished = False
        self._set_prefix()

    def _set_prefix(self) -> None:
        constant = self._head.fields("chat.completion.chunk") | self._fields
        self._prefix = b"data: " + _encode(constant)[:-1] + b',"choices":'
        self._text = self._prefix + b'[{"index":0,"delta":{"content":', _NO_FINISH + self._tail

    def open(self, index: int = 0) -> bytes:
        """The role chunk, once a choice and before anything else of it."""
        if index in self._opened:
            return b""
        self._opened.add(index)
        return self._delta(index, b'"role":"assistant","content":"","refusal":null')

    def encode(self, batch: list[WireEvent]) -> bytes:
        """All frames of a batch as one piece of bytes, to be written at once."""
        prefix, suffix = self._text
        out: list[bytes] = []
        for event in batch:
            if type(event) is Text and not event.index and event.logprobs is None:
                if 0 not in self._opened:
                    out.append(self.open(0))
                literal = _encode(event.text)
                if len(literal) <= MAX_VALUE:
                    out += (prefix, literal, suffix)
                else:
                    for piece in json_pieces(event.text):
                        out += (prefix, piece, suffix)
            else:
                self._encode_rare(event, out)
                prefix, suffix = self._text
        return b"".join(out)

    def _encode_rare(self, event: WireEvent, out: list[bytes]) -> None:
        match event:
            case Usage():
                self._usage = event
                return
            case Conversation():
                self._fields["conversation_id"] = event.id
                self._set_prefix()
                return
            case Extra(place="chunk"):
                self._fields.update(event.fields)
                self._set_prefix()
                return
            case _:
                pass
        out.append(self.open(event.index))
        match event:
            case Text():
                out += self._text_with_logprobs(event)
            case Reasoning():
                pieces = json_pieces(event.text)
                out += [self._delta(event.index, b'"reasoning_content":' + p) for p in pieces]
            case ToolCall():
                out += self._tool_call(event)
            case Extra():
                out.append(self._extra(event))
            case Finish():
                self.finished = True
                out.append(self._finish(event))
            case _:
                assert_never(event)

    def _delta(self, index: int, fields: bytes, rest: bytes = _NO_FINISH) -> bytes:
        return b'%b[{"index":%d,"delta":{%b%b%b' % (self._prefix, index, fields, rest, self._tail)

    def _text_with_logprobs(self, event: Text) -> list[bytes]:
        frames = [self._delta(event.index, b'"content":' + p) for p in json_pieces(event.text)]
        if event.logprobs is not None:
            with_logprobs = b'},"logprobs":%b,"finish_reason":null}]' % bytes(event.logprobs)
            last = list(json_pieces(event.text))[-1]
            frames[-1] = self._delta(event.index, b'"content":' + last, with_logprobs)
        return frames

    def _tool_call(self, event: ToolCall) -> list[bytes]:
        value = "input" if event.kind == "custom" else "arguments"
        frames = []
        if event.name is not None:
            opening = {
                "index": event.position,
                "id": event.id,
                "type": event.kind,
                event.kind: {"name": event.name, value: ""},
            }
            frames.append(self._delta(event.index, b'"tool_calls":[' + _encode(opening) + b"]"))
        if event.arguments:
            start = b'"tool_calls":[{"index":%d,"%b":{"%b":' % (
                event.position,
                event.kind.encode(),
                value.encode(),
            )
            pieces = json_pieces(event.arguments)
            frames += [self._delta(event.index, start + p + b"}}]") for p in pieces]
        return frames

    def _extra(self, event: Extra) -> bytes:
        if event.place == "delta":
            return self._delta(event.index, _encode(event.fields)[1:-1])
        rest = b'},"logprobs":null,"finish_reason":null,' + _encode(event.fields)[1:-1] + b"}]"
        return self._delta(event.index, b"", rest)

    def _finish(self, event: Finish) -> bytes:
        rest = b'},"logprobs":null,"finish_reason":"%b"}]' % event.reason.encode()
        return self._delta(event.index, b"", rest)

    def keep_alive(self) -> bytes:
        """A chunk that says nothing: the only keep-alive that one-api passes on."""
        return self.open() or self._delta(0, b"")

    def end(self) -> bytes:
        """Usage, if it was asked for, and the end mark."""
        if not self._with_usage or self._usage is None:
            return DONE
        usage = b'[],"usage":' + _encode(_usage(self._usage)) + b"}\n\n"
        return self._prefix + usage + DONE

    def error(self, error: GatewayError) -> bytes:
        """The last chunk of a stream that failed.

        `error` is what SDKs raise on; the choice beside it is what makes one-api pass the chunk
        on, and its text is what people see in front ends that ignore `error`. No `[DONE]`
        follows: the answer is not done.
        """
        notice = b'"content":' + _encode(f"\n\n[{error.message}]")
        choice = b'[{"index":0,"delta":{%b},"logprobs":null,"finish_reason":null}]' % notice
        body = _encode(error_object(error))
        return self.open() + self._prefix + choice + b',"error":' + body + b"}\n\n"


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
                    if event.index not in self._choices:
                        self._choices[event.index] = _Choice()
                    self._choices[event.index].add(event)

    def encode(self) -> bytes:
        """The whole answer as JSON."""
        answer = self._head.fields("chat.completion")
        answer["choices"] = [
            {"index": index, **choice.as_object()}
            for index, choice in sorted(self._choices.items())
        ]
        if self._usage is not None:
            answer["usage"] = _usage(self._usage)
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
                    self._logprobs = self._logprobs or {}
                    _merge(self._logprobs, msgspec.json.decode(event.logprobs))
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
