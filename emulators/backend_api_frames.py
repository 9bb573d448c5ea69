"""The server's half of RFC 6455: handshake and frames."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator

CONTINUATION, TEXT, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3


def accept_key(key: str) -> str:
    """`Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key`."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """One unmasked frame."""
    head = bytes([opcode | (0x80 if final else 0)])
    size = len(payload)
    if size < 126:
        return head + bytes([size]) + payload
    if size < 65536:
        return head + b"\x7e" + struct.pack(">H", size) + payload
    return head + b"\x7f" + struct.pack(">Q", size) + payload


def text(message: str, pieces: int = 1) -> bytes:
    """A text message, fragmented into at most `pieces` frames."""
    data = message.encode()
    step = max(1, -(-len(data) // pieces))
    parts = [data[i : i + step] for i in range(0, len(data), step)] or [b""]
    last = len(parts) - 1
    return b"".join(
        frame(CONTINUATION if index else TEXT, part, index == last)
        for index, part in enumerate(parts)
    )


def close(code: int = 1000, reason: str = "") -> bytes:
    return frame(CLOSE, struct.pack(">H", code) + reason.encode())


class FrameReader:
    """Cuts a client's bytes into frames, unmasked. `unmasked_seen` is a breach of section 5.1."""

    def __init__(self) -> None:
        self._buffer = b""
        self.unmasked_seen = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(opcode, payload) of every frame now complete."""
        self._buffer += data
        while (parsed := self._next()) is not None:
            yield parsed

    def _next(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        masked, size, at = buffer[1] & 0x80, buffer[1] & 0x7F, 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(buffer[2 : 2 + width]), 2 + width
        mask = buffer[at : at + 4] if masked else b""
        start = at + len(mask)
        if len(buffer) < start + size or (masked and len(mask) < 4):
            return None
        self._buffer = buffer[start + size :]
        payload = buffer[start : start + size]
        if not masked:
            self.unmasked_seen = True
            return buffer[0] & 0x0F, payload
        return buffer[0] & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
