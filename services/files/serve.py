"""How a found file goes out over HTTP: status, headers, and which of its bytes (RFC 9110).

Werkzeug's `make_conditional` reads the same headers otherwise than the RFC: it refuses several
ranges and one longer than the file, takes a weak If-Range, and prefers Range to If-None-Match. So
only its parsers are used.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import quote

import msgspec
from werkzeug.http import parse_date, parse_etags, parse_if_range_header

from services.files.sniff import INLINE_IMAGES, UNKNOWN
from services.files.storage import Entry, Found, Kind, is_name, kind_of, mime_by_suffix

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
    mime = mime_by_suffix(entry.name) or UNKNOWN
    # a browser may show these in place; anything else could be a page of somebody's
    inline = mime in INLINE_IMAGES or mime.startswith(("audio/", "video/"))
    common["Content-Type"] = mime
    if disposition := content_disposition(found.label, inline=inline):
        common["Content-Disposition"] = disposition
    span = _span(etag, entry, headers) if method == "GET" else None
    if span is None:
        common["Content-Length"] = str(entry.size)
        return Delivery(200, common, 0, entry.size if method == "GET" else 0)
    start, end = span
    if start >= end:
        return Delivery(416, {**_SAFE, "Content-Range": f"bytes */{entry.size}"})
    common["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    common["Content-Length"] = str(end - start)
    return Delivery(206, common, start, end - start)


def content_disposition(label: str, *, inline: bool) -> str:
    """The header for a file called `label` (RFC 6266, 5987); "" where it would say nothing."""
    how = "inline" if inline else "attachment"
    if not label:
        return "" if inline else how
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    plain = re.sub(r'["\\%]', "_", plain).strip(" .") or "file"
    encoded = "" if plain == label else f"; filename*=UTF-8''{quote(label, safe='')}"
    return f'{how}; filename="{plain}"{encoded}'


def _etag(entry: Entry) -> str:
    """A name of ours never gets other bytes; an old one says nothing, and may be no ASCII."""
    if is_name(entry.name):
        return entry.name.partition(".")[0]
    version = f"{entry.name}\n{entry.size}\n{entry.modified}"
    return hashlib.sha256(version.encode("utf-8", "replace")).hexdigest()[:32]


def _is_known(etag: str, modified: float, headers: Mapping[str, str]) -> bool:
    if (tags := headers.get("If-None-Match")) is not None:
        known = parse_etags(tags)
        return known.star_tag or known.contains_weak(etag)
    since = parse_date(headers.get("If-Modified-Since"))
    return since is not None and int(modified) <= since.timestamp()


def _span(etag: str, entry: Entry, headers: Mapping[str, str]) -> tuple[int, int] | None:
    """(start, end) of a single range, end exclusive, empty if it lies outside the file; None where
    the whole file is wanted: several ranges, other units and nonsense count as not asked for.
    """
    parts = _RANGE.fullmatch(headers.get("Range", ""))
    if parts is None or not (parts[1] or parts[2]):
        return None
    if (condition := headers.get("If-Range")) is not None:
        only_if = parse_if_range_header(condition)
        same_date = only_if.date is not None and only_if.date.timestamp() == int(entry.modified)
        if condition.startswith("W/") or not (only_if.etag == etag or same_date):
            return None
    if not parts[1]:  # the last so many bytes
        return max(entry.size - int(parts[2]), 0), entry.size if int(parts[2]) else 0
    first, last = int(parts[1]), int(parts[2] or entry.size)
    return None if parts[2] and first > last else (first, min(last + 1, entry.size))
