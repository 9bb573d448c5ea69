"""The control side of `openai_compat`: entries of its queue, rows of its log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .http_server import Exchange
from .openai_answer import dumps
from .openai_errors import JSON, Whole
from .openai_stream import Step

Entry = dict[str, Any]


def whole(entry: Entry) -> Whole:
    """The whole answer that an entry with `status` or `body` describes."""
    body = entry.get("body", "")
    headers = dict(entry.get("headers", {}))
    kind = headers.pop("Content-Type", JSON)
    text = body if isinstance(body, str) else dumps(body)
    return Whole(entry.get("status", 200), text, kind, headers)


def steps(entries: list[Entry]) -> Iterator[Step]:
    """The steps of a stream by hand. Raises ValueError on an unknown one."""
    for entry in entries:
        match entry:
            case {"send": str(text)}:
                yield Step("send", text.encode())
            case {"pause": int() | float() as seconds}:
                yield Step("pause", seconds=seconds)
            case {"cut": True}:
                yield Step("cut")
            case {"reset": True}:
                yield Step("reset")
            case _:
                raise ValueError(f"unknown step {entry}")


def logged(exchange: Exchange) -> dict[str, Any]:
    """An exchange as a row of the log."""
    request = exchange.request
    return {
        "number": exchange.number,
        "method": request.method,
        "path": request.target,
        "headers": list(request.headers),
        "body": request.body.decode("utf-8", "replace"),
        "at": request.at,
        "status": exchange.status,
        "streaming": exchange.streaming,
        "bytes_sent": exchange.bytes_sent,
        "first_byte_at": exchange.first_byte_at,
        "finished_at": exchange.finished_at,
        "aborted_at": exchange.aborted_at,
        "active": exchange.active,
        "error": exchange.error,
    }
