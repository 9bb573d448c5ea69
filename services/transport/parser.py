"""llhttp, by way of geventhttpclient, keeping what an exchange asks for."""

from __future__ import annotations

from collections.abc import Mapping

from geventhttpclient._parser import HTTPParseError, HTTPResponseParser
from geventhttpclient.response import HTTPResponse

from services.transport.base import NO_HEADERS


class ResponseParser(HTTPResponse):
    """Feed it what the socket has, b"" at its end; HTTPParseError when that is no response.

    `status` and `fields` are those of the final response, past any interim ones, once `status`
    is not 0. `parts` collects body; `done` says that it is all there.
    """

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.status = 0
        self.fields: Mapping[str, str] = NO_HEADERS
        self.parts: list[bytearray] = []
        self.done = False
        self._surplus = False

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request."""
        return self.done and not self._surplus and self.should_keep_alive()

    def feed(self, data: str | bytes) -> None:
        try:
            HTTPResponseParser.feed(self, data)
        except HTTPParseError:
            if not self.done:
                raise
            self._surplus = True

    def _on_message_begin(self) -> None:
        if self.done:
            raise HTTPParseError("bytes after the end of the response")
        super()._on_message_begin()

    def _on_headers_complete(self) -> int | bool | None:
        skip_body = super()._on_headers_complete()
        if self.get_code() >= 200:
            self.status = self.get_code()
            self.fields = self._joined_fields()
        return skip_body

    def _on_body(self, buf: bytearray) -> None:
        self.parts.append(buf)

    def _on_message_complete(self) -> None:
        super()._on_message_complete()
        self.done = self.status != 0

    def _joined_fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        for name, value in self._headers_index.items():
            key = name.lower()
            fields[key] = f"{fields[key]}, {value}" if key in fields else value
        return fields
