"""One GET over one connection to one checked address."""

from __future__ import annotations

import re
from email.message import Message
from http.client import HTTPResponse
from io import BytesIO

import msgspec

from services import __version__
from services.core.errors import InvalidRequest
from services.fetch.fetched import Limits
from services.fetch.names import download_name
from services.fetch.urls import Target
from services.fetch.wire import Inlet, Wire

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_READ = 65_536
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,63}/[a-z0-9!#$&^_.+-]{1,127}")


class Redirect(msgspec.Struct, frozen=True):
    location: str


class Document(msgspec.Struct, frozen=True):
    data: bytes
    declared_type: str | None
    name: str


def get(target: Target, wire: Wire, limits: Limits) -> Document | Redirect:
    """Ask for `target` on `wire` and read the whole answer.

    Raise InvalidRequest for an answer that cannot be used; OSError, HTTPException and TooMuch come
    through.
    """
    wire.sendall(_request(target))
    inlet = Inlet(wire, limits.header_bytes)
    response = HTTPResponse(inlet, method="GET")  # type: ignore[arg-type]  # it only calls makefile
    try:
        response.begin()
        # twice the body leaves room for chunk framing and trailers, which nothing else bounds
        inlet.allowance = 2 * limits.max_bytes + limits.header_bytes
        location = response.headers.get("Location")
        if response.status in REDIRECTS and location:
            return Redirect(location)
        _check_headers(response, limits)
        data = _read_body(response, limits)
    finally:
        response.close()
    name = download_name(response.headers.get("Content-Disposition", ""), target.path)
    return Document(data, _declared_type(response.headers), name)


def failed(reason: str) -> InvalidRequest:
    """An error for a URL whose server did not deliver."""
    return InvalidRequest(f"fetching this url failed: {reason}", code="url_fetch_failed")


def too_large(limits: Limits) -> InvalidRequest:
    return failed(f"the file is larger than {limits.max_bytes} bytes")


def _request(target: Target) -> bytes:
    return (
        f"GET {target.path} HTTP/1.1\r\n"
        f"Host: {target.authority}\r\n"
        f"User-Agent: Causeway/{__version__}\r\n"
        "Accept: */*\r\n"
        "Accept-Encoding: identity\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii")


def _check_headers(response: HTTPResponse, limits: Limits) -> None:
    if response.status != 200:
        raise failed(f"its server answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise failed("its server compressed the answer, although asked not to")
    if response.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise failed("its server used an unknown transfer encoding")
    length = response.headers.get("Content-Length")
    if response.chunked or length is None:
        return
    if not re.fullmatch(r"[0-9]{1,18}", length.strip()):
        raise failed("its server declared a malformed length")
    if int(length) > limits.max_bytes:
        raise too_large(limits)


def _read_body(response: HTTPResponse, limits: Limits) -> bytes:
    body = BytesIO()
    while piece := response.read1(_READ):
        if body.tell() + len(piece) > limits.max_bytes:
            raise too_large(limits)
        body.write(piece)
    if response.length:  # read1 ends quietly when the connection does
        raise failed("the answer was cut short")
    return body.getvalue()


def _declared_type(headers: Message) -> str | None:
    mime = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return mime if _TYPE.fullmatch(mime) else None
