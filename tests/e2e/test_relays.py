"""one-api and new-api read our answers as they should, and never disable a channel by mistake."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
import requests

from emulators.openai_compat import OpenAICompat
from tests.e2e.relays import (
    ONE_API_LINE,
    Chunk,
    Relayed,
    Whole,
    new_api_bans,
    new_api_retries,
    new_api_stream,
    one_api_bans,
    one_api_retries,
    one_api_stream,
    read_error,
)
from tests.gateway import GatewayProcess, question

ANSWERS = [
    "hello",
    "#chinese",
    "#emoji #bytes",
    "#reasoning",
    "#tools",
    "#n:2",
    "#logprobs",
    "#unknown",
    "#refusal",
    "#empty",
    "#length",
    "#crlf #comments",
    "#multiline",
    "#noblank",
    "#json-for-stream",
]
FAULTS = [
    "#401",
    "#403",
    "#429",
    "#quota",
    "#500",
    "#502",
    "#503",
    "#529",
    "#error-string:401",
    "#error-string:500",
    "#html502",
    "#html200",
    "#error-200",
]
"""Faults of the upstream or of the operator's account there, before the first word."""

BROKEN = ["#cut", "#cut-event", "#cut-utf8", "#rst", "#eof", "#error-midstream", "#bad-json"]
DEAD_ACCOUNT = {
    "credit": "Your credit balance is too low to access the API.",
    "deactivated": "This organization has been disabled.",
    "terminated": "Your access was terminated due to violation of our policies.",
    "denied": "Permission denied: consumer has been suspended.",
    "expired": "API key expired. Please renew the API key.",
    "chinese": "该账户已欠费",
    "quota": "You exceeded your current quota, please check your plan.",
    "aws": "The security token included in the request is invalid.",
    "operation": "Operation not allowed",
    "account": "Your account is not authorized to invoke this API operation.",
}


def ask(gateway: GatewayProcess, said: str, **fields: Any) -> requests.Response:
    answer: requests.Response = gateway.post(question(said, **fields))
    return answer


def streamed(gateway: GatewayProcess, said: str) -> requests.Response:
    """As a relay asks: a stream with usage."""
    return ask(gateway, said, stream=True, stream_options={"include_usage": True})


