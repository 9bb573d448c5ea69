"""OpenAI's chat dialect: the frames callers need, and a fold that says the same as the stream."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import ProtocolError
from services.core.events import (
    Conversation,
    Extra,
    Finish,
    Reasoning,
    Text,
    ToolCall,
    Usage,
    WireEvent,
)
from services.dialects.chat_answer import ChatChunks, Completion, ResponseHead
from services.dialects.sse import MAX_LINE

HEAD = ResponseHead("chatcmpl-1", "the-model", 1700000000)


def frames(data: bytes) -> list[str]:
    lines = data.decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def chunks(*batches: list[WireEvent], with_usage: bool = True) -> list[Any]:
    encoder = ChatChunks(HEAD, with_usage=with_usage)
    data = b"".join(encoder.encode(batch) for batch in batches) + encoder.end()
    *objects, done = frames(data)
    assert done == "[DONE]"
    return [json.loads(text) for text in objects]


def completion(*batches: list[WireEvent]) -> Any:
    answer = Completion(HEAD)
    for batch in batches:
        answer.add(batch)
    return json.loads(answer.encode())


def test_order_is_role_text_finish_usage_done() -> None:
    first, text, finish, usage = chunks([Text("Hi"), Usage(1, 2, 3), Finish("stop")])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert text["choices"] == [
        {"index": 0, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}
    ]
    assert finish["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert [chunk["usage"] for chunk in (first, text, finish)] == [None, None, None]


def test_usage_is_left_out_when_nobody_asked() -> None:
    made = chunks([Text("Hi"), Finish("stop"), Usage(1, 2, 3)], with_usage=False)
    assert all("usage" not in chunk for chunk in made)
    assert made[-1]["choices"][0]["finish_reason"] == "stop"


def test_constants_are_the_same_in_every_chunk() -> None:
    made = chunks([Text("a"), Reasoning("b"), ToolCall(0, "c1", "f", "{}"), Finish("tool_calls")])
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in made} == {
        ("chatcmpl-1", "chat.completion.chunk", 1700000000, "the-model")
    }
    assert all(type(chunk["created"]) is int for chunk in made)


def test_tool_calls_open_once_and_grow_by_index() -> None:
    made = chunks(
        [ToolCall(0, "c1", "f"), ToolCall(0, arguments='{"a"'), ToolCall(1, "c2", "g", "{}")],
        [ToolCall(0, arguments=":1}"), Finish("tool_calls")],
        with_usage=False,
    )
    deltas = [c["choices"][0]["delta"].get("tool_calls") for c in made[1:-1]]
    assert deltas == [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}],
        [{"index": 1, "function": {"arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": ":1}"}}],
    ]


@pytest.mark.parametrize("unit", ["x", "字", '"', "\x01", "😀"])
def test_no_line_is_longer_than_one_api_reads(unit: str) -> None:
    text = unit * 100_000
    encoder = ChatChunks(HEAD, with_usage=True)
    data = encoder.encode([Text(text), Reasoning(text), ToolCall(0, "c", "f", text)])
    lines = data.split(b"\n")
    assert max(map(len, lines)) <= MAX_LINE
    made = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line]
    assert "".join(d.get("content") or "" for d in made) == text
    assert "".join(d.get("reasoning_content", "") for d in made) == text
    calls = [call["function"] for d in made for call in d.get("tool_calls", ())]
    assert "".join(call["arguments"] for call in calls) == text


def test_error_after_the_first_chunk_has_a_choice_beside_it() -> None:
    encoder = ChatChunks(HEAD, with_usage=False)
    encoder.encode([Text("Hi")])
    (last,) = frames(encoder.error(ProtocolError("the upstream's answer stopped before its end")))
    chunk = json.loads(last)
    assert chunk["error"] == {
        "message": "the upstream's answer stopped before its end",
        "type": "upstream_error",
        "param": None,
        "code": "upstream_protocol_error",
    }
    assert chunk["choices"][0]["finish_reason"] is None
    assert "stopped before its end" in chunk["choices"][0]["delta"]["content"]


def test_keep_alive_says_nothing_and_opens_the_answer_once() -> None:
    encoder = ChatChunks(HEAD, with_usage=False)
    first, second = (json.loads(frames(encoder.keep_alive())[0]) for _ in range(2))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert second["choices"][0]["delta"] == {}
    made = frames(encoder.encode([Text("Hi")]))
    assert len(made) == 1


def test_unknown_fields_come_through_where_they_stood() -> None:
    batch: list[WireEvent] = [
        Extra("chunk", {"system_fingerprint": "fp"}),
        Extra("choice", {"seen": 1}),
        Extra("delta", {"refusal": "no"}),
        Text("Hi"),
        Finish("stop"),
    ]
    made = chunks(batch)
    assert all(chunk["system_fingerprint"] == "fp" for chunk in made)
    assert any(chunk["choices"] and chunk["choices"][0].get("seen") == 1 for chunk in made)
    folded = completion(batch)
    assert folded["system_fingerprint"] == "fp"
    assert folded["choices"][0]["seen"] == 1
    assert folded["choices"][0]["message"]["refusal"] == "no"


def test_message_of_a_tool_call_has_null_content_and_other_messages_have_text() -> None:
    called = completion([ToolCall(0, "c1", "f", "{}"), Finish("tool_calls")])
    assert called["choices"][0]["message"]["content"] is None
    assert completion([Finish("stop")])["choices"][0]["message"]["content"] == ""


def test_conversation_id_is_told() -> None:
    assert completion([Conversation("c-1"), Finish("stop")])["conversation_id"] == "c-1"
    assert chunks([Conversation("c-1"), Text("x")])[-1]["conversation_id"] == "c-1"


def test_logprobs_are_merged_into_one_list() -> None:
    raw = [msgspec.Raw(b'{"content":[{"token":"%b"}],"refusal":null}' % t) for t in (b"a", b"b")]
    batch: list[WireEvent] = [Text("a", 0, raw[0]), Text("b", 0, raw[1]), Finish("stop")]
    logprobs = completion(batch)["choices"][0]["logprobs"]
    assert logprobs["content"] == [{"token": "a"}, {"token": "b"}]
    assert chunks(batch)[1]["choices"][0]["logprobs"]["content"] == [{"token": "a"}]


events = st.lists(
    st.one_of(
        st.builds(Text, st.text(), st.integers(0, 1)),
        st.builds(Reasoning, st.text(), st.integers(0, 1)),
        st.builds(ToolCall, st.integers(0, 2), st.none(), st.none(), st.text()),
    ),
    max_size=12,
)


@given(events, st.lists(st.integers(0, 12), max_size=4))
def test_stream_and_fold_say_the_same(said: list[WireEvent], cuts: list[int]) -> None:
    ended = [ToolCall(p, f"c{p}", "f", index=0) for p in range(3)] + said
    ended += [Finish("stop", 0), Finish("length", 1), Usage(3, 4, 7)]
    edges = [0, *sorted(min(c, len(ended)) for c in cuts), len(ended)]
    batches = [ended[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    made, folded = chunks(*batches), completion(*batches)
    for choice in folded["choices"]:
        deltas = [
            c["choices"][0]
            for c in made
            if c["choices"] and c["choices"][0]["index"] == choice["index"]
        ]
        text = "".join(d["delta"].get("content") or "" for d in deltas)
        thought = "".join(d["delta"].get("reasoning_content", "") for d in deltas)
        assert text == (choice["message"]["content"] or "")
        assert thought == choice["message"].get("reasoning_content", "")
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]
    assert made[-1]["usage"] == folded["usage"]
