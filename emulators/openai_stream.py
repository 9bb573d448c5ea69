"""How `openai_compat` sends an answer: steps of bytes, pauses and faults, played onto a `Reply`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .http_server import Reply
from .openai_answer import Answer, dumps
from .openai_errors import refusal
from .openai_markers import Markers

DONE = "[DONE]"
SILENCE = 2.0  # seconds, where a marker has no number
TOKENS_PER_SECOND = 20.0
BEFORE_FAULT = 4  # events that go out before a fault: the role, two pieces, one more
RESET_DELAY = 0.05  # seconds, so that what was sent arrives before the RST
FAULTS = ("cut", "cut-event", "cut-utf8", "rst")

Event = dict[str, Any] | str


@dataclass(frozen=True)
class Step:
    """One thing to do to the connection. "pace" is a pause that makes up for lost time."""

    kind: Literal["send", "pause", "pace", "cut", "reset"]
    data: bytes = b""
    seconds: float = 0.0


def play(steps: Iterable[Step], reply: Reply, one_byte: bool = False) -> None:
    """Carry the steps out; returns early when the peer has left."""
    due = time.monotonic()
    for step in steps:
        match step.kind:
            case "send":
                size = 1 if one_byte else len(step.data)
                for start in range(0, len(step.data), size or 1):
                    reply.write(step.data[start : start + size])
            case "pause" | "pace":
                now = time.monotonic()
                due = max(due, now - step.seconds) if step.kind == "pace" else now
                due += step.seconds
                if not reply.hang(due - now):
                    return
            case "cut":
                reply.cut()
                return
            case "reset":
                reply.hang(RESET_DELAY)
                reply.reset()
                return


def events(answer: Answer, markers: Markers, include_usage: bool) -> list[Event]:
    """The events of the stream, with what is wrong about them."""
    said: list[Event] = list(answer.chunks(include_usage))
    middle = min(BEFORE_FAULT - 1, len(said))
    if "error-midstream" in markers or "error-midstream-done" in markers:
        failure: Event = json.loads(refusal(500).body)
        return said[:middle] + [failure] + ([DONE] if "error-midstream-done" in markers else [])
    if "nofinish" in markers or "eof" in markers:
        said = [event for event in said if not _is_end(event, "eof" in markers)]
    if "bad-json" in markers:
        said.insert(middle, '{"id":"chatcmpl-emu","choices":[{"index":0,"delta":{"content":"lost')
    return said if "nodone" in markers or "eof" in markers else [*said, DONE]


def _is_end(event: Event, usage_too: bool) -> bool:
    assert isinstance(event, dict)
    choices = event["choices"]
    return choices[0]["finish_reason"] is not None if choices else usage_too


def frame(event: Event, markers: Markers) -> bytes:
    """One event as SSE bytes, in the style that the markers ask for."""
    data = event if isinstance(event, str) else dumps(event)
    if "multiline" in markers and isinstance(event, dict):
        data = json.dumps(event, ensure_ascii=False, indent=1)
    blank = "" if "noblank" in markers else " "
    lines = [f"data:{blank}{line}" for line in data.split("\n")]
    if "comments" in markers:
        lines = [": ping", "", "event: message", "id: 7", "retry: 3000", *lines]
    end = "\r\n" if "crlf" in markers else "\r" if "cr" in markers else "\n"
    return (end.join(lines) + end + end).encode()


def stream_steps(answer: Answer, markers: Markers, include_usage: bool) -> Iterator[Step]:
    """The whole stream as steps."""
    frames = [frame(event, markers) for event in events(answer, markers, include_usage)]
    if "bom" in markers:
        frames[0] = b"\xef\xbb\xbf" + frames[0]
    if "silent-first" in markers:
        yield Step("pause", seconds=markers["silent-first"] or SILENCE)
    if "burst" in markers:
        frames = [b"".join(frames)]
    yield from _paced(frames, markers)


def _paced(frames: list[bytes], markers: Markers) -> Iterator[Step]:
    gap = 1 / (markers["tps"] or TOKENS_PER_SECOND) if "tps" in markers else 0.0
    for number, data in enumerate(frames):
        if number == min(BEFORE_FAULT, len(frames) - 1):
            if "silent" in markers:
                yield Step("pause", seconds=markers["silent"] or SILENCE)
            if fault := _fault(data, markers):
                yield from fault
                return
        if gap and number:
            yield Step("pace", seconds=gap)
        yield Step("send", data)


def _fault(data: bytes, markers: Markers) -> list[Step]:
    """What happens instead of sending `data`, if it goes wrong here."""
    if "cut" in markers:
        return [Step("cut")]
    if "rst" in markers:
        return [Step("reset")]
    if "cut-event" in markers:
        return [Step("send", data[: len(data) // 2]), Step("cut")]
    if "cut-utf8" in markers:
        return [Step("send", _into_a_character(data)), Step("cut")]
    return []


def _into_a_character(data: bytes) -> bytes:
    """The data up to the first byte of its first multi-byte character, that byte included."""
    start = next((i for i, byte in enumerate(data) if byte >= 0xC0), len(data) // 2)
    return data[: start + 1]


def whole_steps(body: bytes, markers: Markers, tokens: int) -> Iterator[Step]:
    """The body of an answer that is no stream, as steps."""
    if "tps" in markers:
        yield Step("pause", seconds=tokens / (markers["tps"] or TOKENS_PER_SECOND))
    if "silent-first" in markers:
        yield Step("pause", seconds=markers["silent-first"] or SILENCE)
    half = len(_into_a_character(body)) if "cut-utf8" in markers else len(body) // 2
    yield Step("send", body[:half])
    if "silent" in markers:
        yield Step("pause", seconds=markers["silent"] or SILENCE)
    if any(name in markers for name in FAULTS):
        yield Step("reset" if "rst" in markers else "cut")
        return
    if "eof" not in markers:
        yield Step("send", body[half:])
