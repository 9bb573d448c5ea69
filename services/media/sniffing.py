"""Tells the type of data by the data; what their source declares only names a kind of text."""

from __future__ import annotations

import codecs

import filetype

from services.media.mimes import (
    DOCX,
    EXTENSIONS,
    INLINE_IMAGES,
    PLAIN_TEXT,
    PPTX,
    UNKNOWN,
    XLSX,
    is_text,
    usual_name,
)
from services.media.structure import Data, image_size

_PIECE = 65_536
_CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\f\r\x1b")) + b"\x7f"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_TYPES = frozenset(
    {"application/msword", "application/vnd.ms-excel", "application/vnd.ms-powerpoint"}
)
_OFFICE_PARTS = ((b"word/document", DOCX), (b"ppt/presentation", PPTX), (b"xl/workbook", XLSX))
_HEAD = 8_192
# of a longer text only the beginning is read: nobody else can run meanwhile
_LOOKED_AT = 4_000_000
_LARGEST_END = 65_557
_LARGEST_DIRECTORY = 1_000_000


def sniff(data: Data, declared: str | None = None) -> str:
    """The type of `data`. The bytes win over `declared`, which only names the kind of text.

    Text of a type that nobody listed is `text/plain`, SVG too; other data that nobody knows are
    `application/octet-stream`.
    """
    declared = usual_name(declared or "")
    image = image_size(data)
    if image is not None:
        return image[0]
    head = data[:_HEAD]
    if head.startswith(b"PK\x03\x04"):
        return _zip_type(data)
    if head.startswith(_OLE) and declared in _OLE_TYPES:
        return declared
    if head.startswith(b"%PDF-"):
        return "application/pdf"
    if head.startswith(b"{\\rtf"):
        return "application/rtf"
    if _reads_as_text(
        data[:_LOOKED_AT], says_text=is_text(declared) or declared.startswith("text/")
    ):
        return declared if is_text(declared) else PLAIN_TEXT
    mime = usual_name(filetype.guess_mime(head) or "")
    # a picture whose header image_size could not read is none
    return mime if mime in EXTENSIONS and mime not in INLINE_IMAGES else UNKNOWN


def _zip_type(data: Data) -> str:
    """Office files by the names in the archive's directory: a nested archive cannot pose as it."""
    end = data.rfind(b"PK\x05\x06", max(len(data) - _LARGEST_END, 0))
    size = int.from_bytes(data[end + 12 : end + 16], "little") if end > 0 else 0
    directory = data[max(end - size, 0) : end] if 0 < size <= _LARGEST_DIRECTORY else b""
    if b"[Content_Types].xml" in directory:
        for part, mime in _OFFICE_PARTS:
            if part in directory:
                return mime
    return (
        "application/epub+zip"
        if data[30:58] == b"mimetypeapplication/epub+zip"
        else "application/zip"
    )


def _reads_as_text(data: bytes, *, says_text: bool) -> bool:
    """True for UTF-8, GB18030 and marked UTF-16; for any encoding when `says_text`."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return len(data) > 2 and _decodes(data, "utf-16")
    if any(
        len(piece) != len(piece.translate(None, _CONTROLS))
        for piece in (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
    ):
        return False
    return says_text or _decodes(data, "utf-8") or _decodes(data, "gb18030")


def _decodes(data: bytes, encoding: str) -> bool:
    """Decode piece by piece: a whole string may take four times the memory of its bytes."""
    decoder = codecs.getincrementaldecoder(encoding)()
    view = memoryview(data)
    try:
        for at in range(0, len(view), _PIECE):
            decoder.decode(view[at : at + _PIECE])
        decoder.decode(b"", final=len(data) < _LOOKED_AT)
    except UnicodeDecodeError:
        return False
    return True
