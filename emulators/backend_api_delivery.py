"""Sends a scenario's steps as an SSE answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from .backend_api_scenarios.steps import Answer, Cut, Event, Options, Pause, Raw, Step, Stop
from .http_server import Reply

DONE = b"data: [DONE]\n\n"
SSE_TYPE = "text/event-stream; charset=utf-8"
LARGEST_PIECE = 40


def encode(step: Event | Raw, options: Options) -> bytes:
    """The bytes of one event; JSON is \\u-escaped unless `raw_utf8`."""
    if isinstance(step, Raw):
        return step.data
    text = json.dumps(step.data, ensure_ascii=not options.raw_utf8, separators=(", ", ": "))
    end = "\r\n\r\n" if options.crlf else "\n\n"
    name = f"event: {step.name}{end[: len(end) // 2]}" if step.name else ""
    return f"{name}data: {text}{end}".encode()


def send_answer(reply: Reply, answer: Answer) -> None:
    """A plain HTTP answer instead of a stream."""
    body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
    reply.send(answer.status, body, answer.headers, answer.content_type)


def send_sse(reply: Reply, steps: Iterator[Step], options: Options) -> None:
    """Stream the steps, then `[DONE]` unless the scenario cut or stopped. Raises PeerGone."""
    reply.start(200, {"Content-Type": SSE_TYPE}, framing=options.framing)
    pieces = Pieces(reply, options)
    for step in steps:
        match step:
            case Event() | Raw():
                pieces.write(encode(step, options))
                going_on = not options.delay or reply.hang(options.delay)
            case Pause(seconds):
                pieces.flush()
                going_on = reply.hang(seconds)
            case Cut(reset):
                pieces.flush()
                reply.reset() if reset else reply.cut()
                going_on = False
            case Stop() | Answer():
                pieces.flush()
                going_on = False
        if not going_on:
            return
    pieces.write(DONE.replace(b"\n", b"\r\n") if options.crlf else DONE)
    pieces.flush()


class Pieces:
    """Cuts the stream into the pieces the options ask for; each piece is one write."""

    def __init__(self, reply: Reply, options: Options) -> None:
        self._reply = reply
        self._split = options.split
        self._random = random.Random(options.seed)
        self._buffer = b""

    def write(self, data: bytes) -> None:
        """Send what is due; random pieces run across events."""
        if self._split == "events":
            self._reply.write(data)
        elif self._split == "bytes":
            for byte in data:
                self._reply.write(bytes([byte]))
        else:
            self._buffer += data
            while len(self._buffer) >= LARGEST_PIECE:
                self._send(self._random.randint(1, LARGEST_PIECE))

    def flush(self) -> None:
        """Send the rest."""
        self._send(len(self._buffer))

    def _send(self, size: int) -> None:
        piece, self._buffer = self._buffer[:size], self._buffer[size:]
        self._reply.write(piece)
