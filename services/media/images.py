"""Measures pictures without decoding them, and refuses what is cut, broken or too big to decode."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import msgspec
from PIL import Image

from services.core.errors import InvalidRequest
from services.media.structure import Size, image_size, is_complete

MAX_PIXELS = 50_000_000

_PILLOW_FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
}
# What Pillow's readers raise on broken data; they promise nothing narrower.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


class ImageInfo(msgspec.Struct, frozen=True):
    """Type by content, width and height in pixels as stored (EXIF rotation not applied)."""

    mime: str
    width: int
    height: int


def measure_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, param: str | None = None
) -> ImageInfo:
    """Measure a PNG, JPEG, GIF or WebP picture from its headers; no pixel is decoded.

    Raise InvalidRequest, with `param` as the field at fault, for other types, for pictures that
    are cut short or broken, and for more than `max_pixels`.
    """
    if not data:
        raise _refused("it is empty", param)
    found = image_size(data)
    if found is None:
        raise _refused("it is not a png, jpeg, gif or webp picture", param)
    mime, size = found
    width, height = size
    # before anything else: opening a WebP reserves its canvas
    if width * height > max_pixels:
        raise _refused(
            f"{width}×{height} pixels are more than the {max_pixels} that are taken", param
        )
    if not is_complete(data, mime):
        raise _refused("it is cut short", param)
    if not _pillow_agrees(data, mime, size):
        raise _refused("it is broken", param)
    return ImageInfo(mime=mime, width=width, height=height)


def _pillow_agrees(data: bytes, mime: str, size: Size) -> bool:
    """A second reader sees the same picture. `verify` checks the sums of all PNG chunks."""
    try:
        with Image.open(BytesIO(data), formats=(_PILLOW_FORMATS[mime],)) as image:
            agrees = image.size == size
            image.verify()
    except _BROKEN:
        return False
    return agrees


def _refused(reason: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(f"this image cannot be used: {reason}", param=param, code="invalid_image")
