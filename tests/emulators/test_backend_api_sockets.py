"""The `backend-api` emulator's socket variant, read by a foreign WebSocket client."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import websocket
from backend_api_client import TIMEOUT, call, decoded, payload, read, say, sse_data, told
from test_backend_api import confirm

from emulators import backend_api_frames as frames
from emulators.backend_api import BackendApi

HELLO = [("assistant", "text", "Hello world!")]


@pytest.fixture
def upstream() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as server:
        yield server
    assert server.errors == []


def connect(url: str) -> websocket.WebSocket:
    return websocket.create_connection(url, timeout=TIMEOUT)


def contents(connection: websocket.WebSocket) -> Iterator[dict[str, Any]]:
    """The frames' inner objects, flat or nested, up to the caller's patience."""
    while text := connection.recv():
        frame = json.loads(text)
        yield frame.get("data", frame)


def listen(connection: websocket.WebSocket, response_id: str) -> tuple[list[dict[str, Any]], int]:
    """The events of one response, and how many frames were of others."""
    data: list[str] = []
    foreign = 0
    for content in contents(connection):
        if content["response_id"] != response_id:
            foreign += 1
            continue
        data += sse_data(base64.b64decode(content["body"]))
        if data[-1] == "[DONE]":
            break
    return decoded(data), foreign


@pytest.mark.parametrize("transport", ["socket_flat", "socket_nested"])
@pytest.mark.parametrize("name", ["plain", "code", "dalle"])
def test_socket_tells_what_sse_tells(upstream: BackendApi, name: str, transport: str) -> None:
    expected = told(read(say(upstream, f"#{name}")))
    upstream.script({"scenario": name, "transport": transport, "fragments": 3})
    answer = say(upstream).json()
    connection = connect(answer["wss_url"])
    events, foreign = listen(connection, answer["response_id"])
    connection.close()
    assert told(events) == expected
    assert foreign == len(events)
    assert {event["conversation_id"] for event in events} == {answer["conversation_id"]}
    assert upstream.problems == []


def test_nested_frames_are_numbered_and_end_with_done(upstream: BackendApi) -> None:
    answer = say(upstream, "#plain[transport=socket_nested,foreign=false]").json()
    connection = connect(answer["wss_url"])
    outer = [json.loads(connection.recv()) for _ in range(9)]
    connection.close()
    assert [frame["sequenceId"] for frame in outer] == list(range(1, 10))
    assert {frame["data"]["type"] for frame in outer} == {"http.response.body"}
    assert [frame["data"]["more_body"] for frame in outer] == [True] * 8 + [False]
    assert base64.b64decode(outer[-1]["data"]["body"]) == b"data: [DONE]\n\n"


def register(upstream: BackendApi) -> websocket.WebSocket:
    answer = call(upstream, "POST", "/backend-api/register-websocket").json()
    connection = connect(answer["wss_url"])
    assert upstream.wait(lambda: upstream.state.tickets.open_registered("alice") != "")
    return connection


def test_sockets_registered_before_receive_every_response(upstream: BackendApi) -> None:
    connections = [register(upstream), register(upstream)]
    upstream.script({"scenario": "plain", "transport": "socket_flat", "times": 2})
    answers = [say(upstream).json() for _ in connections]
    for connection, answer in zip(connections, answers, strict=True):
        events, _ = listen(connection, answer["response_id"])
        assert told(events) == HELLO
        connection.close()


def test_socket_registered_after_the_answer_receives_it(upstream: BackendApi) -> None:
    answer = say(upstream, "#plain[transport=socket_flat,wss_url=false]").json()
    assert "wss_url" not in answer
    connection = register(upstream)
    assert told(listen(connection, answer["response_id"])[0]) == HELLO
    connection.close()


def test_confirmed_action_goes_on_over_the_same_socket(upstream: BackendApi) -> None:
    answer = say(upstream, "#action_json").json()
    connection = connect(answer["wss_url"])
    events, _ = listen(connection, answer["response_id"])
    asked = next(event for event in events if "confirm_action" in str(event))
    allowed = confirm(upstream, asked, "always_allow").json()
    assert allowed["wss_url"] == answer["wss_url"]
    assert allowed["response_id"] != answer["response_id"]
    events, _ = listen(connection, allowed["response_id"])
    assert told(events)[-1] == ("assistant", "text", "Sunny, 21 degrees.")
    connection.close()


def test_cut_closes_the_socket_without_a_close_frame(upstream: BackendApi) -> None:
    answer = say(upstream, "#cut_event[transport=socket_flat]").json()
    connection = connect(answer["wss_url"])
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        listen(connection, answer["response_id"])
    connection.shutdown()


def test_missing_done_is_a_close_frame(upstream: BackendApi) -> None:
    answer = say(upstream, "#cut_no_done[transport=socket_flat]").json()
    connection = connect(answer["wss_url"])
    opcodes = [connection.recv_data(control_frame=True)[0] for _ in range(6)]
    assert opcodes[0] == frames.PING
    assert opcodes[-1] == frames.CLOSE
    connection.shutdown()


def test_ping_is_answered_in_silence_and_leaving_is_seen(upstream: BackendApi) -> None:
    answer = say(upstream, "#silence[transport=socket_flat,foreign=false]").json()
    connection = connect(answer["wss_url"])
    connection.ping("otter")
    opcode, data = 0, b""
    while opcode != frames.PONG:
        opcode, data = connection.recv_data(control_frame=True)
    assert data == b"otter"
    connection.shutdown()  # no close frame
    exchange = upstream.calls("websocket")[0].exchange
    assert upstream.wait(lambda: exchange.aborted_at is not None, 2)


def test_errors_come_as_http_even_where_a_socket_is_due(upstream: BackendApi) -> None:
    assert say(upstream, "#cap_429[transport=socket_flat]").status_code == 429


def test_unknown_ticket_is_refused(upstream: BackendApi) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        connect(upstream.url.replace("http", "ws") + "/ws/nobody-1")
    assert requests.get(upstream.url + "/ws/nobody-1", timeout=TIMEOUT).status_code == 400


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frame_lengths(size: int) -> None:
    mask = bytes(4)
    sent = bytearray(frames.frame(frames.TEXT, b"a" * size))
    sent[1] |= 0x80
    head = len(sent) - size
    masked = bytes(sent[:head]) + mask + bytes(sent[head:])
    reader = frames.FrameReader()
    assert list(reader.feed(masked[:3])) == []
    assert list(reader.feed(masked[3:])) == [(frames.TEXT, b"a" * size)]


def test_command_line_serves_until_told_to_stop() -> None:
    command = [sys.executable, "-m", "emulators", "backend_api", "--port", "0", "--seed", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        token = process.stdout.readline().split()[-1]
        assert token == "rt-alice"
        state = requests.get(f"{url}/_ctl/state", timeout=TIMEOUT).json()
        bearer = {"Authorization": f"Bearer {state['accounts']['alice']['access_token']}"}
        path = f"{url}/backend-api/conversation"
        answer = requests.post(path, json=payload(), headers=bearer, timeout=TIMEOUT)
        assert told(read(answer)) == HELLO
    finally:
        process.terminate()
        started = time.monotonic()
        assert process.wait(TIMEOUT) == 0
        process.stdout.close()
    assert time.monotonic() - started < TIMEOUT
