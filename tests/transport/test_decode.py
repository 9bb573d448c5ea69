"""Content codings survive any split of their bytes."""

from __future__ import annotations

import gzip
import zlib

import brotli  # type: ignore[import-untyped]  # it ships no types
import pytest

from services.core.errors import ProtocolError
from services.transport.decode import Decoder, decoder_for

TEXT = b"the quick brown fox jumps over the lazy dog"
_RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)

CODED = {
    "one gzip member": ("gzip", gzip.compress(TEXT)),
    "two gzip members": ("gzip", gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:])),
    "padded gzip": ("GZIP ", gzip.compress(TEXT) + bytes(20)),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "raw deflate": ("deflate", _RAW.compress(TEXT) + _RAW.flush()),
    "brotli": ("br", brotli.compress(TEXT)),
}


def decode(decoder: Decoder, *pieces: bytes) -> bytes:
    out = b""
    for piece in pieces:
        out += decoder.feed(piece)
        while decoder.pending:
            out += decoder.feed(b"")
    return out


@pytest.mark.parametrize("kind", CODED)
def test_any_split_decodes_alike(kind: str) -> None:
    coding, data = CODED[kind]
    for at in range(len(data) + 1):
        decoder = decoder_for(coding)
        assert decoder is not None
        assert decoder.complete
        assert decode(decoder, data[:at], data[at:]) == TEXT
        assert decoder.complete


@pytest.mark.parametrize("kind", ["one gzip member", "zlib", "raw deflate", "brotli"])
def test_any_cut_is_incomplete(kind: str) -> None:
    coding, data = CODED[kind]
    for at in range(1, len(data)):
        decoder = decoder_for(coding)
        assert decoder is not None
        decode(decoder, data[:at])
        assert not decoder.complete


def test_no_coding_needs_no_decoder_and_an_unknown_one_is_refused() -> None:
    assert decoder_for("") is None
    assert decoder_for("Identity") is None
    with pytest.raises(ProtocolError):
        decoder_for("gzip, br")
