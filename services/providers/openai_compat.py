"""OpenAI's chat dialect as an upstream speaks it: chunks and completions into events, faithfully.

A chunk is decoded into a strict struct of the fields we know; one with any other field takes the
generic path, where what we do not know becomes `Extra`. A finish reason is an end mark; so is
`[DONE]`; an end with neither is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec

from services.core.errors import ProtocolError
from services.core.events import (
    Event,
    Extra,
    Finish,
    FinishReason,
    Reasoning,
    Text,
    ToolCall,
    Usage,
)
from services.core.models import Credential
from services.providers.base import MAX_REPLY_BODY
from services.providers.framing import SSEDecoder
from services.providers.refusals import error_in_answer

_FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call"}
_OTHER_REASONS = {
    "max_tokens": "length",
    "end_turn": "stop",
    "eos": "stop",
    "tool_use": "tool_calls",
}
_CHUNK_FIELDS = {"id", "object", "created", "model", "choices", "usage", "obfuscation", "error"}
_CHOICE_FIELDS = {"index", "delta", "message", "finish_reason", "logprobs"}
_DELTA_FIELDS = {"role", "content", "reasoning_content", "reasoning", "tool_calls"}
_USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")


class _Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: None = None


class _Choice(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    delta: _Delta
    index: int = 0
    finish_reason: None = None
    logprobs: None = None


class _Chunk(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A chunk that carries nothing but text: nearly all of them."""

    choices: list[_Choice]
    id: str | None = None
    object: str | None = None
    created: float | None = None
    model: str | None = None
    usage: None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str
    role: str | None = None
    refusal: None = None


class _PlainChoice(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    message: _Message
    finish_reason: Literal["stop", "length"]
    index: Literal[0] = 0
    logprobs: None = None


class _Completion(msgspec.Struct, forbid_unknown_fields=True):
    """A completion that carries nothing but text."""

    choices: Annotated[list[_PlainChoice], msgspec.Meta(min_length=1, max_length=1)]
    id: str | None = None
    object: str | None = None
    created: float | None = None
    model: str | None = None
    usage: dict[str, Any] | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


NO_CREDENTIAL = Credential()

_decode_plain = msgspec.json.Decoder(_Chunk).decode
_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode


class ChatStream:
    """Decode one streamed answer: `feed` it the body's bytes, `end` it when they are complete.

    `credential` is what the upstream was given: it is taken out of what its errors say.
    """

    def __init__(self, credential: Credential = NO_CREDENTIAL) -> None:
        self._frames = SSEDecoder()
        self._state = _Answer(credential)
        self.done = False

    def feed(self, data: bytes, batch: list[Event]) -> None:
        """Add the events that `data` completes to `batch`."""
        for frame in self._frames.feed(data):
            try:
                chunk = _decode_plain(frame)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._unusual(frame, batch)
                continue
            if chunk.system_fingerprint is not None or chunk.service_tier is not None:
                self._state.constants(chunk.system_fingerprint, chunk.service_tier, batch)
            for choice in chunk.choices:
                delta = choice.delta
                if choice.index:
                    self._state.open.setdefault(choice.index, True)
                if delta.reasoning_content:
                    batch.append(Reasoning(delta.reasoning_content, choice.index))
                if delta.content:
                    batch.append(Text(delta.content, choice.index))

    def end(self, batch: list[Event]) -> None:
        """Add the last events. Raises `ProtocolError` if the upstream gave no end mark."""
        for frame in self._frames.finish():
            self._unusual(frame, batch)
        if not self._state.finished:
            raise ProtocolError("the upstream's answer stopped before its end")

    def _unusual(self, frame: bytes, batch: list[Event]) -> None:
        """A chunk with more than text, none at all, or the end mark."""
        if frame == b"[DONE]":
            self.done = True
            self._state.done(batch)
        elif frame.strip():
            self._state.add(_object(frame, "a chunk that is not a JSON object"), "delta", batch)


class WholeAnswer:
    """Decode one answer that is a `chat.completion`; see `ChatStream`."""

    done = False

    def __init__(self, credential: Credential = NO_CREDENTIAL) -> None:
        self._credential = credential
        self._body: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes, batch: list[Event]) -> None:
        self._body.append(data)
        self._size += len(data)
        if self._size > MAX_REPLY_BODY:
            raise ProtocolError(f"the upstream answered with more than {MAX_REPLY_BODY} bytes")

    def end(self, batch: list[Event]) -> None:
        batch += completion_events(b"".join(self._body), self._credential)


