"""Marker words that choose how `openai_compat` behaves: `#cut`, `#silent:5`, `#429`, ….

A marker stands in the model's name or in the last user message; several may be combined.
"""

from __future__ import annotations

import re
from typing import Any

# What each marker does; a default in parentheses is the number taken without ":N"
MARKERS: dict[str, str] = {
    # what the answer says
    "echo": "the last user message, without markers",
    "reasoning": "reasoning_content before the text",
    "tools": "two parallel tool calls in pieces",
    "logprobs": "logprobs with every piece",
    "unknown": "unknown fields in the chunk, the choice and the delta or message",
    "n": "N choices (the request's n)",
    "length": "stops with finish_reason length",
    "filter": "stops with finish_reason content_filter",
    "refusal": "a refusal instead of content",
    "empty": "finishes without content",
    "big": "one piece of N KB (64)",
    "long": "N tokens (1000)",
    "chinese": "Chinese text, raw UTF-8",
    "emoji": "emoji, joined and flagged ones too",
    # when it is sent
    "slow-headers": "N seconds before the headers (2)",
    "silent-first": "headers, then N seconds of silence (2)",
    "silent": "N seconds of silence in mid-stream (2)",
    "tps": "N tokens a second (20)",
    # how a sound stream is written
    "bytes": "one byte a write",
    "burst": "the whole stream in one write",
    "crlf": "CRLF line ends",
    "cr": "CR line ends",
    "bom": "a byte order mark first",
    "comments": "comments, event:, id: and retry: lines between",
    "multiline": "an event's JSON over several data: lines",
    "noblank": "data: without a blank after the colon",
    "close-delimited": "no chunked encoding, ends with the connection",
    # how it goes wrong
    "cut": "the connection closes between two events",
    "cut-event": "… inside an event",
    "cut-utf8": "… inside a character",
    "rst": "the connection is reset",
    "nodone": "finish_reason but no [DONE]",
    "nofinish": "[DONE] but no finish_reason",
    "eof": "a clean end of the body with neither",
    "error-midstream": "an error event after two pieces, then the end",
    "error-midstream-done": "the same, then [DONE]",
    "bad-json": "an event that is no JSON",
    "html200": "an HTML page with status 200",
    "html502": "an HTML page with status 502",
    "json-for-stream": "one JSON completion for a stream request",
    "error-string": '{"error": "text"} with status N (400)',
    "error-200": "an error object with status 200",
    "context": "400 context_length_exceeded",
    "quota": "429 insufficient_quota, no Retry-After",
}
STATUSES = (400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 529)
_MARKER = re.compile(r"#([a-z][a-z0-9-]*|\d{3})(?::(\d+(?:\.\d+)?))?(?![\w-])")

Markers = dict[str, float | None]


def find(text: str) -> Markers:
    """The markers in a text with their numbers, or None; other #words are text."""
    return {
        name: float(number) if number else None
        for name, number in _MARKER.findall(text)
        if name in MARKERS or (name.isdigit() and int(name) in STATUSES)
    }


def strip(text: str) -> str:
    """A text without its markers."""
    return _MARKER.sub("", text).strip()


def of_request(body: dict[str, Any]) -> Markers:
    """The markers of a chat request, from its model and its last user message."""
    return find(f"{body.get('model', '')} {last_user_text(body)}")


def last_user_text(body: dict[str, Any]) -> str:
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            return content_text(message.get("content"))
    return ""


def content_text(content: Any) -> str:
    """The text of a message's content, a string or parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
