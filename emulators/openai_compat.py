"""A scripted OpenAI-compatible upstream: `/v1/models`, `/v1/chat/completions`, `/v1/embeddings`.

How a chat is answered is chosen by marker words in the model's name or the last user message (see
`openai_markers`), or by the control queue: `POST /_ctl/script` takes one entry or a list, each used
for the next chat. An entry has any of
    "markers": "#reasoning #cut"            instead of the request's own markers
    "text": "…"                             the text of the answer
    "status", "body", "headers"             a whole answer; `body` is a string or JSON
    "steps": [{"send": "data: …"}, {"pause": 2}, {"cut": true}, {"reset": true}]   a stream by hand
    "times": 3                              use the entry so often
`GET /_ctl/log`, `GET /_ctl/connections`, `POST /_ctl/reset`. Times are `time.monotonic()` seconds.
Everything is deterministic: ids count up, texts are fixed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from . import command, openai_checks, openai_errors, openai_markers, openai_script
from .http_server import Exchange, HttpServer, Reply, Request
from .openai_answer import CREATED, Answer, build, dumps
from .openai_embeddings import embeddings
from .openai_errors import JSON, Whole
from .openai_markers import Markers
from .openai_script import Entry
from .openai_stream import SILENCE, play, stream_steps, whole_steps

NAME = "openai_compat"
MODELS = ("emu-small", "emu-large")
CONTROL = "/_ctl/"
EVENT_STREAM = "text/event-stream; charset=utf-8"


class OpenAICompat(HttpServer):
    """The upstream. With `keys`, every route but the control routes wants one as its bearer.

    `problems` collects what was wrong with the requests. Any prefix will do instead of `/v1`.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        models: Iterable[str] = MODELS,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(self._route, host, port)
        self.keys = frozenset(keys)
        self.models = tuple(models)
        self.problems: list[str] = []
        self._script: deque[Entry] = deque()
        self._answers = 0
        self._state = threading.Lock()

    @property
    def base_url(self) -> str:
        """What a client takes as its OpenAI base URL."""
        return f"{self.url}/v1"

    @property
    def calls(self) -> list[Exchange]:
        """The exchanges, without those of the control routes."""
        return [e for e in self.exchanges if not e.request.path.startswith(CONTROL)]

    def script(self, *entries: Entry) -> None:
        """Queue entries for the next chats."""
        with self._state:
            for entry in entries:
                self._script.extend([entry] * int(entry.get("times", 1)))

    def reset(self) -> None:
        """Forget the queue, the log, the problems; ids start again."""
        with self._state:
            self._script.clear()
            self.problems.clear()
            self._answers = 0
        self.clear()

    def _route(self, request: Request, reply: Reply) -> None:
        path = request.path
        if path.startswith(CONTROL):
            reply.json(*self._control(request, path.removeprefix(CONTROL)))
        elif self.keys and request.bearer not in self.keys:
            _send(reply, openai_errors.refusal(401))
        elif request.method == "POST" and path.endswith("/chat/completions"):
            self._chat(request, reply)
        elif request.method == "POST" and path.endswith("/embeddings"):
            reply.json(200, embeddings(request.json()))
        elif request.method == "GET" and path.endswith("/models"):
            reply.json(200, {"object": "list", "data": [_card(name) for name in self.models]})
        elif request.method == "GET" and (name := path.partition("/models/")[2]) in self.models:
            reply.json(200, _card(name))
        else:
            _send(reply, openai_errors.refusal(404, f"unknown path {request.method} {path}"))

    def _control(self, request: Request, action: str) -> tuple[int, Any]:
        """The status and JSON that a control route answers."""
        match request.method, action:
            case "POST", "script":
                entries = request.json()
                self.script(*(entries if isinstance(entries, list) else [entries]))
            case "POST", "reset":
                self.reset()
            case "GET", "log":
                rows = [openai_script.logged(exchange) for exchange in self.calls]
                return 200, {"exchanges": rows, "problems": self.problems}
            case "GET", "connections":
                return 200, self._counts()
            case _:
                return 404, {"error": f"no control route {request.method} {action}"}
        return 200, {"ok": True}

    def _counts(self) -> dict[str, int]:
        """Open connections without the asking one, running and aborted answers."""
        calls = self.calls
        return {
            "open": self.connections - 1,
            "active": sum(exchange.active for exchange in calls),
            "aborted": sum(exchange.aborted_at is not None for exchange in calls),
            "total": len(calls),
        }

    def _chat(self, request: Request, reply: Reply) -> None:
        body = self._checked(request, reply)
        if body is None:
            return
        entry = self._next_entry()
        chosen = entry.get("markers")
        markers = openai_markers.of_request(body) if chosen is None else openai_markers.find(chosen)
        if "slow-headers" in markers and not reply.hang(markers["slow-headers"] or SILENCE):
            return
        if "steps" in entry:
            _send_by_hand(entry, reply)
        elif "status" in entry or "body" in entry:
            _send(reply, openai_script.whole(entry))
        elif failure := openai_errors.chosen(markers):
            _send(reply, failure)
        else:
            self._answer(body, markers, entry.get("text"), reply)

    def _checked(self, request: Request, reply: Reply) -> dict[str, Any] | None:
        """The request's body; None where it was refused."""
        try:
            body = request.json()
        except ValueError:
            body = None
        found = openai_checks.problems(body)
        if "json" not in request.headers.get("content-type"):
            self.problems.append("Content-Type is not application/json")
        self.problems += [f"{name} {text}" for name, text in found]
        if found:
            name, text = found[0]
            _send(reply, openai_errors.refusal(400, f"{name} {text}", name))
            return None
        checked: dict[str, Any] = body
        self.problems += [f"unknown field {name}" for name in openai_checks.unknown_fields(checked)]
        return checked

    def _next_entry(self) -> Entry:
        with self._state:
            return self._script.popleft() if self._script else {}

    def _answer(
        self, body: dict[str, Any], markers: Markers, text: str | None, reply: Reply
    ) -> None:
        with self._state:
            self._answers += 1
            number = self._answers
        answer = build(body, markers, number, text)
        headers = {"x-request-id": f"req_emu_{number:06}"}
        if body.get("stream") and "json-for-stream" not in markers:
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            _send_stream(answer, markers, usage, headers, reply)
        elif "error-midstream" in markers or "error-midstream-done" in markers:
            _send(reply, openai_errors.refusal(500))
        else:
            _send_completion(answer, markers, headers, reply)


