"""The floor to compare with: Flask, gunicorn's gevent worker and geventhttpclient, and nothing else.

    UPSTREAM=http://127.0.0.1:9201 gunicorn -k gevent -b 127.0.0.1:9300 floor:app   (in this folder)

It forwards a chat request as it came and hands the answer on as it arrives: no authentication, no
validation, no log, no decoding, no look at how a stream ends.
"""

import os

from flask import Flask, Response, request
from geventhttpclient import HTTPClient

app = Flask(__name__)
upstream = HTTPClient.from_url(os.environ["UPSTREAM"], concurrency=4000, network_timeout=120)


@app.post("/v1/chat/completions")
def forward():
    headers = {
        "Content-Type": "application/json",
        "Authorization": request.headers["Authorization"],
    }
    answer = upstream.post("/v1/chat/completions", request.get_data(), headers)
    kind = answer.get("content-type")
    if kind.startswith("application/json"):
        return Response(bytes(answer.read()), content_type=kind)
    return Response(_pieces(answer), content_type=kind)


def _pieces(answer):
    """Whatever each read of the socket brings."""
    while not answer.message_complete:
        if not answer._body_buffer:
            answer.feed(answer._sock.recv(65536))
        piece = bytes(answer._body_buffer)
        answer._body_buffer.clear()
        if piece:
            yield piece
    if answer._body_buffer:
        yield bytes(answer._body_buffer)


@app.get("/ready")
def ready():
    return "ok"
