"""Events that repeat a text and deltas to it come out as if each had been decoded whole."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import msgspec
import pytest

from emulators.backend_api_deltas import DeltaEncoder
from services.core.errors import ProtocolError
from services.core.events import Text
from services.core.models import Credential
from services.providers.backend_api.decoder import EventDecoder
from services.providers.backend_api.events import Answer, TextDiff
from services.providers.backend_api.files import Item
from services.providers.backend_api.upstream_events import (
    Appended,
    Content,
    UpstreamEvent,
    decode_event,
)

HARD = (
    '"',
    "\\",
    '\\"',
    "你",
    "🦦",
    "\n",
    '", "parts": ["x',
    "\\u0041",
    "data: ",
    "a",
    "bc ",
    "【1†s】",
)


def event(text: str, *more_parts: Any, **fields: Any) -> dict[str, Any]:
    message = {
        "id": "m1",
        "author": {"role": "assistant", "name": None},
        "content": {"content_type": "text", "parts": [text, *more_parts]},
        "status": "in_progress",
        "metadata": {"model_slug": "gpt-4"},
        "recipient": "all",
    }
    return {"message": message | fields, "conversation_id": "c1", "error": None}


def raw(body: dict[str, Any], *, ascii_only: bool = True, tight: bool = False) -> bytes:
    separators = (",", ":") if tight else (", ", ": ")
    return json.dumps(body, ensure_ascii=ascii_only, separators=separators).encode()


def seen(read: UpstreamEvent | None) -> Any:
    """All that is used of an event."""
    if read is None or read.message is None:
        return read
    message, content, metadata = read.message, read.message.content, read.message.metadata
    assert content is not None
    assert metadata is not None
    return (
        (message.id, message.author, message.status, message.recipient, read.conversation_id),
        (content.content_type, content.whole, len(content.parts or ()), content.text),
        (plain(metadata.citations), plain(metadata.finish_details), read.error, read.detail),
    )


def plain(value: Any) -> Any:
    """JSON that may be raw, decoded."""
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def content_of(read: UpstreamEvent | None) -> Content:
    assert read is not None
    assert read.message is not None
    assert read.message.content is not None
    return read.message.content


class Told:
    """What is heard of one message."""

    def __init__(self) -> None:
        self.text = ""
        self._diff = TextDiff()

    def hear(self, content: Content) -> None:
        self.text += self._diff.advance(content)


def next_event(rng: random.Random, text: str) -> dict[str, Any]:
    """Mostly more text, but everything else that may happen to a message too."""
    match rng.randrange(16):
        case 0:
            return event(text[: rng.randint(0, len(text))] + rng.choice(HARD))
        case 1:
            return event(text, status="finished_successfully")
        case 2:
            return event(text, metadata={"citations": [{"metadata": {"name": text[-2:]}}]})
        case 3:
            return event(text, {"content_type": "image_asset_pointer"})
        case 4:
            return event(text, "a second part")
        case 5:
            return event(text[:5], id="m2")
        case 6:
            return event(text, recipient="python")
        case 7:
            return {"type": "title_generation", "title": text, "conversation_id": "c1"}
        case _:
            return event(text + "".join(rng.choices(HARD, k=rng.randint(0, 4))))


def text_in(body: dict[str, Any], otherwise: str) -> str:
    return body["message"]["content"]["parts"][0] if body.get("message") else otherwise


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("tight", [True, False])
def test_every_event_reads_as_if_decoded_alone(ascii_only: bool, tight: bool) -> None:
    seed = random.randrange(10**9)
    print(f"seed={seed}")
    rng = random.Random(seed)
    compared = 0
    for _ in range(200):
        decoder, text = EventDecoder(), ""
        ours: dict[str, TextDiff] = {}
        plain: dict[str, TextDiff] = {}
        for _ in range(12):
            body = next_event(rng, text)
            text = text_in(body, text)
            frame = raw(body, ascii_only=ascii_only, tight=tight)
            read = decoder.decode(frame)
            assert seen(read) == seen(decode_event(frame))
            if read is not None and read.message is not None:
                compared += isinstance(content_of(read), Appended)
                name = read.message.id
                expected = plain.setdefault(name, TextDiff()).advance(
                    Content("text", [content_of(read).whole])
                )
                assert ours.setdefault(name, TextDiff()).advance(content_of(read)) == expected
    assert compared > 200


def test_deltas_read_as_the_whole_events_they_stand_for() -> None:
    seed = random.randrange(10**9)
    print(f"seed={seed}")
    rng = random.Random(seed)
    appended = 0
    for _ in range(200):
        encoder, decoder, text, read = DeltaEncoder(), EventDecoder(), "", None
        ours: dict[str, Told] = {}
        whole: dict[str, Told] = {}
        for _ in range(12):
            body = next_event(rng, text)
            text = text_in(body, text)
            if "message" not in body:
                continue
            for delta in encoder.encode(body):
                read = decoder.decode(json.dumps(delta).encode())
                content = content_of(read)
                appended += isinstance(content, Appended)
                ours.setdefault(body["message"]["id"], Told()).hear(content)
            assert seen(read) == seen(decode_event(raw(body)))
            whole.setdefault(body["message"]["id"], Told()).hear(
                content_of(decode_event(raw(body)))
            )
        assert {name: told.text for name, told in ours.items()} == {
            name: told.text for name, told in whole.items()
        }
    assert appended > 200


ADDED = {"p": "", "o": "add", "v": event(""), "c": 0}
APPEND = {"p": "/message/content/parts/0", "o": "append"}


def after(*deltas: dict[str, Any]) -> tuple[str, Any]:
    """Text and citations once these deltas have followed a message that was added empty."""
    decoder, read = EventDecoder(), None
    for delta in (ADDED, *deltas):
        read = decoder.decode(json.dumps(delta).encode())
    assert read is not None
    assert read.message is not None
    assert read.message.metadata is not None
    return content_of(read).whole, read.message.metadata.citations


@pytest.mark.parametrize(
    ("deltas", "text", "citations"),
    [
        ([APPEND | {"v": "a"}, {"v": "b"}, {"v": "c"}], "abc", None),
        ([APPEND | {"v": "ab"}, {"o": "replace", "v": "xy"}], "xy", None),
        ([APPEND | {"v": "abc"}, {"o": "truncate", "v": 1}, {"o": "append", "v": "z"}], "az", None),
        (
            [
                {"o": "patch", "v": [APPEND | {"v": "a"}, {"p": "/message/x", "o": "add", "v": 1}]},
                {"v": [APPEND | {"v": "b"}]},
                APPEND | {"v": "c"},
                {"v": "d"},
            ],
            "abcd",
            None,
        ),
        ([{"p": "", "o": "patch", "v": [APPEND | {"v": "a"}]}, {"v": "b"}], "ab", None),
        (
            [
                {"p": "/message/metadata/citations", "o": "add", "v": [{"a": "x"}]},
                {"o": "append", "v": [{"b": 1}]},
                {"p": "/message/metadata/citations/0/a", "v": "y"},
                {"p": "/message/metadata/citations/1/b", "o": "remove"},
                {"p": "/message/metadata/citations/-", "o": "add", "v": {"c": 2}},
                {"p": "/message/metadata", "o": "append", "v": {"other": 1}},
            ],
            "",
            [{"a": "xy"}, {}, {"c": 2}],
        ),
        (
            [
                APPEND | {"v": "a"},
                {"p": "/message", "o": "append", "v": {"content": {"parts": ["b"]}}},
                APPEND | {"v": "c"},
            ],
            "bc",
            None,
        ),
        (
            [
                APPEND | {"v": "a"},
                {"p": "/message/content/parts/7", "o": "append", "v": "?"},
                {"p": "/message/content/parts/x/y", "o": "replace", "v": "?"},
                {"p": "/message/status", "o": "replace", "v": {"no": "text"}},
                {"p": "/message/__class__", "o": "replace", "v": "?"},
                {"p": "message", "o": "swap", "v": "?"},
                {
                    "p": "/message/metadata/citations",
                    "o": "patch",
                    "v": [7, {"p": 7, "o": [], "v": 1}],
                },
                APPEND | {"v": "b"},
            ],
            "ab",
            None,
        ),
    ],
)
def test_deltas_of_every_kind_are_applied_and_unknown_places_left(
    deltas: list[dict[str, Any]], text: str, citations: Any
) -> None:
    assert after(*deltas) == (text, citations)


def test_deltas_before_any_message_say_nothing() -> None:
    decoder = EventDecoder()
    for delta in ("v1", APPEND | {"v": "a"}, {"v": [APPEND]}, {"v": None}):
        assert decoder.decode(json.dumps(delta).encode()) is None


def test_answer_that_is_added_in_an_unknown_shape_is_an_error() -> None:
    broken = event("a") | {"message": event("a")["message"] | {"content": 7}}
    with pytest.raises(ProtocolError):
        EventDecoder().decode(json.dumps(ADDED | {"v": broken}).encode())


def test_long_reply_in_deltas_costs_time_linear_in_it() -> None:
    decoder, diff, said = EventDecoder(), TextDiff(), 0
    decoder.decode(
        json.dumps(ADDED | {"v": event("", metadata={"content_references": []})}).encode()
    )
    began = time.process_time()
    for number in range(20_000):
        frame = b'{"v": "The quick brown otter swims. "}' if number else b'{"v": "A"}'
        if not number:
            frame = json.dumps(APPEND | {"v": "A"}).encode()
        elif number % 10 == 0:
            note = {"p": "/message/metadata/token_count", "o": "replace", "v": number}
            frame = json.dumps({"p": "", "o": "patch", "v": [APPEND | {"v": "x"}, note]}).encode()
        elif number % 10 == 1:
            frame = json.dumps(APPEND | {"v": "y"}).encode()
        said += len(diff.advance(content_of(decoder.decode(frame))))
    assert said == len(content_of(decoder.decode(b'{"v": ""}')).whole)
    assert time.process_time() - began < 2


def test_of_a_growing_text_only_what_is_new_is_decoded() -> None:
    decoder = EventDecoder()
    text = 'She said: "otters", \\ and 水獭🦦.\n' * 50
    decoder.decode(raw(event(text[:1])))
    for end in range(2, len(text)):
        content = content_of(decoder.decode(raw(event(text[:end]))))
        assert isinstance(content, Appended)
        assert (content.parts, content.start) == ([text[end - 1]], end - 1)
    assert content.whole == text[:-1]


def test_heartbeats_between_events_are_no_hindrance() -> None:
    decoder = EventDecoder()
    decoder.decode(raw(event("a")))
    assert decoder.decode(b"2024-02-11 10:15:00.123456") is None
    assert isinstance(content_of(decoder.decode(raw(event("ab")))), Appended)


def test_an_upstream_that_stamps_its_events_is_read_all_the_same() -> None:
    decoder = EventDecoder()
    for number in range(100):
        frame = raw(event("a" * number, id="m1", create_time=number))
        assert seen(decoder.decode(frame)) == seen(decode_event(frame))


def test_a_broken_event_after_good_ones_is_an_error() -> None:
    decoder, frame = EventDecoder(), raw(event("a"))
    decoder.decode(frame)
    with pytest.raises(ProtocolError):
        decoder.decode(frame.replace(b'"a"', b'"ab"')[:-1])


@pytest.mark.parametrize("bad", [b'"', b"\\", b"\\ud83d", b"\n", b"\xff", b'x", "y'])
def test_what_cannot_stand_in_a_string_is_not_taken_for_text(bad: bytes) -> None:
    decoder, frame = EventDecoder(), raw(event("a"))
    decoder.decode(frame)
    changed = frame.replace(b'["a"]', b'["a' + bad + b'"]')
    try:
        expected = seen(decode_event(changed))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            decoder.decode(changed)
    else:
        assert seen(decoder.decode(changed)) == expected


def test_shorter_text_then_more_says_nothing_twice() -> None:
    answer = Answer(Credential(None), plot_notice="", upload_notice="", name_conversation=False)
    items: list[Item] = []
    for text in ("Hello world", "Hello", "Hello wor", "Hello world!", "Hello world! Bye"):
        answer.feed(raw(event(text)), items)
    answer.close(items)
    assert "".join(item.text for item in items if isinstance(item, Text)) == "Hello world! Bye"


def test_source_that_never_comes_delays_the_text_for_eight_events_and_only_once() -> None:
    answer = Answer(Credential(None), plot_notice="", upload_notice="", name_conversation=False)
    cite, text, heard = "\ue200cite\ue202turn0search0\ue201", "", []
    for delta in ("A", cite, *"bcdefghijkl", cite, "m"):
        text += delta
        items: list[Item] = []
        answer.feed(raw(event(text)), items)
        heard.append("".join(item.text for item in items if isinstance(item, Text)))
    assert heard == ["A", *[""] * 8, "bcdefghi", "j", "k", "l", "", "m"]