def _send_stream(
    answer: Answer, markers: Markers, usage: bool, headers: dict[str, str], reply: Reply
) -> None:
    headers |= {"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"}
    reply.start(200, headers, "close" if "close-delimited" in markers else "chunked")
    play(stream_steps(answer, markers, usage), reply, "bytes" in markers)


def _send_completion(
    answer: Answer, markers: Markers, headers: dict[str, str], reply: Reply
) -> None:
    completion = answer.completion()
    if "nofinish" in markers:
        for choice in completion["choices"]:
            choice["finish_reason"] = None
    data = dumps(completion).encode()
    if "bad-json" in markers:
        data = data[:-20]
    headers["Content-Type"] = JSON
    if "eof" in markers:
        reply.start(200, headers, "chunked")
    elif "close-delimited" in markers:
        reply.start(200, headers, "close")
    else:
        reply.start(200, headers, length=len(data))
    tokens = answer.usage["completion_tokens"]
    play(whole_steps(data, markers, tokens), reply, "bytes" in markers)


def _send_by_hand(entry: Entry, reply: Reply) -> None:
    headers = {"Content-Type": EVENT_STREAM} | entry.get("headers", {})
    reply.start(entry.get("status", 200), headers, entry.get("framing", "chunked"))
    play(openai_script.steps(entry["steps"]), reply)


def _send(reply: Reply, answer: Whole) -> None:
    reply.send(answer.status, answer.body, answer.headers, answer.content_type)


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "emulator"}


def main(argv: list[str]) -> int:
    parser = command.parser(NAME, __doc__)
    parser.add_argument("--key", action="append", default=[], help="a key to accept (default: any)")
    parser.add_argument("--model", action="append", help=f"a model to list (default: {MODELS})")
    asked = parser.parse_args(argv)
    server = OpenAICompat(asked.key, asked.model or MODELS, asked.host, asked.port)
    return command.serve(NAME, server, asked.stop_with_parent, "/v1")
