"""Decodes `data:` URLs to the letter: what two decoders could read differently is refused."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from services.core.errors import InvalidRequest
from services.fetch.fetched import Fetched
from services.fetch.names import base_name
from services.media import is_text, sniff

_MAX_HEAD = 512
_HEAD = re.compile(
    r"data:(?P<mime>[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+)?"
    r"(?P<params>(?:;[a-z0-9!#$&^_.+-]+=[^;,\s\"\\]*)*)(?P<base64>;base64)?",
    re.IGNORECASE | re.ASCII,
)
_NAME = re.compile(r";(?:file)?name=([^;]*)", re.IGNORECASE)
_ESCAPED = re.compile(r"(?:[!-$&-~]|%[0-9a-fA-F]{2})*")


def decode_data_url(text: str, limit: int, *, param: str | None = None) -> Fetched:
    """The file inside `data:<mime>[;charset=…][;name=…];base64,<data>`, of at most `limit` bytes.

    Without `;base64` the data are percent-encoded text. Raise InvalidRequest, with `param` as the
    field at fault, for anything else: other alphabets, white space, missing padding. The size is
    checked before decoding.
    """
    comma = text.find(",", 0, _MAX_HEAD)
    head = _HEAD.fullmatch(text, 0, comma) if comma >= 0 else None
    if head is None:
        raise _refused("it must look like data:<type>;base64,<data>", param)
    payload = text[comma + 1 :]
    declared = head["mime"].lower() if head["mime"] else None
    data = (_base64 if head["base64"] else _percent)(payload, limit, param)
    mime = sniff(data, declared)
    if not head["base64"] and not is_text(mime):
        raise _refused("only text may come without ;base64", param)
    name = _NAME.search(head["params"])
    return Fetched(
        data=data,
        mime=mime,
        declared_type=declared,
        name=base_name(unquote(name[1])) if name else "",
    )


def _base64(payload: str, limit: int, param: str | None) -> bytes:
    if len(payload) % 4:
        raise _refused("its base64 data is cut short or lacks padding", param)
    _check_size(len(payload) // 4 * 3 - payload[-2:].count("="), limit, param)
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as exc:  # binascii.Error, or a character beyond ASCII
        raise _refused("its base64 data is malformed", param) from exc


def _percent(payload: str, limit: int, param: str | None) -> bytes:
    _check_size(len(payload) - 2 * payload.count("%"), limit, param)
    if not _ESCAPED.fullmatch(payload):
        raise _refused("its text is not percent-encoded", param)
    return unquote_to_bytes(payload)


def _check_size(size: int, limit: int, param: str | None) -> None:
    if size > limit:
        raise _refused(f"it holds more than {limit} bytes", param)


def _refused(reason: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(
        f"this data url cannot be read: {reason}", param=param, code="invalid_url"
    )
