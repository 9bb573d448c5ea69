"""Bytes for the files the `backend-api` emulator hands out: real PNG pictures, CSV, HTML."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

CSV = "name,amount\r\notter,3\r\n水獭,4\r\n".encode()
HTML = b"<!doctype html><title>chart</title><p>3 otters</p>\n"


@lru_cache(maxsize=32)
def png(width: int, height: int, shade: int = 0) -> bytes:
    """A valid 8-bit RGB PNG of the asked size; `shade` (0 to 255) tells pictures apart."""
    rows = b"".join(
        b"\0" + bytes((shade, y * 255 // max(1, height - 1), 160)) * width for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows, 1))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
