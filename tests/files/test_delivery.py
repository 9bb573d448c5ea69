"""Status, headers and bytes for every kind of request for a file."""

from __future__ import annotations

import pytest

from services.files.serve import content_disposition, deliver
from services.files.storage import Entry, Found

NAME = f"i{'A' * 32}.png"
ETAG = f'"i{"A" * 32}"'
MODIFIED = 1_700_000_000.75
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"


def found(name: str = NAME, size: int = 100, label: str = "") -> Found:
    def unopened(start: int, length: int) -> None:
        raise AssertionError("deciding needs no bytes")

    return Found(Entry("images", name, size, MODIFIED), label, unopened)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "start", "length"),
    [
        ("bytes=0-9", 206, "bytes 0-9/100", 0, 10),
        ("bytes=90-", 206, "bytes 90-99/100", 90, 10),
        ("bytes=-10", 206, "bytes 90-99/100", 90, 10),
        ("bytes=-1000", 206, "bytes 0-99/100", 0, 100),
        ("bytes=95-5000", 206, "bytes 95-99/100", 95, 5),
        ("BYTES=0-0", 206, "bytes 0-0/100", 0, 1),
        ("bytes=99-99", 206, "bytes 99-99/100", 99, 1),
        ("bytes=100-", 416, "bytes */100", 0, 0),
        ("bytes=-0", 416, "bytes */100", 0, 0),
        ("bytes=100-200", 416, "bytes */100", 0, 0),
        ("bytes=5-2", 200, None, 0, 100),
        ("bytes=-", 200, None, 0, 100),
        ("bytes=0-9,20-29", 200, None, 0, 100),
        ("bytes=a-b", 200, None, 0, 100),
        ("bytes=٠-٩", 200, None, 0, 100),
        ("pages=1-2", 200, None, 0, 100),
        (f"bytes=0-{'9' * 5000}", 200, None, 0, 100),
        ("bytes", 200, None, 0, 100),
    ],
)
def test_ranges(
    asked: str, status: int, content_range: str | None, start: int, length: int
) -> None:
    delivery = deliver(found(), "GET", {"Range": asked})
    assert delivery.status == status
    assert delivery.headers.get("Content-Range") == content_range
    assert (delivery.start, delivery.length) == (start, length)
    if status != 416:
        assert delivery.headers["Content-Length"] == str(length)


@pytest.mark.parametrize("size", [0, 1])
def test_empty_and_tiny_files(size: int) -> None:
    whole = deliver(found(size=size), "GET", {})
    assert (whole.status, whole.length, whole.headers["Content-Length"]) == (200, size, str(size))
    assert deliver(found(size=size), "GET", {"Range": "bytes=0-"}).status == (206 if size else 416)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": ETAG}, 304),
        ({"If-None-Match": f"W/{ETAG}"}, 304),
        ({"If-None-Match": f'"x", {ETAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": DATE}, 200),
        ({"If-Modified-Since": DATE}, 304),
        ({"If-Modified-Since": EARLIER}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-None-Match": ETAG, "Range": "bytes=0-1"}, 304),
        ({"Range": "bytes=0-1", "If-Range": ETAG}, 206),
        ({"Range": "bytes=0-1", "If-Range": DATE}, 206),
        ({"Range": "bytes=0-1", "If-Range": EARLIER}, 200),
        ({"Range": "bytes=0-1", "If-Range": '"x"'}, 200),
        ({"Range": "bytes=0-1", "If-Range": f"W/{ETAG}"}, 200),
    ],
)
def test_conditions(headers: dict[str, str], status: int) -> None:
    delivery = deliver(found(), "GET", headers)
    assert delivery.status == status
    assert (delivery.length == 0) == (status == 304)
    assert delivery.headers["ETag"] == ETAG
    assert delivery.headers["Last-Modified"] == DATE


def test_head_tells_the_length_and_sends_nothing() -> None:
    delivery = deliver(found(), "HEAD", {"Range": "bytes=0-9"})
    assert (delivery.status, delivery.length) == (200, 0)
    assert delivery.headers["Content-Length"] == "100"


@pytest.mark.parametrize(
    ("name", "mime", "disposition", "caching"),
    [
        (f"i{'a' * 32}.png", "image/png", None, "public, max-age=31536000, immutable"),
        (f"i{'a' * 32}.jpg", "image/jpeg", None, "public, max-age=31536000, immutable"),
        (f"f{'a' * 32}.webp", "image/webp", None, "private, max-age=31536000, immutable"),
        (f"f{'a' * 32}.mp3", "audio/mpeg", None, "private, max-age=31536000, immutable"),
        (f"f{'a' * 32}.html", "text/html", "attachment", "private, max-age=31536000, immutable"),
        (f"f{'a' * 32}.pdf", "application/pdf", "attachment", None),
        (f"f{'a' * 32}.txt", "text/plain", "attachment", None),
        (f"f{'a' * 32}.svg", "application/octet-stream", "attachment", None),
        (f"p{'a' * 32}.png", "image/png", None, "no-store"),
        (f"p{'a' * 32}.bin", "application/octet-stream", "attachment", "no-store"),
        (f"u{'a' * 32}.csv", "text/csv", "attachment", "no-store"),
    ],
)
def test_headers_by_type(
    name: str, mime: str, disposition: str | None, caching: str | None
) -> None:
    headers = deliver(found(name), "GET", {}).headers
    assert headers["Content-Type"] == mime
    assert headers.get("Content-Disposition") == disposition
    assert caching in (None, headers["Cache-Control"])
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("", "attachment"),
        ("a b.csv", 'attachment; filename="a b.csv"'),
        ('a";b.csv', "attachment; filename=\"a_;b.csv\"; filename*=UTF-8''a%22%3Bb.csv"),
        ("über.csv", "attachment; filename=\"uber.csv\"; filename*=UTF-8''%C3%BCber.csv"),
        ("报告", "attachment; filename=\"file\"; filename*=UTF-8''%E6%8A%A5%E5%91%8A"),
        ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
    ],
)
def test_content_disposition(label: str, expected: str) -> None:
    assert content_disposition(label, inline=False) == expected
    assert content_disposition("", inline=True) == ""
