"""What every server-sent-event dialect shares: how a text is cut to size, and comment lines.

one-api reads lines with a 64 KiB scanner and silently drops the rest of a stream after a longer
one, so no line of ours is longer than 48 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

MAX_LINE = 48 * 1024
MAX_VALUE = MAX_LINE - 4 * 1024
"""Room for the rest of a chunk beside the text it carries."""

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def json_pieces(text: str) -> Iterator[bytes]:
    """`text` as JSON string literals, cut so that each is at most `MAX_VALUE` bytes."""
    literal = _encode(text)
    if len(literal) <= MAX_VALUE:
        yield literal
        return
    middle = len(text) // 2
    yield from json_pieces(text[:middle])
    yield from json_pieces(text[middle:])
