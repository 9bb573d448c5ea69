"""The HTTP/1.1 of one response, read by llhttp (httptools)."""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserError, HttpResponseParser

__all__ = ["HttpParserError", "ResponseParser"]


class ResponseParser:
    """Takes the bytes of one response as they come.

    `status` and `headers` (names in lower case, repeated ones joined by ", ") are those of the
    final response, past any interim ones, once `status` is not 0. `body` collects the pieces of
    the body; whoever takes them clears it. `complete` says that nothing more belongs to it.
    """

    feed: Callable[[bytes], None]
    """Take what the socket gave. HttpParserError when that is no HTTP, or when there is more than
    one response, in which case the first is `complete`."""

    def __init__(self, method: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.complete = False
        self._keep_alive = False
        self._is_head = method == "HEAD"
        # The parser calls the methods on_*; to append to a list takes no Python frame.
        self.on_body = self.body.append
        self._llhttp = HttpResponseParser(self)
        self.feed = self._llhttp.feed_data

    @property
    def reusable(self) -> bool:
        """Whether the connection of a complete response may carry another request."""
        return self._keep_alive and not (self._is_head and self.body)

    def end(self) -> bool:
        """The connection was closed: return whether that ends the response rather than cuts it."""
        framed = "content-length" in self.headers or self._is_chunked()
        self.complete = self.complete or (self.status != 0 and not framed)
        return self.complete

    def close(self) -> None:
        """Take no more. llhttp refers back here: both would be left to the garbage collector."""
        if hasattr(self, "feed"):
            del self.feed, self._llhttp

    def _is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower().endswith("chunked")

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("bytes after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        status = self._llhttp.get_status_code()
        if status == 101:
            raise ValueError("the upstream switches protocols unasked")
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        if self._is_head:
            self.on_message_complete()

    def on_message_complete(self) -> None:
        self.complete = self.status != 0
        self._keep_alive = self._llhttp.should_keep_alive()
