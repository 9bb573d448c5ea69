"""The `backend-api` emulator's conversations say on the wire what their scenario promises."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from backend_api_client import call, decoded, message, payload, read, say, sse_data, told

from emulators.backend_api import SCENARIOS, SCENES, BackendApi
from emulators.backend_api_scenarios.actions import ACTION


@pytest.fixture
def upstream() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as server:
        yield server
    assert server.errors == []


TEXTS = {
    "plain": ["Hello world!"],
    "tail_in_finished": ["Hello world!"],
    "two_messages": ["First answer", "Second message text"],
    "parentheses": ["f(x) = (1 + 2) [see](https://ex.com/a) (sandy) not (a link)"],
    "open_parenthesis_end": ["f(x) = 1 ("],
    "backticks_and_data_prefix": [
        "Send `data: {}`:\n```\ndata: [DONE]\n\ndata: x\n```\nevent: ping\n"
    ],
    "chinese": ["你好，世界。水獭🦦很可爱"],
    "o1_thinking": ["Counting the otters", "There are three."],
    "code": ["print(1)", "1\n", "It is 1."],
    "code_twice": ["a()", "1", "b()", "2", "End"],
    "plot": ["plot()", "<<ImageDisplayed>>", "Here is"],
    "browsing": [
        'search("x")',
        "# 【5†Sky†ex.com】\nBROWSER RESULT",
        "QUOTED PAGE",
        "Sky is blue【5†source】.",
    ],
    "marks_in_delta": ["Blue yes【5†source】 and more【6†source】."],
    "marks_unclosed": ["Sky【not a mark】 ends【5†sou"],
    "sandbox_unicode": ["[报告](sandbox:/mnt/data/季度 报告.csv)"],
    "noise": ["Hello world!", "HOLOGRAM"],
    "byte_by_byte": ["Hello world!"],
    "random_pieces": ["Hello world!"],
    "crlf": ["Hello world!"],
    "empty": [""],
}


@pytest.mark.parametrize("name", TEXTS)
def test_scenario_tells_its_text(upstream: BackendApi, name: str) -> None:
    upstream.script(name)
    events = read(say(upstream))
    messages = told([event for event in events if (event.get("message") or {}).get("content")])
    assert [text for _, _, text in messages] == TEXTS[name]
    assert upstream.problems == []


def test_events_are_cumulative_between_system_message_and_title(upstream: BackendApi) -> None:
    events = read(say(upstream, "tell me"))
    roles = [e["message"]["author"]["role"] for e in events if "message" in e]
    assert roles == ["system", "user"] + ["assistant"] * 4
    texts = [e["message"]["content"]["parts"][0] for e in events[2:6]]
    assert texts == ["Hel", "Hello world", "Hello world!", "Hello world!"]
    assert events[1]["message"]["content"]["parts"] == ["tell me"]
    last = events[5]["message"]
    assert (last["status"], last["end_turn"]) == ("finished_successfully", True)
    assert last["metadata"]["finish_details"]["type"] == "stop"
    assert last["metadata"]["model_slug"] == "gpt-4"
    assert [events[6]["is_completion"], events[7]["type"]] == [True, "title_generation"]


def test_deltas_tell_only_what_changes(upstream: BackendApi) -> None:
    upstream.script({"scenario": "tail_in_finished", "encoding": "v1"})
    body = say(upstream).content.decode()
    assert body.startswith('event: delta_encoding\ndata: "v1"\n\nevent: delta\ndata: {"p": "",')
    deltas = [e for e in decoded(sse_data(body.encode())) if "v" in e]
    assert [d["c"] for d in deltas if "c" in d] == [0, 1, 2]
    assert [d["v"]["message"]["author"]["role"] for d in deltas[:3]] == [
        "system",
        "user",
        "assistant",
    ]
    assert deltas[2]["v"]["message"]["content"]["parts"] == [""]
    assert deltas[3:5] == [
        {"p": "/message/content/parts/0", "o": "append", "v": "Hel"},
        {"v": "lo world"},
    ]
    last = deltas[5]
    assert (last["p"], last["o"]) == ("", "patch")
    assert {"p": "/message/content/parts/0", "o": "append", "v": "!"} in last["v"]
    assert {"p": "/message/status", "o": "replace", "v": "finished_successfully"} in last["v"]
    assert len(deltas) == 6
    assert body.endswith("data: [DONE]\n\n")


def test_marker_chooses_scenario_and_options(upstream: BackendApi) -> None:
    response = say(upstream, "please #long[size=1000,events=10] #unknown")
    events = read(response)
    growing = [e for e in events if (e.get("message") or {}).get("status") == "in_progress"]
    assert len(growing) == 10
    assert len(told(events)[0][2]) == 1000
    assert upstream.calls("conversation")[0].scenario == "long"


def test_step_regroups_tokens(upstream: BackendApi) -> None:
    upstream.script({"scenario": "plain", "step": 1})
    growing = [
        e["message"]["content"]["parts"][0]
        for e in read(say(upstream))
        if (e.get("message") or {}).get("status") == "in_progress"
    ]
    assert growing == ["Hell", "Hello", "Hello worl", "Hello world", "Hello world!"]


@pytest.mark.parametrize(
    ("name", "status", "inside"),
    [
        ("cap_429", 429, '"clears_in": 252, "code": "model_cap_exceeded"'),
        ("string_429", 429, '{"detail": "Only one message'),
        ("html_403", 403, "<!DOCTYPE html>"),
        ("account_deactivated", 403, '"code": "account_deactivated"'),
        ("token_expired_401", 401, '"code": "token_expired"'),
        ("not_found_404", 404, '"code": "conversation_not_found"'),
        ("error_500", 500, "Internal Server Error"),
        ("error_502", 502, "502 Bad Gateway"),
        ("json_error_200", 200, '"code": "model_cap_exceeded"'),
    ],
)
def test_error_answer(upstream: BackendApi, name: str, status: int, inside: str) -> None:
    response = say(upstream, f"#{name}")
    assert response.status_code == status
    assert inside in response.text
    assert not response.text.endswith("\n\n")


@pytest.mark.parametrize("name", ["cut_event", "cut_utf8", "reset_in_stream", "cut_at_start"])
def test_broken_stream_ends_without_its_last_chunk(upstream: BackendApi, name: str) -> None:
    with pytest.raises(requests.RequestException):
        _ = say(upstream, f"#{name}").content


def test_cut_utf8_breaks_within_a_character(upstream: BackendApi) -> None:
    upstream.script({"scenario": "cut_utf8", "framing": "close"})
    body = say(upstream).content
    assert "你好".encode() in body
    with pytest.raises(UnicodeDecodeError):
        body.decode()


def test_stream_without_done_ends_properly(upstream: BackendApi) -> None:
    data = sse_data(say(upstream, "#cut_no_done").content)
    assert '"Hello"' in data[-1]


def test_error_event_is_the_only_event(upstream: BackendApi) -> None:
    events = read(say(upstream, "#error_event"))
    assert [event["message"] for event in events] == [None]
    assert events[0]["error"].startswith("Something went wrong")


@pytest.mark.parametrize(("name", "reason"), [("max_tokens", "max_tokens"), ("plain", "stop")])
def test_finish_details(upstream: BackendApi, name: str, reason: str) -> None:
    finished = [e for e in read(say(upstream, f"#{name}")) if "finish_details" in str(e)]
    assert [e["message"]["metadata"]["finish_details"]["type"] for e in finished] == [reason]


def test_noise_has_heartbeats_crlf_and_nulls(upstream: BackendApi) -> None:
    body = say(upstream, "#noise").content
    assert b"event: ping\r\ndata: 2024-02-11 10:15:00.123456\r\n\r\n" in body
    assert b'data: {"message": null' in body
    assert b"hologram" in body


def test_delays_come_where_asked(upstream: BackendApi) -> None:
    upstream.script({"scenario": "silence", "seconds": 0.3, "headers_delay": 0.2})
    start = time.monotonic()
    response = say(upstream)
    headers_at = time.monotonic() - start
    read(response)
    assert headers_at >= 0.2
    assert time.monotonic() - start >= 0.5


def test_leaving_client_is_seen_at_once(upstream: BackendApi) -> None:
    response = say(upstream, "#silence")
    next(response.iter_content(10))
    response.close()
    exchange = upstream.calls("conversation")[0].exchange
    assert upstream.wait(lambda: exchange.aborted_at is not None, 2)


def test_hundred_streams_at_once(upstream: BackendApi) -> None:
    upstream.script({"scenario": "plain", "delay": 0.05, "times": 0})
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: told(read(say(upstream))), range(100)))
    assert answers == [[("assistant", "text", "Hello world!")]] * 100
    assert len({c.conversation_id for c in upstream.calls("conversation")}) == 100


def test_action_goes_on_once_confirmed(upstream: BackendApi) -> None:
    events = read(say(upstream, "#action_sse", model="gpt-4-gizmo", **GIZMO))
    asked = next(e for e in events if "confirm_action" in str(e))
    response = confirm(upstream, asked, "always_allow")
    assert told(read(response)) == [
        (ACTION, "text", '{"ACTION RESULT":"sunny"}'),
        ("assistant", "text", "Sunny, 21 degrees."),
    ]
    assert upstream.calls("conversation")[1].problems == []
    assert confirm(upstream, asked, "always_allow").status_code == 404


GIZMO = {
    "conversation_mode": {
        "kind": "gizmo_interaction",
        "gizmo_id": "g-1",
        "gizmo": {"gizmo": {"id": "g-1"}},
    }
}


def confirm(upstream: BackendApi, asked: dict, kind: str) -> requests.Response:
    question = asked["message"]["metadata"]["jit_plugin_data"]["from_server"]["body"]
    chosen = next(a for a in question["actions"] if a["type"] == kind)[kind]
    data = {"type": kind, "operation_hash": chosen["operation_hash"]}
    action = {"data": data, "target_message_id": chosen["target_message_id"]}
    metadata = {"jit_plugin_data": {"from_client": {"user_action": action}}}
    body = {
        "action": "next",
        "conversation_id": asked["conversation_id"],
        "parent_message_id": asked["message"]["id"],
        "model": "gpt-4-gizmo",
        "arkose_token": None,
        "messages": [message("", "tool", metadata=metadata, recipient="all")],
        **GIZMO,
    }
    return call(upstream, "POST", "/backend-api/conversation", json=body)


def test_refused_payload_is_422(upstream: BackendApi) -> None:
    wrong = payload()
    wrong["messages"][0]["content"]["parts"] = [[{"type": "text", "text": "Hi"}]]
    response = call(upstream, "POST", "/backend-api/conversation", json=wrong)
    assert response.status_code == 422
    assert "holds something else" in upstream.problems[0]


def test_odd_payload_is_answered_and_noted(upstream: BackendApi) -> None:
    twin = message()
    odd = payload(supported_encodings=["v1"], messages=[twin, twin], model="o1-mini")
    assert call(upstream, "POST", "/backend-api/conversation", json=odd).status_code == 200
    problems = "\n".join(upstream.problems)
    assert "supported_encodings is not a key of this request" in problems
    assert "message ids repeat" in problems
    assert "force_use_sse is not True for an o1 model" in problems


def test_every_situation_names_scenarios_that_exist(upstream: BackendApi) -> None:
    assert sorted(SCENARIOS) == list(range(1, 43))
    endpoints = {"blob_put", "file_uploaded", "oauth_token", "applelogin", "ninja_refresh", "gizmo"}
    for name in (name for names in SCENARIOS.values() for name in names):
        endpoint, _, answer = name.partition(":")
        assert name in SCENES or endpoint in endpoints | {"client"}, name
        assert name in SCENES or answer
    with pytest.raises(ValueError, match="no such scenario: nonsense"):
        upstream.script("nonsense")


def test_control_plane_scripts_logs_and_resets(upstream: BackendApi) -> None:
    body = [{"scenario": "code"}, {"scenario": "plain"}]
    assert call(upstream, "POST", "/_ctl/script", json=body).json() == {"queued": 2}
    assert call(upstream, "POST", "/_ctl/script", json={"scenario": "?"}).status_code == 400
    read(say(upstream))
    log = call(upstream, "GET", "/_ctl/log?endpoint=conversation").json()
    assert [(entry["scenario"], entry["status"]) for entry in log] == [("code", 200)]
    assert uuid.UUID(log[0]["conversation_id"])
    state = call(upstream, "GET", "/_ctl/state").json()
    assert state["counters"] == {"conversation": 1}
    assert state["scripts"] == {"conversation": [{"scenario": "plain"}]}
    call(upstream, "POST", "/_ctl/reset")
    assert call(upstream, "GET", "/_ctl/state").json()["counters"] == {}
