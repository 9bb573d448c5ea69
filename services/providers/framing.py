"""Cut an upstream's bytes into events, whatever the socket's reads look like.

`SSEDecoder` follows the server-sent events format of the HTML standard (LF, CRLF and CR line
ends, comments, `event:` lines, several `data:` lines, a missing blank after the colon);
`LineDecoder` is for NDJSON. Both hold bytes, not text, so a read may end anywhere, also inside a
UTF-8 character.
"""

from __future__ import annotations

import msgspec

from services.core.errors import ProtocolError

MAX_EVENT = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class ServerEvent(msgspec.Struct, frozen=True, gc=False):
    """One server-sent event: its `event:` name ("" if none) and its data, several lines joined by
    LF.
    """

    name: str
    data: bytes


class SSEDecoder:
    """Incremental decoder. `feed` returns the data of every event completed by these bytes."""

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max = max_event
        self._buffer = bytearray()
        self._scanned = 0
        self._carriage = False
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        return [
            block[6:] if block.startswith(b"data: ") and b"\n" not in block else _parse(block).data
            for block in self._blocks(data)
            if block.startswith(b"data: ") or _has_data(block)
        ]

    def feed_named(self, data: bytes) -> list[ServerEvent]:
        """As `feed`, with event names, for dialects that need them."""
        return [_parse(block) for block in self._blocks(data) if _has_data(block)]

    def finish(self) -> list[bytes]:
        """What is left at the end: a last event whose blank line never came (some upstreams
        forget it).
        """
        rest = bytes(self._buffer).strip(b"\n")
        self._buffer.clear()
        return [_parse(rest).data] if _has_data(rest) else []

    def _blocks(self, data: bytes) -> list[bytes]:
        if not self._started:
            data = self._skip_byte_order_mark(data)
        if self._carriage or b"\r" in data:
            data = self._normalise(data)
        if not self._buffer and data.endswith(b"\n\n"):
            return data.split(b"\n\n")
        self._buffer += data
        end = self._buffer.rfind(b"\n\n", max(0, self._scanned - 1))
        if end < 0:
            self._scanned = len(self._buffer)
            if self._scanned > self._max:
                raise ProtocolError(f"the upstream sent an event of more than {self._max} bytes")
            return []
        whole = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        self._scanned = len(self._buffer)
        return whole.split(b"\n\n")

    def _skip_byte_order_mark(self, data: bytes) -> bytes:
        data = bytes(self._buffer) + data
        self._buffer.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._buffer += data
            return b""
        self._started = True
        return data.removeprefix(_BOM)

    def _normalise(self, data: bytes) -> bytes:
        """Turn CRLF and CR into LF; a CR at the end waits, since an LF may follow in the next
        read.
        """
        if self._carriage:
            data = b"\r" + data
        self._carriage = data.endswith(b"\r")
        if self._carriage:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class LineDecoder:
    """Incremental decoder of newline-delimited JSON.

    `feed` returns the completed, non-blank lines.
    """

    def __init__(self, max_line: int = MAX_EVENT) -> None:
        self._max = max_line
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        *lines, rest = data.split(b"\n")
        if not lines:
            self._buffer += rest
            if len(self._buffer) > self._max:
                raise ProtocolError(f"the upstream sent a line of more than {self._max} bytes")
            return []
        lines[0] = bytes(self._buffer) + lines[0]
        self._buffer[:] = rest
        return [line for line in (raw.strip() for raw in lines) if line]

    def finish(self) -> list[bytes]:
        """The last line, if it came without its newline."""
        rest = bytes(self._buffer).strip()
        self._buffer.clear()
        return [rest] if rest else []


def _has_data(block: bytes) -> bool:
    return block.startswith(b"data:") or b"\ndata:" in block


def _parse(block: bytes) -> ServerEvent:
    name = ""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return ServerEvent(name, b"\n".join(data))