def completion_events(body: bytes, credential: Credential = NO_CREDENTIAL) -> list[Event]:
    """The events of a whole `chat.completion`.

    Raises `ProtocolError` if it is none, or an error in disguise.
    """
    try:
        plain = _decode_completion(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _unusual_completion(body, credential)
    [choice] = plain.choices
    said: list[Event] = [Text(choice.message.content)] if choice.message.content else []
    constants = {"system_fingerprint": plain.system_fingerprint, "service_tier": plain.service_tier}
    if any(constants.values()):
        said.insert(0, Extra("chunk", {k: v for k, v in constants.items() if v is not None}))
    said.append(Finish(choice.finish_reason))
    if plain.usage:
        said.append(usage_event(plain.usage))
    return said


def _unusual_completion(body: bytes, credential: Credential) -> list[Event]:
    """One with more than a text."""
    answer = _object(body, "an answer that is not a JSON object")
    batch: list[Event] = []
    state = _Answer(credential)
    state.add(answer, "message", batch)
    if not answer.get("choices"):
        raise ProtocolError("the upstream sent an answer without a choice")
    state.done(batch)
    return batch


def _object(data: bytes, otherwise: str) -> dict[str, Any]:
    try:
        return _decode_any(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProtocolError(f"the upstream sent {otherwise}") from exc


class _Answer:
    """What has to be remembered of one answer: constants seen, choices open, calls begun."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._constants: dict[str, Any] = {}
        self.open: dict[int, bool] = {0: True}

    @property
    def finished(self) -> bool:
        return not any(self.open.values())

    def constants(self, fingerprint: str | None, tier: str | None, batch: list[Event]) -> None:
        if fingerprint is not None and self._constants.get("system_fingerprint") != fingerprint:
            self._note({"system_fingerprint": fingerprint}, batch)
        if tier is not None and self._constants.get("service_tier") != tier:
            self._note({"service_tier": tier}, batch)

    def _note(self, fields: Mapping[str, Any], batch: list[Event]) -> None:
        self._constants.update(fields)
        batch.append(Extra("chunk", fields))

    def add(self, chunk: dict[str, Any], holder: str, batch: list[Event]) -> None:
        """Events of a chunk (`holder` "delta") or a completion ("message") with fields beyond
        plain text.
        """
        error = error_in_answer(chunk, self._credential)
        if error is not None:
            raise error
        rest = {
            key: value
            for key, value in chunk.items()
            if key not in _CHUNK_FIELDS and self._constants.get(key, chunk) != value
        }
        if rest:
            self._note(rest, batch)
        try:
            for position, choice in enumerate(chunk.get("choices") or ()):
                self._choice(choice, _number(choice.get("index"), position), holder, batch)
            if chunk.get("usage"):
                batch.append(usage_event(chunk["usage"]))
        except (AttributeError, KeyError, TypeError, ValueError, msgspec.ValidationError) as exc:
            raise ProtocolError("the upstream sent a chunk that is not OpenAI's shape") from exc

    def _choice(self, choice: dict[str, Any], index: int, holder: str, batch: list[Event]) -> None:
        self.open.setdefault(index, True)
        said = choice.get(holder) or {}
        rest = {k: v for k, v in choice.items() if k not in _CHOICE_FIELDS}
        if rest:
            batch.append(Extra("choice", rest, index))
        rest = {
            k: v
            for k, v in said.items()
            if k not in _DELTA_FIELDS and not (k == "refusal" and not v)
        }
        if rest:
            batch.append(Extra("delta", rest, index))
        reasoning = _text(said.get("reasoning_content") or said.get("reasoning"))
        if reasoning:
            batch.append(Reasoning(reasoning, index))
        content, logprobs = _text(said.get("content")), choice.get("logprobs")
        if content or logprobs:
            raw = msgspec.Raw(msgspec.json.encode(dict(logprobs))) if logprobs else None
            batch.append(Text(content, index, raw))
        for position, call in enumerate(said.get("tool_calls") or ()):
            batch.append(_tool_call(call, _number(call.get("index"), position), index))
        if choice.get("finish_reason") and self.open[index]:
            self.open[index] = False
            batch.append(Finish(_finish_reason(choice["finish_reason"]), index))

    def done(self, batch: list[Event]) -> None:
        """The end mark: choices without a finish reason end here, since the upstream says it is
        done.
        """
        batch.extend(Finish("stop", index) for index, is_open in self.open.items() if is_open)
        self.open = dict.fromkeys(self.open, False)


def _text(value: Any) -> str:
    """A text, or "" for null. Raises `TypeError`."""
    if value is not None and not isinstance(value, str):
        raise TypeError("a text is expected")
    return value or ""


def _number(value: Any, default: int) -> int:
    """A place in a list; some upstreams leave it null. Raises `TypeError`."""
    if value is not None and type(value) is not int:
        raise TypeError("an index is expected")
    return default if value is None else value


def _tool_call(call: dict[str, Any], position: int, index: int) -> ToolCall:
    kind = call.get("type") or ("custom" if "custom" in call else "function")
    function = call.get(kind) or {}
    arguments = function.get("input" if kind == "custom" else "arguments") or ""
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    identity, name = _text(call.get("id")) or None, _text(function.get("name")) or None
    return ToolCall(position, identity, name, arguments, kind, index)


def _finish_reason(reason: str) -> FinishReason:
    known = reason if reason in _FINISH_REASONS else _OTHER_REASONS.get(reason.lower(), "stop")
    return cast(FinishReason, known)


def usage_event(usage: dict[str, Any]) -> Usage:
    """A `Usage` from OpenAI's object; what else it reports is kept."""
    prompt = int(usage.get("prompt_tokens") or 0)
    completion = int(usage.get("completion_tokens") or 0)
    details = {key: value for key, value in usage.items() if key not in _USAGE_FIELDS}
    total = int(usage.get("total_tokens") or prompt + completion)
    return Usage(prompt, completion, total, details or None)
