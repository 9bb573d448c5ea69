"""What data really are, by their bytes: type, file extension, and a picture's width and height.

What their source declares only names a kind of text. Pictures are measured without decoding a
pixel, in a bounded number of steps, which Pillow's readers do not promise: some of them scan junk
byte by byte, and that of WebP reserves the whole canvas. So Pillow is asked last, to confirm.
"""

from __future__ import annotations

import codecs
import mmap
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from types import MappingProxyType

import filetype
import msgspec
from PIL import Image

from services.core.errors import InvalidRequest

Data = bytes | mmap.mmap
"""The bytes of a file, in memory or where a large one lies on disk."""

PLAIN_TEXT = "text/plain"
UNKNOWN = "application/octet-stream"

INLINE_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The only types that may be shown as pictures. SVG is a program and counts as text."""

MAX_PIXELS = 50_000_000

_OFFICE = "application/vnd.openxmlformats-officedocument."
DOCX = _OFFICE + "wordprocessingml.document"
PPTX = _OFFICE + "presentationml.presentation"
XLSX = _OFFICE + "spreadsheetml.sheet"

# ChatGPT's document types by their upload names, misspelt x-latext included; then csv, xml, yaml.
_TEXTS = {
    "application/json": ".json",
    "application/x-latext": ".latex",
    "text/html": ".html",
    "text/javascript": ".js",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/x-c": ".c",
    "text/x-c++": ".cpp",
    "text/x-csharp": ".cs",
    "text/x-java": ".java",
    "text/x-php": ".php",
    "text/x-ruby": ".rb",
    "text/x-script.python": ".py",
    "text/x-sh": ".sh",
    "text/x-tex": ".tex",
    "text/x-typescript": ".ts",
    "text/csv": ".csv",
    "application/xml": ".xml",
    "application/yaml": ".yaml",
}
_BINARIES = {
    "image/jpeg": ".jpg",
    **{f"image/{name}": f".{name}" for name in ("png", "gif", "webp", "avif", "bmp")},
    **{f"image/{name}": f".{name}" for name in ("heic", "tiff")},
    "application/pdf": ".pdf",
    "application/rtf": ".rtf",
    "application/msword": ".doc",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-powerpoint": ".ppt",
    DOCX: ".docx",
    PPTX: ".pptx",
    XLSX: ".xlsx",
    "application/epub+zip": ".epub",
    "application/gzip": ".gz",
    "application/x-7z-compressed": ".7z",
    "application/x-tar": ".tar",
    "application/zip": ".zip",
    **{f"audio/{name}": f".{name}" for name in ("aac", "amr", "flac", "ogg", "wav")},
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
}
EXTENSIONS = MappingProxyType({**_TEXTS, **_BINARIES})
"""The types that can be told apart."""

_OTHER_NAMES = {
    "application/javascript": "text/javascript",
    "application/x-javascript": "text/javascript",
    "application/x-latex": "application/x-latext",
    "application/x-php": "text/x-php",
    "application/x-sh": "text/x-sh",
    "application/x-yaml": "application/yaml",
    "text/xml": "application/xml",
    "text/x-markdown": "text/markdown",
    "text/x-python": "text/x-script.python",
    "text/yaml": "application/yaml",
    "image/jpg": "image/jpeg",
    "audio/mp3": "audio/mpeg",
    "audio/x-flac": "audio/flac",
    "audio/x-wav": "audio/wav",
}

_PIECE = 65_536
_CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\f\r\x1b")) + b"\x7f"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_TYPES = frozenset(
    {"application/msword", "application/vnd.ms-excel", "application/vnd.ms-powerpoint"}
)
_OFFICE_PARTS = ((b"word/document", DOCX), (b"ppt/presentation", PPTX), (b"xl/workbook", XLSX))
_HEAD = 8_192
_LOOKED_AT = 4_000_000  # of a longer text only the beginning: nobody else can run meanwhile
_LARGEST_END = 65_557
_LARGEST_DIRECTORY = 1_000_000


def sniff(data: Data, declared: str | None = None) -> str:
    """The type of `data`. The bytes win over `declared`, which only names the kind of text.

    Text of a type that nobody listed is `text/plain`, SVG too; other data that nobody knows are
    `application/octet-stream`.
    """
    declared = _usual_name(declared or "")
    if image := _image_size(data):
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
    says_text = declared in _TEXTS or declared.startswith("text/")
    if _reads_as_text(data[:_LOOKED_AT], says_text=says_text):
        return declared if declared in _TEXTS else PLAIN_TEXT
    mime = _usual_name(filetype.guess_mime(head) or "")
    # a picture whose header could not be read is none
    return mime if mime in EXTENSIONS and mime not in INLINE_IMAGES else UNKNOWN


def is_text(mime: str) -> bool:
    return _usual_name(mime) in _TEXTS


def extension(mime: str) -> str:
    """The file extension for a type, with its dot: `.txt` for unlisted text types, else `.bin`."""
    name = _usual_name(mime)
    return EXTENSIONS.get(name, ".txt" if name.startswith("text/") else ".bin")


def _usual_name(mime: str) -> str:
    """`mime` in lower case, without parameters, by the name that the tables use."""
    bare = mime.partition(";")[0].strip().lower()
    return _OTHER_NAMES.get(bare, bare)


def _zip_type(data: Data) -> str:
    """Office files by the names in the archive's directory: a nested archive cannot pose as it."""
    end = data.rfind(b"PK\x05\x06", max(len(data) - _LARGEST_END, 0))
    size = int.from_bytes(data[end + 12 : end + 16], "little") if end > 0 else 0
    directory = data[max(end - size, 0) : end] if 0 < size <= _LARGEST_DIRECTORY else b""
    if b"[Content_Types].xml" in directory:
        for part, mime in _OFFICE_PARTS:
            if part in directory:
                return mime
    is_book = data[30:58] == b"mimetypeapplication/epub+zip"
    return "application/epub+zip" if is_book else "application/zip"


