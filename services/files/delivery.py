"""How a found file goes out over HTTP: status, headers, and which of its bytes (RFC 9110)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import quote

import msgspec
from werkzeug.http import parse_date, parse_etags, parse_if_range_header

from services.files.kinds import Kind, is_name, kind_of, mime_of
from services.files.storage import Entry, Found
from services.media import INLINE_IMAGES

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.ASCII | re.IGNORECASE)
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Accept-Ranges": "bytes",
}
_FOR_EVER = "max-age=31536000, immutable"
_CACHING = {
    Kind.IMAGE: f"public, {_FOR_EVER}",
    Kind.FILE: f"private, {_FOR_EVER}",
    Kind.PASSED_ON: "no-store",
    Kind.USER: "no-store",
}


class Delivery(msgspec.Struct, frozen=True):
    """An answer: the body is `length` bytes of the file from `start`, none where `length` is 0."""

    status: int
    headers: dict[str, str]
    start: int = 0
    length: int = 0


def deliver(found: Found, method: str, headers: Mapping[str, str]) -> Delivery:
    """The answer to a GET or HEAD with these request headers."""
    entry = found.entry
    etag = _etag(entry)
    common = {
        **_SAFE,
        "ETag": f'"{etag}"',
        "Last-Modified": formatdate(entry.modified, usegmt=True),
        "Cache-Control": _CACHING[kind_of(entry.name)],
    }
    if _is_known(etag, entry.modified, headers):
        return Delivery(304, common)
    mime = mime_of(entry.name)
    common["Content-Type"] = mime
    if disposition := content_disposition(found.label, inline=_is_shown(mime)):
        common["Content-Disposition"] = disposition
    span = _wanted(etag, entry.modified, headers) if method == "GET" else None
    if span is None:
        whole = {**common, "Content-Length": str(entry.size)}
        return Delivery(200, whole, 0, entry.size if method == "GET" else 0)
    start, end = _within(span, entry.size)
    if start >= end:
        return Delivery(416, {**_SAFE, "Content-Range": f"bytes */{entry.size}"})
    common["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    common["Content-Length"] = str(end - start)
    return Delivery(206, common, start, end - start)


def _etag(entry: Entry) -> str:
    """A name of ours never gets other bytes; an old one says nothing, and may be no ASCII."""
    if is_name(entry.name):
        return entry.name.partition(".")[0]
    version = f"{entry.name}\n{entry.size}\n{entry.modified}"
    return hashlib.sha256(version.encode("utf-8", "replace")).hexdigest()[:32]


def content_disposition(label: str, *, inline: bool) -> str:
    """The header for a file called `label` (RFC 6266, 5987); "" where it would say nothing."""
    how = "inline" if inline else "attachment"
    if not label:
        return "" if inline else how
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    plain = re.sub(r'["\\%]', "_", plain).strip(" .") or "file"
    if plain == label:
        return f'{how}; filename="{plain}"'
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(label, safe='')}"


def _is_shown(mime: str) -> bool:
    """Whether a browser may show it in place; anything else could be a page of somebody's."""
    return mime in INLINE_IMAGES or mime.startswith(("audio/", "video/"))


def _is_known(etag: str, modified: float, headers: Mapping[str, str]) -> bool:
    if (tags := headers.get("If-None-Match")) is not None:
        known = parse_etags(tags)
        return known.star_tag or known.contains_weak(etag)
    since = parse_date(headers.get("If-Modified-Since"))
    return since is not None and int(modified) <= since.timestamp()


def _wanted(etag: str, modified: float, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """First and last byte of a single range, as digits; None where the whole file is wanted.

    Several ranges, other units and nonsense count as not asked for.
    """
    parts = _RANGE.fullmatch(headers.get("Range", ""))
    if parts is None or not (parts[1] or parts[2]):
        return None
    if parts[1] and parts[2] and int(parts[1]) > int(parts[2]):
        return None
    if (condition := headers.get("If-Range")) is not None:
        only_if = parse_if_range_header(condition)
        same_date = only_if.date is not None and only_if.date.timestamp() == int(modified)
        if condition.startswith("W/") or not (only_if.etag == etag or same_date):
            return None
    return parts[1], parts[2]


def _within(span: tuple[str, str], size: int) -> tuple[int, int]:
    """(start, end) within a file of `size` bytes, end exclusive; empty if it lies outside."""
    first, last = span
    if not first:  # the last so many bytes
        return max(size - int(last), 0), size if int(last) else 0
    return int(first), min(int(last) + 1, size) if last else size
