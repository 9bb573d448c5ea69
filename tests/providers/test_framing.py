"""Any split of an upstream's bytes gives the same events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import ProtocolError
from services.providers.framing import LineDecoder, ServerEvent, SSEDecoder

STREAMS = {
    b'data: {"a":1}\n\ndata: [DONE]\n\n': [b'{"a":1}', b"[DONE]"],
    b'data: {"a":1}\r\n\r\ndata: [DONE]\r\n\r\n': [b'{"a":1}', b"[DONE]"],
    b"data: x\r\rdata: y\r\r": [b"x", b"y"],
    b"data:noblank\n\n": [b"noblank"],
    b"data:  two blanks\n\n": [b" two blanks"],
    b": a comment\n\nevent: ping\ndata: x\nid: 7\nretry: 5\n\n": [b"x"],
    b'data: {"a":\ndata: 1}\n\n': [b'{"a":\n1}'],
    b"\n\n\ndata: after blank lines\n\n\n\n": [b"after blank lines"],
    "data: 你好 😀\n\n".encode(): ["你好 😀".encode()],
    b"\xef\xbb\xbfdata: after a byte order mark\n\n": [b"after a byte order mark"],
    b"event: only a name\n\n": [],
    b"database: not data\n\n": [],
    b"data: last one without its blank line": [b"last one without its blank line"],
    b"data: [DONE]\n": [b"[DONE]"],
}


def decode(pieces: list[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.finish()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize(("stream", "events"), STREAMS.items())
def test_stream_in_one_piece(stream: bytes, events: list[bytes]) -> None:
    assert decode([stream]) == events


@pytest.mark.parametrize(("stream", "events"), STREAMS.items())
def test_stream_byte_by_byte(stream: bytes, events: list[bytes]) -> None:
    assert decode([bytes([byte]) for byte in stream]) == events


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 200), max_size=12))
def test_any_split_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    assert decode(cut(stream, places)) == STREAMS[stream]


@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n"), min_size=1), max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_any_text_survives_any_line_end_and_split(
    texts: list[str], end: str, places: list[int]
) -> None:
    stream = "".join(f"data: {text}{end}{end}" for text in texts).encode("utf-8", "replace")
    expected = [text.encode("utf-8", "replace") for text in texts]
    assert decode(cut(stream, places)) == expected


def test_event_names_are_kept() -> None:
    decoder = SSEDecoder()
    events = decoder.feed_named(b"event: delta\ndata: 1\n\ndata: 2\n\n")
    assert events == [ServerEvent("delta", b"1"), ServerEvent("", b"2")]


def test_endless_event_is_refused() -> None:
    decoder = SSEDecoder(max_event=100)
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        for _ in range(20):
            decoder.feed(b"data: xxxxxxxx")


@pytest.mark.parametrize("size", [1, 3, 1000, 4096, 65536])
def test_long_events_survive_reads_of_any_size(size: int) -> None:
    events = [b"x" * 9000, b"y" * 70000, b"z"]
    stream = b"".join(b"data: " + event + b"\n\n" for event in events)
    assert decode([stream[at : at + size] for at in range(0, len(stream), size)]) == events


def test_a_byte_order_mark_counts_only_at_the_beginning() -> None:
    assert decode([b"data: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n", b"data: 3\n\n"]) == [b"1", b"3"]


def test_reads_of_one_event_each() -> None:
    reads = [
        b"data: 1\n\n",
        b"data: 2\n\n",
        b"data: 3\r\n\r\n",
        b"data: 4\n\n",
        b"data: 5\n",
        b"\n",
    ]
    assert decode(reads) == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("blank", [b"\n\n", b"\n\n\n", b"\n\n\n\n"])
def test_events_of_one_and_of_several_lines_in_one_read(blank: bytes) -> None:
    stream = blank.join([b"data: 1", b"event: e\ndata: 2", b"data: 3\ndata: 4", b": c", b""])
    assert decode([stream]) == [b"1", b"2", b"3\n4"]


@given(
    st.lists(st.text(st.characters(blacklist_categories=["Cc", "Zs", "Cs"]), min_size=1)),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_lines_survive_any_split(texts: list[str], end: str, places: list[int]) -> None:
    lines = [text.encode() for text in texts if text.encode().strip() == text.encode()]
    decoder = LineDecoder()
    pieces = cut(end.encode().join(lines), places)
    got = [line for piece in pieces for line in decoder.feed(piece)] + decoder.finish()
    assert got == lines


def test_endless_line_is_refused() -> None:
    decoder = LineDecoder(max_line=100)
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        for _ in range(20):
            decoder.feed(b"xxxxxxxx")
