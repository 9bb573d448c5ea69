"""`data:` URLs: exact decoding, and refusal of everything that could be read in two ways."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import InvalidRequest
from services.files.data_urls import decode_data_url
from services.files.download import Limits
from services.files.fetch import Fetcher

LIMIT = 1_000


@given(st.binary(max_size=LIMIT))
def test_base64_data_come_back_byte_for_byte(data: bytes) -> None:
    url = "data:application/x-anything;base64," + base64.b64encode(data).decode()
    fetched = decode_data_url(url, LIMIT)
    assert fetched.data == data
    assert fetched.declared_type == "application/x-anything"


@pytest.mark.parametrize(
    ("url", "data", "declared", "mime", "name"),
    [
        ("data:text/plain;base64,aGk=", b"hi", "text/plain", "text/plain", ""),
        ("DATA:Text/X-C++;BASE64,aGk=", b"hi", "text/x-c++", "text/x-c++", ""),
        (
            "data:text/markdown;charset=utf-8;base64,aGk=",
            b"hi",
            "text/markdown",
            "text/markdown",
            "",
        ),
        ("data:image/png;base64,aGk=", b"hi", "image/png", "text/plain", ""),
        ("data:text/csv;name=a%2Fb%20c.csv;base64,aGk=", b"hi", "text/csv", "text/csv", "b c.csv"),
        ("data:;base64,", b"", None, "text/plain", ""),
        ("data:,hello%20there", b"hello there", None, "text/plain", ""),
        ("data:text/html,%3Cb%3E%E5%9B%BE", "<b>图".encode(), "text/html", "text/html", ""),
        ("data:image/svg+xml,%3Csvg/%3E", b"<svg/>", "image/svg+xml", "text/plain", ""),
    ],
)
def test_forms_that_are_read(
    url: str, data: bytes, declared: str | None, mime: str, name: str
) -> None:
    fetched = decode_data_url(url, LIMIT)
    assert (fetched.data, fetched.declared_type, fetched.mime) == (data, declared, mime)
    assert fetched.name == name


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:text/plain",
        "data:text/plain;base64",
        "data:text;base64,aGk=",
        "data:text/plain;base64;charset=utf-8,aGk=",
        "data: text/plain;base64,aGk=",
        "data:text/plain; base64,aGk=",
        "data:text/pläin;base64,aGk=",
        "data:text/plain;x=" + "y" * 1000 + ";base64,aGk=",
        " data:text/plain;base64,aGk=",
        "data:text/plain;base64,aGk",
        "data:text/plain;base64,aG=k",
        "data:text/plain;base64,aGk==",
        "data:text/plain;base64,a===",
        "data:text/plain;base64,====",
        "data:text/plain;base64,aGk=aGk=",
        "data:text/plain;base64,aGk= ",
        "data:text/plain;base64,aG k=",
        "data:text/plain;base64,aGVs\nbG8=",
        "data:text/plain;base64,aGVs\r\n\r\nbG8=",
        "data:text/plain;base64,__-_",
        "data:text/plain;base64,aGk%3D",
        "data:text/plain;base64,aGké",
        "data:text/plain;base64,aGk\x00",
        "data:text/plain,a b",
        "data:text/plain,100%",
        "data:text/plain,%zz",
        "data:text/plain,図",
        "data:image/png,%89PNG%0D%0A%1A%0A%00%00%00%0DIHDR%00%00%00%01%00%00%00%01",
        "data:text/plain,%00%01",
    ],
)
def test_anything_else_is_a_clear_400(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_data_url(url, LIMIT, param="file.file_data")
    assert caught.value.status == 400
    assert caught.value.param == "file.file_data"
    assert caught.value.message.startswith("this data url cannot be read: ")


@pytest.mark.parametrize(("size", "fits"), [(998, True), (999, True), (1000, True), (1001, False)])
@pytest.mark.parametrize("form", ["base64", "percent"])
def test_limit_counts_decoded_bytes(size: int, fits: bool, form: str) -> None:
    if form == "base64":
        url = "data:text/plain;base64," + base64.b64encode(b"x" * size).decode()
    else:
        url = "data:text/plain," + "%41" * size
    if fits:
        assert len(decode_data_url(url, LIMIT).data) == size
    else:
        with pytest.raises(InvalidRequest, match="more than 1000 bytes"):
            decode_data_url(url, LIMIT)


def test_too_much_is_refused_before_it_is_decoded() -> None:
    url = "data:text/plain;base64," + "QUFB" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="more than"):
            decode_data_url(url, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(url) + 500_000  # the payload's own text, and no decoded copy


@given(st.text().map("data:".__add__) | st.text().map("data:text/plain;base64,".__add__))
def test_any_text_is_decoded_or_an_invalid_request(url: str) -> None:
    try:
        fetched = decode_data_url(url, LIMIT)
    except InvalidRequest:
        return
    assert len(fetched.data) <= LIMIT


def test_fetcher_takes_data_urls_without_a_network() -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise AssertionError("no lookup for a data url")

    fetcher = Fetcher(resolver=resolver, limits=Limits(max_bytes=4))
    assert fetcher.fetch("Data:text/plain;base64,aGk=").data == b"hi"
    with pytest.raises(InvalidRequest, match="more than 4 bytes") as caught:
        fetcher.fetch("data:text/plain;base64,aGVsbG8=", param="messages[0]")
    assert caught.value.param == "messages[0]"