def _reads_as_text(data: bytes, *, says_text: bool) -> bool:
    """True for UTF-8, GB18030 and marked UTF-16; for any encoding when `says_text`."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return len(data) > 2 and _decodes(data, "utf-16")
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        if len(piece) != len(piece.translate(None, _CONTROLS)):
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


class ImageInfo(msgspec.Struct, frozen=True):
    """Type by content, width and height in pixels as stored (EXIF rotation not applied)."""

    mime: str
    width: int
    height: int


# What Pillow's readers raise on broken data; they promise nothing narrower.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
    Warning,
)


def measure_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, param: str | None = None
) -> ImageInfo:
    """Measure a PNG, JPEG, GIF or WebP picture from its headers; no pixel is decoded.

    Raise InvalidRequest, with `param` as the field at fault, for other types, for pictures that
    are cut short or broken, and for more than `max_pixels`.
    """
    found = _image_size(data)
    if found is None:
        reason = "it is not a png, jpeg, gif or webp picture" if data else "it is empty"
    elif found[1] * found[2] > max_pixels:  # before Pillow opens it
        reason = f"{found[1]}×{found[2]} pixels are more than the {max_pixels} that are taken"
    elif not _is_complete(data, found[0]):
        reason = "it is cut short"
    elif not _pillow_agrees(data, *found):
        reason = "it is broken"
    else:
        return ImageInfo(*found)
    raise InvalidRequest(f"this image cannot be used: {reason}", param=param, code="invalid_image")


def _pillow_agrees(data: bytes, mime: str, width: int, height: int) -> bool:
    """A second reader sees the same picture. `verify` checks the sums of all PNG chunks."""
    try:
        with Image.open(BytesIO(data), formats=(mime.removeprefix("image/"),)) as image:
            agrees = image.size == (width, height)
            image.verify()
    except _BROKEN:
        return False
    return agrees


def _image_size(data: Data) -> tuple[str, int, int] | None:
    """Type by the whole header, width and height in pixels; None for other data."""
    for mime, read in _SIZES.items():
        try:
            size = read(data)
        except (struct.error, IndexError):
            continue
        if size and min(size) > 0:
            return mime, *size
    return None


def _is_complete(data: Data, mime: str) -> bool:
    """Whether the end of a picture of one of the four types is there."""
    try:
        match mime:
            case "image/png":
                return data.find(b"IEND\xaeB`\x82") > 0
            case "image/jpeg":  # an end mark behind the first scan: coded pixels never hold it
                return any(
                    marker == _JPEG_SCAN and data.find(b"\xff\xd9", end) >= 0
                    for marker, _, end in _jpeg_segments(data)
                )
            case "image/gif":
                return _gif_ends(data)
            case _:
                return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    except (struct.error, IndexError):
        return False


_MAX_SEGMENTS = 10_000
_MAX_BLOCKS = 400_000
_JPEG_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def _png_size(data: Data) -> tuple[int, int] | None:
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


def _jpeg_size(data: Data) -> tuple[int, int] | None:
    for marker, start, _ in _jpeg_segments(data):
        if marker in _JPEG_SIZE:
            height, width = struct.unpack_from(">HH", data, start + 1)
            return width, height
    return None


def _gif_table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_size(data: Data) -> tuple[int, int] | None:
    if data[:6] not in (b"GIF87a", b"GIF89a") or data[13 + _gif_table(data[10])] not in b"!,":
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _gif_ends(data: Data) -> bool:
    """Whether a trailer follows the blocks, which begin behind header and colour table."""
    at, images, in_sub_blocks = 13 + _gif_table(data[10]), 0, False
    for _ in range(_MAX_BLOCKS):
        mark = data[at]
        if in_sub_blocks:
            at += 1 + mark
            in_sub_blocks = mark != 0
        elif mark == 0x21:  # extension: its label, then sub-blocks
            at += 2
            in_sub_blocks = True
        elif mark == 0x2C:  # image: descriptor, colour table, code size, then sub-blocks
            at += 11 + _gif_table(data[at + 9])
            images += 1
            in_sub_blocks = True
        else:
            return mark == 0x3B and images > 0  # the trailer
    return False


def _webp_size(data: Data) -> tuple[int, int] | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8X":
            sizes = struct.unpack_from("<HBHB", data, 24)
            return (sizes[0] | sizes[1] << 16) + 1, (sizes[2] | sizes[3] << 16) + 1
        case b"VP8L" if data[20] == 0x2F:
            bits = struct.unpack_from("<I", data, 21)[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


_SIZES = {
    "image/png": _png_size,
    "image/jpeg": _jpeg_size,
    "image/gif": _gif_size,
    "image/webp": _webp_size,
}
