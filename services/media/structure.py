"""Walks the outer structure of PNG, JPEG, GIF and WebP without decoding a pixel.

Each walk takes a bounded number of steps, whatever the data say.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

Data = bytes | mmap.mmap
"""The bytes of a file, in memory or where a large one lies on disk."""

_MAX_SEGMENTS = 10_000
_MAX_BLOCKS = 400_000
_JPEG_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})

Size = tuple[int, int]


def image_size(data: Data) -> tuple[str, Size] | None:
    """The type by its whole header, and (width, height) in pixels; None for other data."""
    for mime, read in (
        ("image/png", _png_size),
        ("image/jpeg", _jpeg_size),
        ("image/gif", _gif_size),
        ("image/webp", _webp_size),
    ):
        try:
            size = read(data)
        except (struct.error, IndexError):
            size = None
        if size and min(size) > 0:
            return mime, size
    return None


def is_complete(data: Data, mime: str) -> bool:
    """True when the end of an image of one of the four types is there."""
    try:
        match mime:
            case "image/png":
                return data.find(b"IEND\xaeB`\x82") > 0
            case "image/jpeg":
                return _jpeg_ends(data)
            case "image/gif":
                return _gif_ends(data)
            case _:
                return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    except (struct.error, IndexError):
        return False


def _png_size(data: Data) -> Size | None:
    if data[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _jpeg_segments(data: Data) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of every segment up to and including the first scan header."""
    if data[:3] != b"\xff\xd8\xff":
        return
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF or marker in _JPEG_BARE:  # filling, or a marker without a segment
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at + 4, end
        if marker == _JPEG_SCAN:
            return
        at = end


def _jpeg_size(data: Data) -> Size | None:
    for marker, start, _ in _jpeg_segments(data):
        if marker in _JPEG_SIZE:
            height, width = struct.unpack_from(">HH", data, start + 1)
            return width, height
    return None


def _jpeg_ends(data: Data) -> bool:
    """An end mark behind the first scan: coded pixels never hold FF D9."""
    return any(
        marker == _JPEG_SCAN and data.find(b"\xff\xd9", end) >= 0
        for marker, _, end in _jpeg_segments(data)
    )


def _gif_blocks(data: Data) -> int:
    """Where the first block starts: behind the header and the global colour table."""
    return 13 + _table_size(data[10])


def _table_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_size(data: Data) -> Size | None:
    if data[:6] not in (b"GIF87a", b"GIF89a") or data[_gif_blocks(data)] not in b"!,":
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _gif_ends(data: Data) -> bool:
    at, images, in_sub_blocks = _gif_blocks(data), 0, False
    for _ in range(_MAX_BLOCKS):
        mark = data[at]
        if in_sub_blocks:
            at += 1 + mark
            in_sub_blocks = mark != 0
        elif mark == 0x21:  # extension: its label, then sub-blocks
            at += 2
            in_sub_blocks = True
        elif mark == 0x2C:  # image: descriptor, colour table, code size, then sub-blocks
            at += 11 + _table_size(data[at + 9])
            images += 1
            in_sub_blocks = True
        else:
            return mark == 0x3B and images > 0  # the trailer
    return False


def _webp_size(data: Data) -> Size | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8X":
            return _uint24(data, 24) + 1, _uint24(data, 27) + 1
        case b"VP8L" if data[20] == 0x2F:
            bits = struct.unpack_from("<I", data, 21)[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _uint24(data: Data, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)
