"""A request's headers and first line, safe to put on the wire."""

from __future__ import annotations

import re

from services import __version__
from services.core.errors import InvalidRequest
from services.transport.base import UpstreamRequest
from services.transport.route import Route

USER_AGENT = f"causeway/{__version__}"

# The transport frames the message and owns the connection; a caller's copies would contradict it.
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "te"})
_BODY_EXPECTED = frozenset({"POST", "PUT", "PATCH"})
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN = re.compile(r"[^\t\x20-\x7e\x80-\xff]")


def headers_for(request: UpstreamRequest, route: Route) -> dict[str, str]:
    """Return the headers to send, defaults included.

    InvalidRequest, naming the header but not its value, when one could not be sent as it is:
    CR, LF or another control character, or anything outside Latin-1.
    """
    if not _TOKEN.fullmatch(request.method):
        raise InvalidRequest("request method is not a word")
    headers = {
        "host": ("Host", route.host_header),
        "user-agent": ("User-Agent", USER_AGENT),
        "accept-encoding": ("Accept-Encoding", "identity"),
    }
    for name, value in request.headers.items():
        key = name.lower()
        if not _TOKEN.fullmatch(name):
            raise InvalidRequest("a request header has an impossible name")
        if _FORBIDDEN.search(value):
            raise InvalidRequest(f"request header {key} holds a character that cannot be sent")
        if key not in _OURS:
            headers[key] = (name, value.strip())
    if request.body or request.method in _BODY_EXPECTED:
        headers["content-length"] = ("Content-Length", str(len(request.body)))
    return dict(headers.values())


def build_head(request: UpstreamRequest, route: Route, path: str) -> bytes:
    """Return request line and headers; absolute form and credentials for a forwarding proxy."""
    headers = headers_for(request, route)
    target = path
    if route.forwarded:
        assert route.proxy is not None
        target = f"http://{route.host_header}{path}"
        if route.proxy.authorization:
            headers["Proxy-Authorization"] = route.proxy.authorization
    lines = [f"{request.method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
