#!/usr/bin/env python3
"""A fast stand-in for `POST /backend-api/conversation`: cumulative server-sent events.

Every event repeats the whole text so far in `message.content.parts[0]`, in the shape of a
ChatGPT-web upstream; around the answer stand its usual hidden messages, moderation and title. One
process, uvloop and httptools, as `upstream.py`, whose connections and timer it shares.

The last user message chooses, by words such as `tokens=200 pace=20`:
    tokens  length of the reply, in tokens of exactly 4 characters      (50)
    step    tokens that each event adds                                 (1)
    pace    events a second, 0 = as fast as the reader takes them       (0)
GET /healthz; anything else is answered with `{}`, so that what follows a turn succeeds.
"""

import argparse
import asyncio
import json
import re
import signal

import uvloop
from upstream import Proto, Ticker, chunk

CHARACTERS = 4
"""In a token."""
LINE = (
    'The quick brown otter swims 3 rivers, says "hello",\nand then it sleeps for a whole day or so'
)
KNOBS = {"tokens": 50, "step": 1, "pace": 0}
CONVERSATION = "6b1e0c52-6d1c-4f7e-9c46-6f1f5b2f0001"
ESCAPED_LINE = json.dumps(LINE)[1:-1].encode()
LINE_TOKENS = len(LINE) // CHARACTERS
ENDS = [len(json.dumps(LINE[: i * CHARACTERS])) - 2 for i in range(LINE_TOKENS)]
"""Where a token of the line ends in the escaped line."""
assert len(LINE) % CHARACTERS == 0


def knobs(text):
    found = {name: float(value) for name, value in re.findall(r"\b([a-z]+)=(\d+(?:\.\d+)?)", text)}
    return {name: found.get(name, default) for name, default in KNOBS.items()}


def plain_text(tokens):
    """The reply of so many tokens, as the reader should end up with it."""
    size = tokens * CHARACTERS
    return (LINE * (size // len(LINE) + 1))[:size]


def escaped_size(tokens):
    lines, rest = divmod(tokens, LINE_TOKENS)
    return lines * len(ESCAPED_LINE) + ENDS[rest]


def message(identity, role, status, text, metadata):
    return {
        "id": identity,
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": 1707600000.0,
        "update_time": None,
        "content": {"content_type": "text", "parts": [text]},
        "status": status,
        "end_turn": True if status != "in_progress" else None,
        "weight": 1.0,
        "metadata": metadata,
        "recipient": "all",
    }


def event(body):
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def around(status, metadata):
    """What stands before and after the escaped text in an event of the answer."""
    said = message("a1f3c7d2-0b54-4f0e-8a77-52d1c5f0aa01", "assistant", status, "@@@", metadata)
    body = event({"message": said, "conversation_id": CONVERSATION, "error": None})
    return body.split(b"@@@")


SLUG = {"message_type": "next", "model_slug": "gpt-4"}
GROWING = around("in_progress", SLUG)
ENDED = around(
    "finished_successfully", SLUG | {"finish_details": {"type": "stop", "stop_tokens": [100260]}}
)
CLOSING = (
    event(
        {
            "conversation_id": CONVERSATION,
            "message_id": "a1f3c7d2-0b54-4f0e-8a77-52d1c5f0aa01",
            "is_completion": True,
            "moderation_response": {"flagged": False, "blocked": False, "moderation_id": "modr-1"},
        }
    )
    + event({"type": "title_generation", "title": "Otters", "conversation_id": CONVERSATION})
    + b"data: [DONE]\n\n"
)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def opening(asked):
    """The hidden system message and the echo of the question."""
    system = message("5d0e", "system", "finished_successfully", "", {})
    user = message("07c1", "user", "finished_successfully", asked, {})
    return b"".join(
        event({"message": said, "conversation_id": CONVERSATION, "error": None})
        for said in (system, user)
    )


class Web(Proto):
    """One connection."""

    def resume_writing(self):
        super().resume_writing()
        waiting, self.waiting = getattr(self, "waiting", None), None
        if waiting:
            waiting()

    def handle(self, method, url, body, hdr, keep):
        path = url.split(b"?", 1)[0]
        if method != b"POST" or not path.endswith(b"/backend-api/conversation"):
            self.busy = True
            return self.send(200, b"{}", keep)
        self.busy = True
        asked = ""
        for said in json.loads(body)["messages"]:
            if said["author"]["role"] == "user":
                asked = "".join(map(str, said["content"]["parts"]))
        self.answer(asked, keep)

    def answer(self, asked, keep):
        chosen = knobs(asked)
        tokens, step, pace = int(chosen["tokens"]), int(chosen["step"]), chosen["pace"]
        text = ESCAPED_LINE * (tokens // LINE_TOKENS + 1)
        (before, after), (last_before, last_after) = GROWING, ENDED
        start, said, sent = self.loop.time(), 0, 0
        transport = self.tr
        transport.write(HEAD + chunk(opening(asked)))

        def grow():
            nonlocal said, sent
            said = min(said + step, tokens)
            sent += 1
            size = escaped_size(said)
            transport.write(
                b"".join(
                    (
                        b"%x\r\n" % (len(before) + size + len(after)),
                        before,
                        text[:size],
                        after,
                        b"\r\n",
                    )
                )
            )

        def end():
            whole = last_before + text[: escaped_size(tokens)] + last_after
            transport.write(chunk(whole) + chunk(CLOSING) + b"0\r\n\r\n")
            self.done(keep)

        def paced():
            if not self.alive:
                return
            grow()
            if said >= tokens:
                return end()
            self.tick.add(start + sent / pace, paced)

        def fast():
            while self.alive:
                if self.paused:
                    self.waiting = fast
                    return
                if said >= tokens:
                    return end()
                grow()

        (paced if pace else fast)()


async def serve(host, port, max_seconds):
    loop = asyncio.get_running_loop()
    ticker, stop = Ticker(loop), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(lambda: Web(loop, ticker), host, port, backlog=4096)
    try:
        await asyncio.wait_for(stop.wait(), max_seconds)
    except TimeoutError:
        pass
    server.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9300)
    parser.add_argument("--max-seconds", type=float, default=3600, help="stops by itself")
    options = parser.parse_args()
    uvloop.run(serve(options.host, options.port, options.max_seconds))


if __name__ == "__main__":
    main()
