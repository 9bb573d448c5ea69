#!/usr/bin/env python3
"""Two readers for `run_web.py`, each its own process; each prints one JSON object.

hold   N paced streams at once, from the stand-in itself (--direct) or through the gateway: gaps,
       first token; every reply is put together and compared with what was asked for.
once   K replies one after another through the gateway, compared likewise.
floor  K replies straight from the stand-in, read with the gateway's own transport under gevent and
       decoded with msgspec into nothing but the text: what the upstream's bytes cost a bare reader
       that decodes every event. With --blind they are only read.
"""

import argparse
import asyncio
import http.client
import json
import resource
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from web_upstream import plain_text

clock = time.perf_counter


def request_body(direct, asked):
    if direct:
        said = {"author": {"role": "user"}, "content": {"content_type": "text", "parts": [asked]}}
        return json.dumps({"action": "next", "messages": [said]}).encode()
    said = [{"role": "user", "content": asked}]
    return json.dumps({"model": "gpt-4-s", "stream": True, "messages": said}).encode()


def text_of(body, direct):
    """The reply in the body of a stream; None if it does not end as it should."""
    if not body.endswith(b"data: [DONE]\n\n"):
        return None
    text = ""
    for line in body.split(b"\n\n")[:-2]:
        data = json.loads(line.removeprefix(b"data: "))
        if not direct:
            text += "".join(choice["delta"].get("content") or "" for choice in data["choices"])
        elif (data.get("message") or {}).get("author", {}).get("role") == "assistant":
            text = data["message"]["content"]["parts"][0]
    return text


class Stream(asyncio.Protocol):
    """One request; `over` is set when the connection ends. Times are in seconds."""

    def __init__(self, request, mark, gaps):
        self.request, self.mark, self.gaps = request, mark, gaps
        self.over = asyncio.get_running_loop().create_future()
        self.raw, self.seen, self.first, self.last = bytearray(), 0, 0.0, 0.0

    def connection_made(self, transport):
        self.began = clock()
        transport.write(self.request)

    def data_received(self, data):
        now = clock()
        at = len(self.raw)
        self.raw += data
        count = self.raw.count(self.mark, max(0, at - len(self.mark) + 1))
        if not count:
            return
        if not self.first:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.gaps.extend([0.0] * (count - 1))
        self.last = now

    def connection_lost(self, exc):
        self.over.set_result(None)


def unchunked(raw):
    head, _, rest = bytes(raw).partition(b"\r\n\r\n")
    body = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return head.split(b" ", 2)[1], b"".join(body)


async def hold(options):
    url = urlsplit(options.url)
    body = request_body(options.direct, options.asked)
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {options.key}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    mark = b'"in_progress"' if options.direct else b'"delta":{"content":"'
    gaps, loop = [], asyncio.get_running_loop()

    async def one(number):
        await asyncio.sleep(options.ramp * number / options.count)
        make = lambda: Stream(head.encode() + body, mark, gaps)  # noqa: E731
        _, stream = await loop.create_connection(make, url.hostname, url.port)
        await asyncio.wait_for(stream.over, options.patience)
        return stream

    streams = await asyncio.gather(*(one(i) for i in range(options.count)), return_exceptions=True)
    whole = [s for s in streams if isinstance(s, Stream)]
    answers = [unchunked(s.raw) for s in whole]
    expected = plain_text(options.tokens)
    right = sum(text_of(body, options.direct) == expected for _, body in answers)
    gaps.sort()
    first = sorted(s.first - s.began for s in whole)
    at = lambda values, part: round(values[int(len(values) * part)] * 1e3, 1)  # noqa: E731
    return {
        "right": right,
        "gap_ms": {"p50": at(gaps, 0.5), "p99": at(gaps, 0.99), "p999": at(gaps, 0.999)},
        "gap_max_ms": round(gaps[-1] * 1e3, 1),
        "first_ms": {"p50": at(first, 0.5), "p99": at(first, 0.99)},
    }


def once(options):
    url = urlsplit(options.url)
    expected, right, size = plain_text(options.tokens), 0, 0
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=options.patience)
    headers = {"Authorization": f"Bearer {options.key}", "Content-Type": "application/json"}
    for _ in range(options.count):
        connection.request("POST", url.path, request_body(False, options.asked), headers)
        body = connection.getresponse().read()
        right += text_of(body, False) == expected
        size += len(body)
    return {"right": right, "bytes": size}


def floor(options):
    from gevent import monkey

    monkey.patch_all()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import msgspec

    from services import transport

    class Content(msgspec.Struct):
        parts: list[str]

    class Message(msgspec.Struct):
        content: Content

    class Event(msgspec.Struct):
        message: Message | None = None

    decode = msgspec.json.Decoder(Event).decode
    wires = transport.Transport()
    body = request_body(True, options.asked)
    request = transport.UpstreamRequest("POST", options.url, {}, body)
    expected, right, size, texts = plain_text(options.tokens), 0, 0, 0

    def texts_of(response):
        nonlocal size
        held = []
        while data := response.read(options.patience):
            size += len(data)
            if options.blind:
                continue
            *whole, rest = data.split(b"\n\n")
            if whole and held:
                whole[0] = b"".join((*held, whole[0]))
                held = []
            for block in whole:
                if not block.startswith(b"data: [DONE]"):
                    event = decode(memoryview(block)[6:])
                    if event.message:
                        yield event.message.content.parts[0]
            if rest:
                held.append(rest)

    used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])  # noqa: E731
    began = used()
    for _ in range(options.count):
        with wires.open(request) as response:
            for text in texts_of(response):
                texts += 1
        right += options.blind or text == expected
    return {"right": right, "bytes": size, "events": texts, "cpu_s": used() - began}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["hold", "once", "floor"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--key", default="none")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0)
    parser.add_argument("--ramp", type=float, default=3)
    parser.add_argument("--patience", type=float, default=120)
    options = parser.parse_args()
    assert urlsplit(options.url).hostname == "127.0.0.1", "loopback only"
    options.asked = f"tokens={options.tokens} step={options.step} pace={options.pace:g}"
    if options.mode == "hold":
        import uvloop

        print(json.dumps(uvloop.run(hold(options))))
    else:
        print(json.dumps({"once": once, "floor": floor}[options.mode](options)))


if __name__ == "__main__":
    main()
