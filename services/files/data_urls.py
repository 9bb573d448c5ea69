"""`data:` URLs, and what any file from outside is: bytes, a type and a name."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

import msgspec

from services.core.errors import InvalidRequest
from services.files.sniff import Data, is_text, sniff

_MAX_HEAD = 512
_HEAD = re.compile(
    r"data:(?P<mime>[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+)?"
    r"(?P<params>(?:;[a-z0-9!#$&^_.+-]+=[^;,\s\"\\]*)*)(?P<base64>;base64)?",
    re.IGNORECASE | re.ASCII,
)
_NAME = re.compile(r";(?:file)?name=([^;]*)", re.IGNORECASE)
_ESCAPED = re.compile(r"(?:[!-$&-~]|%[0-9a-fA-F]{2})*")


class Fetched(msgspec.Struct, frozen=True):
    """A file from outside.

    `mime` is sniffed from the bytes; `declared_type` is what its source claimed. `name` is a bare
    file name without folders or control characters, "" when there is none.
    """

    data: Data
    mime: str
    declared_type: str | None = None
    name: str = ""

    def __repr__(self) -> str:
        return f"Fetched({len(self.data)} bytes, mime={self.mime!r})"


def base_name(path: str) -> str:
    """The last part of a path of any system, at most 120 printable characters; may be empty."""
    name = re.split(r"[/\\]", path)[-1]
    return "".join(char for char in name if char.isprintable()).strip(" .")[-120:]


def decode_data_url(text: str, limit: int, *, param: str | None = None) -> Fetched:
    """The file inside `data:<mime>[;charset=…][;name=…];base64,<data>`, of at most `limit` bytes.

    Without `;base64` the data are percent-encoded text. Raise InvalidRequest, with `param` as the
    field at fault, for anything else: what two decoders could read differently, such as other
    alphabets, white space or missing padding. The size is checked before decoding.
    """
    try:
        return _decoded(text, limit)
    except InvalidRequest as problem:
        problem.param = param
        raise


def _decoded(text: str, limit: int) -> Fetched:
    comma = text.find(",", 0, _MAX_HEAD)
    head = _HEAD.fullmatch(text, 0, comma) if comma >= 0 else None
    if head is None:
        raise _unreadable("it must look like data:<type>;base64,<data>")
    payload = text[comma + 1 :]
    declared = head["mime"].lower() if head["mime"] else None
    data = (_base64 if head["base64"] else _percent)(payload, limit)
    mime = sniff(data, declared)
    if not head["base64"] and not is_text(mime):
        raise _unreadable("only text may come without ;base64")
    name = _NAME.search(head["params"])
    return Fetched(data, mime, declared, base_name(unquote(name[1])) if name else "")


def _base64(payload: str, limit: int) -> bytes:
    if len(payload) % 4:
        raise _unreadable("its base64 data is cut short or lacks padding")
    _check_size(len(payload) // 4 * 3 - payload[-2:].count("="), limit)
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as exc:  # binascii.Error, or a character beyond ASCII
        raise _unreadable("its base64 data is malformed") from exc


def _percent(payload: str, limit: int) -> bytes:
    _check_size(len(payload) - 2 * payload.count("%"), limit)
    if not _ESCAPED.fullmatch(payload):
        raise _unreadable("its text is not percent-encoded")
    return unquote_to_bytes(payload)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise _unreadable(f"it holds more than {limit} bytes")


def _unreadable(reason: str) -> InvalidRequest:
    return InvalidRequest(f"this data url cannot be read: {reason}", code="invalid_url")
