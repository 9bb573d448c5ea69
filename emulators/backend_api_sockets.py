"""The socket variant of the `backend-api` emulator: register-websocket and the WebSocket endpoint.

A turn's events come as JSON text frames around the base64 of one SSE event each, in the flat or
the nested form, between frames of other responses that a client must ignore. The socket stays open
between turns.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import backend_api_frames as frames
from .backend_api_delivery import DONE, encode
from .backend_api_scenarios.steps import Answer, Cut, Event, Options, Pause, Raw, Step, Stop
from .backend_api_tickets import PendingTurn
from .backend_api_visit import Visit
from .http_server import PeerGone, Reply

EXPIRES_AT = "2099-01-01T00:00:00.000000+00:00"
IDLE_LIMIT = 120.0  # seconds an unused socket is kept
FOREIGN = {
    "message": {
        "id": "00000000-0000-4000-8000-00000000f0f0",
        "author": {"role": "assistant", "name": None, "metadata": {}},
        "content": {"content_type": "text", "parts": ["FOREIGN: of another response"]},
        "status": "in_progress",
        "metadata": {"model_slug": "gpt-4"},
        "recipient": "all",
    },
    "conversation_id": "00000000-0000-4000-8000-00000000c0c0",
    "error": None,
}


def socket_url(visit: Visit, ticket: str) -> str:
    return f"ws{visit.base.removeprefix('http')}/ws/{ticket}"


def register(visit: Visit) -> None:
    """POST register-websocket: where this account's frames can be read."""
    account = visit.account()
    if account is not None:
        ticket = visit.state.tickets.issue(account.name, registered=True)
        visit.reply.json(200, {"wss_url": socket_url(visit, ticket), "expires_at": EXPIRES_AT})


def serve(visit: Visit) -> None:
    """GET /ws/<ticket>: the WebSocket; 403 for an unknown ticket, 400 without a handshake."""
    key, ticket = visit.request.headers.get("sec-websocket-key"), visit.args["ticket"]
    visit.call.account = visit.state.tickets.owner(ticket)
    if not key or visit.request.headers.get("upgrade").lower() != "websocket":
        visit.reply.send(400, "a WebSocket handshake is expected")
    elif not visit.call.account:
        visit.reply.send(403, "unknown ticket")
    else:
        accept = frames.accept_key(key)
        fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
        visit.reply.upgrade(fields)
        _Connection(visit).run(ticket)


class _Connection:
    """One open socket: sends turns, answers pings, notices the close. Single-threaded."""

    def __init__(self, visit: Visit) -> None:
        self._reply: Reply = visit.reply
        self._visit = visit
        self._reader = frames.FrameReader()
        self._in_turn = False

    def run(self, ticket: str) -> None:
        tickets = self._visit.state.tickets
        connection = tickets.connect(ticket)
        try:
            self._reply.raw(frames.frame(frames.PING, b"are you there"))
            deadline = time.monotonic() + IDLE_LIMIT
            while time.monotonic() < deadline:
                turn = tickets.next_for(connection)
                if turn is None:
                    self._listen(0.02)
                    continue
                self._in_turn = True
                self._send_turn(turn)
                self._in_turn = False
                deadline = time.monotonic() + IDLE_LIMIT
            self._reply.raw(frames.close(1001, "idle"))
        finally:
            tickets.disconnect(connection)

    def _send_turn(self, turn: PendingTurn) -> None:
        options = turn.options
        wrap = _wrapper(turn)
        for step in _with_foreign(turn.steps, options):
            match step:
                case Event() | Raw():
                    message = wrap(encode(step, options), step is _FOREIGN_STEP)
                    self._reply.raw(frames.text(message, options.fragments))
                    self._listen(options.delay)
                case Pause(seconds):
                    self._listen(seconds)
                case Cut(reset):
                    if reset:
                        self._reply.reset()
                    else:
                        self._reply.cut()
                    raise PeerGone("cut by the scenario")
                case Stop() | Answer():
                    self._reply.raw(frames.close())
                    return
        self._reply.raw(frames.text(wrap(DONE, False), options.fragments))

    def _listen(self, seconds: float) -> None:
        """Hear the client for so long; raises PeerGone at its close."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                data = self._reply.receive(max(0.0, left))
            except (TimeoutError, BlockingIOError):
                return
            for opcode, payload in self._reader.feed(data):
                self._hear(opcode, payload)
            if left <= 0:
                return

    def _hear(self, opcode: int, payload: bytes) -> None:
        if self._reader.unmasked_seen:
            self._visit.problem("a client frame is not masked")
        if opcode == frames.PING:
            self._reply.raw(frames.frame(frames.PONG, payload))
        elif opcode == frames.CLOSE:
            self._reply.raw(frames.frame(frames.CLOSE, payload[:2]))
            if self._in_turn:
                self._reply.exchange.aborted_at = time.monotonic()
            self._reply.cut()
            raise PeerGone("closed by the client")


_FOREIGN_STEP = Event(FOREIGN)


def _with_foreign(steps: Iterable[Step], options: Options) -> Iterator[Step]:
    """Every second frame is one of another response, where the options say so."""
    for step in steps:
        if options.foreign and isinstance(step, Event):
            yield _FOREIGN_STEP
        yield step


def _wrapper(turn: PendingTurn) -> Callable[[bytes, bool], str]:
    """Frames in the turn's form; the second argument gives the frame to another response."""
    sequence = 0

    def wrap(body: bytes, foreign: bool) -> str:
        nonlocal sequence
        sequence += 1
        response_id = "00000000-0000-4000-8000-0000000000ff" if foreign else turn.response_id
        content: dict[str, Any] = {"response_id": response_id}
        content["body"] = base64.b64encode(body).decode()
        if turn.options.transport == "socket_flat":
            return json.dumps(content)
        content["type"] = "http.response.body"
        content["conversation_id"] = turn.conversation_id
        content["more_body"] = body != DONE
        return json.dumps({"sequenceId": sequence, "type": "message", "data": content})

    return wrap
