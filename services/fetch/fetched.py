"""What may be fetched at most, and what came back."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one fetch, redirects included. Times are in seconds, sizes in bytes.

    `seconds` covers everything: name lookup, connecting, TLS, every redirect and the body.
    """

    seconds: float = 10.0
    connect_seconds: float = 4.0
    max_bytes: int = 20_000_000
    header_bytes: int = 65_536
    redirects: int = 3


class Fetched(msgspec.Struct, frozen=True):
    """A file from outside.

    `mime` is sniffed from the bytes; `declared_type` is what its source claimed. `final_url` is
    where it came from after redirects, None for a `data:` URL. It may hold a signature: never log
    it. `name` is a bare file name without folders or control characters, "" when there is none.
    """

    data: bytes
    mime: str
    declared_type: str | None = None
    final_url: str | None = None
    name: str = ""

    def __repr__(self) -> str:
        return f"Fetched({len(self.data)} bytes, mime={self.mime!r})"