def text_of(answer: requests.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"] or "")


def data_lines(answer: requests.Response) -> list[str]:
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


@pytest.mark.parametrize("said", ANSWERS)
def test_one_api_reads_every_line_of_a_stream(gateway: GatewayProcess, said: str) -> None:
    answer = streamed(gateway, said)
    relayed = one_api_stream(answer)
    assert relayed.undecodable == []
    assert len(relayed.forwarded) == len(data_lines(answer))
    assert relayed.forwarded[-1] == "[DONE]"
    assert relayed.usage is not None
    assert relayed.usage.total_tokens > 0
    assert len(relayed.finishes) == (2 if "#n:2" in said else 1)


def test_one_api_counts_the_text_that_was_said(gateway: GatewayProcess) -> None:
    whole = text_of(ask(gateway, "#long:300"))
    assert one_api_stream(streamed(gateway, "#long:300")).text == whole


@pytest.mark.parametrize("said", ["#big:200", "#big:200 #burst"])
def test_one_api_loses_nothing_of_a_huge_piece(gateway: GatewayProcess, said: str) -> None:
    answer = streamed(gateway, said)
    relayed = one_api_stream(answer)
    assert max(map(len, answer.content.split(b"\n"))) < 48 * 1024 < ONE_API_LINE
    assert len(relayed.text) == 200 * 1024
    assert relayed.finishes == ["stop"]


def test_one_api_loses_nothing_of_huge_arguments(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    arguments = json.dumps({"text": "字" * 40_000})
    call = {"index": 0, "id": "c", "type": "function"}
    call |= {"function": {"name": "f", "arguments": arguments}}
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
    upstream.script({"steps": [{"send": f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"}]})
    relayed = one_api_stream(streamed(gateway, "hi"))
    calls = [
        call
        for data in relayed.forwarded[:-1]
        for choice in json.loads(data)["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert "".join(call["function"]["arguments"] for call in calls) == arguments
    assert relayed.finishes == ["stop"]


@pytest.mark.parametrize("said", BROKEN)
def test_broken_stream_reaches_people_behind_one_api(gateway: GatewayProcess, said: str) -> None:
    relayed = one_api_stream(streamed(gateway, said))
    assert relayed.undecodable == []
    assert len(relayed.errors) == 1
    assert relayed.errors[0]["message"]
    assert relayed.errors[0]["message"] in relayed.text  # for front ends that ignore `error`
    assert relayed.finishes == []
    assert "[DONE]" not in relayed.forwarded


def test_keep_alive_passes_through_one_api(gateway: GatewayProcess) -> None:
    relayed = one_api_stream(streamed(gateway, "#silent:4"))
    deltas = [json.loads(data)["choices"] for data in relayed.forwarded[:-1]]
    fillers = [c for c in deltas if c and c[0]["delta"] == {} and c[0]["finish_reason"] is None]
    assert len(fillers) >= 2
    assert relayed.finishes == ["stop"]


@pytest.mark.parametrize("said", ANSWERS)
@pytest.mark.parametrize("asked", [True, False])
def test_new_api_finds_usage_in_the_last_line_and_loses_no_other(
    gateway: GatewayProcess, said: str, asked: bool
) -> None:
    answer = streamed(gateway, said)
    whole = one_api_stream(answer)
    relayed = new_api_stream(answer, asked)
    assert relayed.usage is not None
    assert relayed.usage.total_tokens > 0
    assert relayed.text == whole.text
    assert relayed.finishes == whole.finishes
    *_, last, done = data_lines(answer)
    assert (json.loads(last)["choices"], done) == ([], "[DONE]")


@pytest.mark.parametrize("said", ANSWERS)
def test_finish_stands_apart_from_usage_and_tool_calls(gateway: GatewayProcess, said: str) -> None:
    for data in data_lines(streamed(gateway, said))[:-1]:
        chunk = json.loads(data)
        for choice in chunk["choices"]:
            if choice["finish_reason"]:
                assert choice["delta"] == {}
                assert chunk.get("usage") is None


def test_new_api_never_sees_an_error_key_in_a_sound_stream(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    said = '{"choices":[{"index":0,"delta":{"content":"Hi"}}],"error":null}'
    upstream.script({"steps": [{"send": f"data: {said}\n\ndata: [DONE]\n\n"}]})
    answer = streamed(gateway, "hi")
    assert one_api_stream(answer).text == "Hi"
    assert '"error"' not in answer.text


@pytest.mark.parametrize("said", [a for a in ANSWERS if a not in ("#tools", "#json-for-stream")])
def test_whole_answer_decodes_by_type(gateway: GatewayProcess, said: str) -> None:
    answer = ask(gateway, said)
    whole = msgspec.json.decode(answer.content, type=Whole)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert whole.usage.total_tokens > 0
    assert "error" not in answer.json()


def not_banned(answer: requests.Response) -> None:
    error = read_error(answer)
    assert not one_api_bans(answer.status_code, error), error
    assert not new_api_bans(answer.status_code, error), error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", FAULTS)
def test_fault_of_an_upstream_bans_no_channel_and_is_tried_elsewhere(
    gateway: GatewayProcess, said: str, stream: bool
) -> None:
    answer = ask(gateway, said, stream=stream)
    not_banned(answer)
    assert one_api_retries(answer.status_code)
    assert new_api_retries(answer.status_code)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 422, 429, 500, 503, 504, 524])
def test_dead_account_of_the_operator_bans_no_channel(
    gateway: GatewayProcess, upstream: OpenAICompat, status: int, stream: bool
) -> None:
    for kind, words in DEAD_ACCOUNT.items():
        error = {"message": words, "type": "insufficient_quota", "code": "invalid_api_key"}
        upstream.script({"status": status, "body": {"error": error}})
        answer = ask(gateway, "hi", stream=stream)
        assert answer.status_code >= 400, kind
        not_banned(answer)
        if status not in (400, 404, 422):
            assert one_api_retries(answer.status_code)
            assert new_api_retries(answer.status_code)


@pytest.mark.parametrize("words", DEAD_ACCOUNT.values(), ids=DEAD_ACCOUNT.keys())
def test_dead_account_told_with_a_success_bans_no_channel(
    gateway: GatewayProcess, upstream: OpenAICompat, words: str
) -> None:
    body = {"error": {"message": words, "type": "permission_error", "code": "account_deactivated"}}
    upstream.script({"status": 200, "body": body})
    not_banned(ask(gateway, "hi"))
    upstream.script({"steps": [{"send": f"data: {json.dumps(body)}\n\n"}]})
    not_banned(ask(gateway, "hi", stream=True))
    begun = json.dumps({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})
    steps = [{"send": f"data: {begun}\n\n"}, {"pause": 0.1}]
    upstream.script({"steps": [*steps, {"send": f"data: {json.dumps(body)}\n\n"}]})
    relayed: Relayed = one_api_stream(ask(gateway, "hi", stream=True))
    assert len(relayed.errors) == 1
    assert words not in relayed.text
    assert relayed.errors[0]["code"] != "account_deactivated"


ONE_API_TEST = "Output only your specific model name with no additional text."
MODELS = ["up/emu-small", "emu-small", "up/emu-small#reasoning", "up/emu-small#empty"]


@pytest.mark.parametrize("model", MODELS)
def test_one_api_finds_the_channel_in_order(gateway: GatewayProcess, model: str) -> None:
    began = time.monotonic()
    answer = ask(gateway, ONE_API_TEST, model=model)
    assert time.monotonic() - began < 5  # its default threshold
    assert answer.status_code == 200
    whole = msgspec.json.decode(answer.content, type=Whole)
    assert isinstance(whole.choices[0].message.content, str)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("limit", [{"max_tokens": 16}, {"max_completion_tokens": 16}])
def test_new_api_finds_the_channel_in_order(
    gateway: GatewayProcess, model: str, limit: dict[str, int]
) -> None:
    answer = ask(gateway, "hi", model=model, stream=False, **limit)
    assert answer.status_code == 200
    assert "error" not in answer.json()
    assert msgspec.json.decode(answer.content, type=Whole).usage.total_tokens > 0
    stream = ask(
        gateway, "hi", model=model, stream=True, stream_options={"include_usage": True}, **limit
    )
    chunks = [msgspec.json.decode(data, type=Chunk) for data in data_lines(stream)[:-1]]
    assert chunks
    assert '"error"' not in stream.text
    assert chunks[-1].usage is not None
