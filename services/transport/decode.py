"""Content codings of answers, undone as the bytes come in."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod

import brotli  # type: ignore[import-untyped]  # it ships no types

from services.core.errors import ProtocolError

# One call's output at most, so that a few kilobytes cannot become gigabytes unasked.
BURST = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"


class Decoder(ABC):
    """Undoes one coding. `pending` says that more output waits for `feed(b"")`."""

    pending = False

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Return up to `BURST` decoded bytes; ProtocolError when the data is not so coded."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the stream may end here: at its own end, or before its first byte."""


def decoder_for(coding: str) -> Decoder | None:
    """Return what undoes a Content-Encoding, None for none; ProtocolError if we cannot."""
    match coding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return _Gzip()
        case "deflate":
            return _Deflate()
        case "br":
            return _Brotli()
        case _:
            raise ProtocolError("the answer has a content coding that nobody asked for")


class _Zlib(Decoder):
    def __init__(self, wbits: int) -> None:
        self._inflate = zlib.decompressobj(wbits)
        self._started = False

    @property
    def complete(self) -> bool:
        return self._inflate.eof or not self._started

    def feed(self, data: bytes) -> bytes:
        self._started = self._started or bool(data)
        try:
            out = self._inflate.decompress(self._inflate.unconsumed_tail + data, BURST)
        except zlib.error as exc:
            raise ProtocolError("the answer's compressed body is damaged") from exc
        self.pending = not self._inflate.eof and len(out) == BURST
        return out


class _Gzip(_Zlib):
    """RFC 1952 allows several members in a row."""

    def __init__(self) -> None:
        super().__init__(16 + zlib.MAX_WBITS)
        self._surplus = b""

    def feed(self, data: bytes) -> bytes:
        if self._member_over():
            self._surplus += data
            return self._next_member()
        out = super().feed(data)
        if self._member_over():
            self._surplus = self._inflate.unused_data
            self.pending = self._surplus.startswith(_GZIP_MAGIC)
        return out

    def _member_over(self) -> bool:
        return self._inflate.eof

    def _next_member(self) -> bytes:
        """Begin another member; bytes that are none are padding, which gzip ignores too."""
        self.pending = False
        if len(self._surplus) < len(_GZIP_MAGIC):
            return b""
        member, self._surplus = self._surplus, b""
        if not member.startswith(_GZIP_MAGIC):
            return b""
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        return self.feed(member)


class _Deflate(Decoder):
    """RFC 9110 means zlib; some servers send raw deflate: two bytes tell them apart."""

    def __init__(self) -> None:
        self._start = b""
        self._inner: _Zlib | None = None

    @property
    def complete(self) -> bool:
        return self._inner.complete if self._inner else not self._start

    def feed(self, data: bytes) -> bytes:
        if self._inner is None:
            self._start += data
            if len(self._start) < 2:
                return b""
            data = self._start
            zlib_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._inner = _Zlib(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        out = self._inner.feed(data)
        self.pending = self._inner.pending
        return out


class _Brotli(Decoder):
    def __init__(self) -> None:
        self._inner = brotli.Decompressor()
        self._held = b""
        self._started = False

    @property
    def complete(self) -> bool:
        return self._inner.is_finished() or not self._started

    def feed(self, data: bytes) -> bytes:
        self._started = self._started or bool(data)
        if self._inner.is_finished():
            return b""
        self._held += data
        taken = b""
        if self._inner.can_accept_more_data():
            taken, self._held = self._held, b""
        try:
            out = self._inner.process(taken, output_buffer_limit=BURST)
        except brotli.error as exc:
            raise ProtocolError("the answer's compressed body is damaged") from exc
        # Output can be left with all input taken: one symbol may stand for megabytes.
        more = len(out) >= BURST or bool(self._held) or not self._inner.can_accept_more_data()
        self.pending = more and not self._inner.is_finished()
        return bytes(out)
