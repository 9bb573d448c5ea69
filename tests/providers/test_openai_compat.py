"""OpenAI's dialect as upstreams speak it: told faithfully, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import GatewayError, ProtocolError, UpstreamError
from services.core.events import Event, Extra, Finish, Reasoning, Text, ToolCall, Usage
from services.providers.openai_compat import ChatStream, completion_events
from tests.contract.folded import folded

DONE = b"data: [DONE]\n\n"


def frame(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}


def read(*pieces: bytes) -> list[Event]:
    stream, told = ChatStream(), []
    for piece in pieces:
        stream.feed(piece, told)
    stream.end(told)
    return told


def whole(message: Any, finish: str | None = "stop", **fields: Any) -> list[Event]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return completion_events(json.dumps({"choices": [choice], **fields}).encode())


CALLS = [
    {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"a":'}},
    {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    {"index": 0, "function": {"arguments": "1}"}},
]
ANSWER = b"".join(
    [
        frame(delta(role="assistant", content="")),
        frame(delta(reasoning_content="思考")),
        frame(delta(content="你好 👨‍👩‍👧 ")),
        frame(delta(1, content="second")),
        frame(delta(content='"quoted"\n') | {"made_up": 1}),
        *(frame(delta(tool_calls=[call])) for call in CALLS),
        frame(delta(finish="tool_calls")),
        frame(delta(1, finish="length")),
        frame({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
        DONE,
    ]
)


def test_answer_is_told_in_order() -> None:
    assert read(ANSWER) == [
        Reasoning("思考"),
        Text("你好 👨‍👩‍👧 "),
        Text("second", 1),
        Extra("chunk", {"made_up": 1}),
        Text('"quoted"\n'),
        ToolCall(0, "c0", "f"),
        ToolCall(0, arguments='{"a":'),
        ToolCall(1, "c1", "g", "{}"),
        ToolCall(0, arguments="1}"),
        Finish("tool_calls"),
        Finish("length", 1),
        Usage(3, 4, 7),
    ]


@given(st.lists(st.integers(0, len(ANSWER)), max_size=40))
def test_any_split_gives_the_same_events(places: list[int]) -> None:
    edges = [0, *sorted(places), len(ANSWER)]
    assert read(*(ANSWER[a:b] for a, b in zip(edges, edges[1:], strict=False))) == read(ANSWER)


@given(st.integers(0, len(ANSWER) - len(DONE) - 1))
def test_any_cut_before_the_last_finish_is_an_error(place: int) -> None:
    last = ANSWER.rindex(b'"finish_reason": "length"')
    cut = ANSWER[: min(place, last)]
    with pytest.raises(ProtocolError):
        read(cut)


def test_every_cut_keeps_what_came_whole() -> None:
    expected = folded([read(ANSWER)])["Text", 0]
    stream, told = ChatStream(), []
    with pytest.raises(ProtocolError):
        for piece in (ANSWER[: ANSWER.index(b"tool_calls")], b"{broken\n\n"):
            stream.feed(piece, told)
        stream.end(told)
    assert folded([told])["Text", 0] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b'"text"',
        b"ping",
        b"{",
        b'{"choices":[{"delta":{"content":"x"},"more":1}],',
        b'{"choices":[{"unknown":1}]',
        b'{"choices":3}',
        b'{"choices":{"a":1}}',
        b'{"choices":[null]}',
        b'{"choices":[[]]}',
        b'{"choices":[{"delta":[]},3]}',
        b'{"choices":[{"index":"0","delta":{"content":"x"}}]}',
        b'{"choices":[{"index":0.5,"delta":{"content":"x"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":["x"]}}]}',
        b'{"choices":[{"index":0,"delta":{"content":5}}]}',
        b'{"choices":[{"index":0,"delta":{"reasoning":{"a":1}}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":"a"}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"id":5,"function":{}}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":{"0":1}}}]}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":{"type":"stop"}}]}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":7}]}',
        b'{"choices":[{"index":0,"delta":{"content":"x"},"logprobs":"none"}]}',
        b'{"choices":[],"usage":"many"}',
        b'{"choices":[],"usage":{"prompt_tokens":"many"}}',
        b'{"choices":[{"index":0,"delta":{"content":"\\ud800"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\xff"}}]}',
    ],
)
def test_nonsense_is_a_protocol_error_and_no_defect_of_ours(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(b"data: " + data + b"\n\n", DONE)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["index", "delta", "message", "content", "tool_calls", "function"])
            | st.sampled_from(["finish_reason", "usage", "logprobs", "error", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values, values)
def test_no_json_gives_anything_but_events_or_a_gateway_error(choices: Any, usage: Any) -> None:
    chunk = {"choices": choices, "usage": usage}
    for streamed in (True, False):
        try:
            body = json.dumps(chunk).encode()
            told = read(frame(chunk), DONE) if streamed else completion_events(body)
        except GatewayError:
            continue
        for event in told:
            assert isinstance(getattr(event, "index", 0), int)
            assert isinstance(getattr(event, "text", ""), str)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b"<html>", b'{"choices":[]}', b'{"message":"ok"}', b'{"choices":'],
)
def test_whole_answer_without_a_choice_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        completion_events(body)


def test_error_beside_a_chunk_is_raised_after_what_came() -> None:
    stream, told = ChatStream(), []
    with pytest.raises(UpstreamError, match="it broke"):
        broken = frame(delta(content="Hi")) + frame({"error": {"message": "it broke"}}) + DONE
        stream.feed(broken, told)
    assert told == [Text("Hi")]


def test_error_that_is_null_is_not_passed_on() -> None:
    told = read(frame(delta(content="Hi") | {"error": None}), DONE)
    assert told == [Text("Hi"), Finish("stop")]


def test_null_and_missing_indexes_count_from_the_start() -> None:
    call = {"index": None, "id": "c", "type": "function", "function": {"name": "f"}}
    chunk = {"choices": [{"index": None, "delta": {"content": "a", "tool_calls": [call]}}]}
    assert read(frame(chunk), DONE)[:2] == [Text("a"), ToolCall(0, "c", "f")]
    assert whole({"content": "a"})[0] == Text("a")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("end_turn", "stop"),
        ("tool_use", "tool_calls"),
        ("whatever", "stop"),
    ],
)
def test_every_finish_reason_is_one_of_openais(theirs: str, ours: str) -> None:
    assert read(frame(delta(content="x")), frame(delta(finish=theirs)))[-1] == Finish(ours)  # type: ignore[arg-type]
    assert whole({"content": "x"}, theirs)[-1] == Finish(ours)  # type: ignore[arg-type]


def test_finish_said_twice_is_told_once() -> None:
    told = read(frame(delta(finish="stop")), frame(delta(finish="stop")), DONE)
    assert told == [Finish("stop")]


def test_done_alone_ends_every_choice_that_is_open() -> None:
    told = read(frame(delta(content="a")), frame(delta(1, content="b")), DONE)
    assert told[2:] == [Finish("stop"), Finish("stop", 1)]


def test_one_choice_of_two_without_an_end_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        read(frame(delta(content="a", finish="stop")), frame(delta(1, content="b")))


def test_constants_are_told_once_and_new_fields_when_they_change() -> None:
    constant = {"system_fingerprint": "fp"}
    chunks = [delta(content="a") | constant | {"x": x} for x in "112"]
    told = read(*map(frame, chunks), DONE)
    assert [e.fields for e in told if isinstance(e, Extra)] == [
        {"system_fingerprint": "fp", "x": "1"},
        {"x": "2"},
    ]


def test_unknown_fields_keep_their_place() -> None:
    chunk = delta(content="a", annotations=[1])
    chunk["choices"][0]["seen"] = True
    extras = [e for e in read(frame(chunk), DONE) if isinstance(e, Extra)]
    assert extras == [Extra("choice", {"seen": True}), Extra("delta", {"annotations": [1]})]


def test_refusal_of_the_model_is_told() -> None:
    assert Extra("delta", {"refusal": "no"}) in read(frame(delta(refusal="no")), DONE)
    assert Extra("delta", {"refusal": "no"}) in whole({"content": None, "refusal": "no"})


def test_usage_keeps_its_details_and_adds_up() -> None:
    usage = {"prompt_tokens": 2.0, "completion_tokens": None, "prompt_tokens_details": {"a": 1}}
    told = whole({"content": "x"}, usage=usage)
    assert Usage(2, 0, 2, {"prompt_tokens_details": {"a": 1}}) in told


def test_arguments_given_as_an_object_become_text() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert ToolCall(0, "c", "f", '{"a":1}') in whole({"content": None, "tool_calls": [call]})


def test_custom_tools_are_told_as_such() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "text"}}
    assert ToolCall(0, "c", "f", "text", "custom") in whole({"tool_calls": [call]})
