"""Bad requests get a clear 4xx in OpenAI's shape, and the upstream never hears of them."""

from __future__ import annotations

import copy
import json
import random
import socket
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulators.openai_compat import OpenAICompat
from tests.gateway import KEY, GatewayProcess, question

WRONG: dict[str, Any] = {
    "text": "text",
    "number": 7,
    "fraction": 0.5,
    "true": True,
    "list": [[]],
    "object": {"a": []},
    "null": None,
}
FIELDS = {
    "model": {"text"},
    "messages": set(),
    "stream": {"true", "null"},
    "stream_options": {"object", "null"},
    "n": {"number", "null"},
    "tools": {"null"},
    "tool_choice": {"null", "object"},
    "response_format": {"object", "null"},
}
"""The fields that the gateway acts on, and the kinds of value that each takes."""

HOW_WRONG = [(f, kind) for f, right in FIELDS.items() for kind in WRONG if kind not in right]


def refused(
    gateway: GatewayProcess, upstream: OpenAICompat, body: Any, status: int = 400, **options: Any
) -> dict[str, Any]:
    """The error object of a request that must be refused before it goes anywhere."""
    answer = gateway.post(body, **options)
    assert answer.status_code == status, answer.text[:500]
    error = error_of(answer)
    assert upstream.calls == []
    assert "traceback" not in answer.text.lower()
    return error


def error_of(answer: requests.Response) -> dict[str, Any]:
    """The error object of a refusal; whole, with words, of a sensible length."""
    assert answer.headers["Content-Type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert 5 < len(error["message"]) < 600
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None or 0 < len(error["param"]) <= 200
    return error


def with_message(**fields: Any) -> dict[str, Any]:
    return question("hi") | {"messages": [{"role": "user", "content": "hi"}, fields]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"not json",
        b"{",
        b'{"model":"up/x","messages":[{"role":"user","content":"hi"}]',
        b'{"model":"up/x","messages":[{"role":"user","content":"hi"}]} trailing',
        b"{'model':'up/x'}",
        b'{"model":"up/x",}',
        b"model=up%2Fx&messages=hi",
        b"<xml/>",
        b"\x00",
        b"\x1f\x8b\x08\x00gzip?",
        b'\xef\xbb\xbf{"model":"up/x","messages":[{"role":"user","content":"hi"}]}',
        b'\xff\xfe{\x00"\x00',
        b'{"model":"up/x","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"up/x","messages":[{"role":"user","content":"\xc0\xaf"}]}',
        b'{"model":"up/x","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"model":"up/x","messages":[{"role":"user","content":"a\x00b"}]}',
        b'{"model":"up/x","messages":[{"role":"user","content":"a\nb"}]}',
        b'{"model":"up/x","messages":[{"role":"user","content":"\\x41"}]}',
        b'{"model":"up/x","messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
        b'{"model":"up/x","messages":[{"role":"user","content":"hi"}],"temperature":Infinity}',
        b'{"model":"up/x","messages":[{"role":"user","content":"hi"}],"seed":NaN}',
        b'{"model":"up/x","messages":[{"role":"user","content":"hi"}],"n":01}',
        b'{"model":"up/x","messages":[{"role":"bad"}],"x":',
    ],
)
def test_what_is_not_json_is_refused(
    gateway: GatewayProcess, upstream: OpenAICompat, body: bytes
) -> None:
    error = refused(gateway, upstream, body)
    assert error["code"] in ("invalid_json", "invalid_value")


@pytest.mark.parametrize("body", [[], None, 7, "text", True, [question("hi")]], ids=repr)
def test_what_is_no_object_is_refused(
    gateway: GatewayProcess, upstream: OpenAICompat, body: Any
) -> None:
    error = refused(gateway, upstream, body)
    assert "expected `object`" in error["message"]


@pytest.mark.parametrize(("field", "kind"), HOW_WRONG)
def test_wrong_type_is_refused_by_the_fields_name(
    gateway: GatewayProcess, upstream: OpenAICompat, field: str, kind: str
) -> None:
    error = refused(gateway, upstream, question("hi") | {field: WRONG[kind]})
    assert error["param"].split("[")[0].split(".")[0] == field


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"content": "no role"}, "messages[1].role"),
        ({"role": "wizard", "content": "x"}, "messages[1].role"),
        ({"role": None, "content": "x"}, "messages[1].role"),
        ({"role": "x - at `$.y`", "content": "x"}, "messages[1].role"),
        ({"role": "r" * 100_000, "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": 7}, "messages[1].content"),
        ({"role": "user", "content": {"type": "text"}}, "messages[1].content"),
        ({"role": "user", "content": [7]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{}]}, "messages[1].content[0].type"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]},
            "messages[1].content[1].text",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": 7}]},
            "messages[1].content[0].text",
        ),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            "messages[1].content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]},
            "messages[1].content[0].input_audio.format",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {}}]},
            "messages[1].content[0].file",
        ),
        ({"role": "assistant", "tool_calls": [7]}, "messages[1].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"type": "function"}]},
            "messages[1].tool_calls[0].function",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            "messages[1].tool_calls[0].function.name",
        ),
        ({"role": "tool", "tool_call_id": 7, "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "user", "name": 7, "content": "x"}, "messages[1].name"),
        ("text", "messages[1]"),
        (None, "messages[1]"),
    ],
)
def test_wrong_message_is_named_to_the_part(
    gateway: GatewayProcess, upstream: OpenAICompat, fields: Any, param: str
) -> None:
    body = question("hi")
    body["messages"].append(fields)
    error = refused(gateway, upstream, body)
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_000}, "messages"),
        ({"model": ""}, "model"),
        ({"model": "m" * 10_240}, "model"),
        ({"model": "up/a\r\nX-Injected: 1"}, "model"),
        ({"model": "up/a\nb"}, "model"),
        ({"model": "up/\x1b[31m"}, "model"),
        ({"model": "up/\u2028"}, "model"),
        ({"model": "up/\u202egnp"}, "model"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [7]}, "tools[0]"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"user": "a\x00b"}, "user"),
        ({"user": "half \ud800 pair"}, "user"),
        ({"metadata": {"deep": ["x", "\udfff"]}}, "metadata.deep[1]"),
        ({"metadata": {"\x00": 1}}, "metadata.\\x00"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content"),
        ({"k" * 5_000: "\x00"}, "k" * 200),
        ({"n": 10**30}, "n"),
    ],
)
def test_wrong_value_is_refused_by_the_fields_name(
    gateway: GatewayProcess, upstream: OpenAICompat, fields: dict[str, Any], param: str
) -> None:
    assert refused(gateway, upstream, question("hi") | fields)["param"] == param


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "1" + "0" * 400 + ".5"])
def test_absurd_number_is_refused_by_the_fields_name(
    gateway: GatewayProcess, upstream: OpenAICompat, number: str
) -> None:
    body = json.dumps(question("hi"))[:-1] + f',"n":{number}}}'
    assert refused(gateway, upstream, body.encode())["param"] == "n"


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_absurd_number_in_a_field_we_do_not_read_breaks_nothing(
    gateway: GatewayProcess, number: str
) -> None:
    body = json.dumps(question("hi"))[:-1] + f',"seed":{number}}}'
    answer = gateway.post(body.encode())
    assert answer.status_code in (200, 400)


def test_words_that_ban_a_channel_are_not_repeated(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    for body in (
        with_message(role="credit", content="x"),
        with_message(role="assistant", tool_calls=[{"type": "your balance"}]),
        question("hi") | {"permission denied": "\x00"},
        question("hi") | {"tool_choice": "已欠费"},
    ):
        message = refused(gateway, upstream, body)["message"]
        assert not any(w in message for w in ("credit", "balance", "permission", "已欠费"))


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_deep_nesting_is_refused(
    gateway: GatewayProcess, upstream: OpenAICompat, depth: int, opening: str, closing: str
) -> None:
    deep = opening * depth + "1" + closing * depth
    for inner in (deep, opening * depth):
        body = json.dumps(question("hi"))[:-1] + f',"metadata":{inner}}}'
        error = refused(gateway, upstream, body.encode())
        assert error["code"] == "invalid_json"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 70 + b'"' + b'\\"' * 1_000_000,
        b"[" * 3_000_000 + b"]" * 3_000_000,
        b'{"messages":[' + b"7," * 1_000_000 + b"7]}",
        b'{"messages":[' + b'{"role":"user","content":"x"},' * 100_000 + b"7]}",
        b'{"model":"up/x","user":"\\ud83d\\ude00' + b"\\ud83d\\ude00" * 300_000 + b'\\ud83d"}',
    ],
    ids=["unclosed string", "deep", "wrong items", "wrong last item", "surrogates"],
)
def test_costly_body_is_refused_soon(
    gateway: GatewayProcess, upstream: OpenAICompat, body: bytes
) -> None:
    refused(gateway, upstream, body, timeout=5)


@pytest.mark.parametrize("chunked", [False, True])
def test_huge_body_is_a_413(gateway: GatewayProcess, upstream: OpenAICompat, chunked: bool) -> None:
    huge = b'{"model":"up/x","x":"' + b"x" * (33 * 1024 * 1024) + b'"}'
    data: Any = (huge[i : i + 1_000_000] for i in range(0, len(huge), 1_000_000))
    answer = requests.post(
        f"{gateway.url}/v1/chat/completions",
        data if chunked else huge,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=30,
    )
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "payload_too_large"
    assert upstream.calls == []


def test_unknown_model_is_a_404_that_says_where_to_look(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    error = refused(gateway, upstream, question("hi", "gpt-nobody"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "/v1/models" in error["message"]


def test_duplicate_keys_mean_the_last_here_and_upstream(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    messages = '[{"role":"user","content":"#echo last"}]'
    body = f'{{"model":"nobody","messages":[],"model":"up/m","messages":{messages}}}'
    answer = gateway.post(body.encode())
    assert answer.json()["choices"][0]["message"]["content"] == "last"
    sent = json.loads(upstream.calls[-1].request.body, object_pairs_hook=list)
    assert sorted(key for key, _ in sent) == ["messages", "model"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1.0},
        {"max_tokens": 10.0, "max_completion_tokens": 2**40, "user": 5},
        {"temperature": "warm", "top_p": [], "stop": ["a", 7], "parallel_tool_calls": "no"},
        {"functions": [{}], "function_call": "sometimes", "reasoning_effort": 3},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "any"}}]},
        {"stream_options": {"include_usage": False, "include_obfuscation": False}},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_fields_nobody_acts_on_reach_the_upstream_as_they_came(
    gateway: GatewayProcess, upstream: OpenAICompat, fields: dict[str, Any]
) -> None:
    asked = question("#echo hi") | fields
    gateway.post(asked)
    sent = upstream.calls[-1].request.json()
    assert sent == asked | {"model": sent["model"]}


def test_arguments_that_are_an_object_are_taken(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}
    asked = with_message(role="assistant", tool_calls=[call])
    asked["messages"].reverse()
    assert gateway.post(asked).status_code == 200
    assert upstream.calls[-1].request.json()["messages"] == asked["messages"]


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", ""])
def test_json_is_taken_under_any_content_type(gateway: GatewayProcess, kind: str) -> None:
    answer = gateway.post(question("#echo hi"), headers={"Content-Type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: x\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Bad Header: 1\r\nContent-Length: 0\r\n",
        b"X: " + b"x" * 100_000 + b"\r\n",
    ],
)
def test_broken_http_is_never_a_server_error(gateway: GatewayProcess, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            + f"Authorization: Bearer {KEY}\r\n".encode()
            + head
            + b"\r\n{}{}{}"
        )
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]


VALID: dict[str, Any] = question(
    "#echo hi",
    temperature=0.5,
    stop=["x"],
    n=1,
    user="u",
    metadata={"a": "b"},
    tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    tool_choice="auto",
    response_format={"type": "text"},
)
VALID["messages"] += [
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "6"}]},
    {"role": "user", "content": [{"type": "text", "text": "and now"}]},
]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def put_somewhere(body: Any, value: Any, choose: random.Random) -> Any:
    """The body with `value` in place of something in it."""
    if not isinstance(body, dict | list) or not body or choose.random() < 0.25:
        return value
    key: Any = choose.choice(list(body) if isinstance(body, dict) else range(len(body)))
    body[key] = put_somewhere(body[key], value, choose)
    return body


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(anything, min_size=1, max_size=3), st.integers(0, 2), st.randoms())
def test_no_mutation_of_a_request_is_a_server_error(
    gateway: GatewayProcess, values: list[Any], flips: int, choose: random.Random
) -> None:
    body = copy.deepcopy(VALID)
    for value in values:
        body = put_somewhere(body, value, choose)
    data = bytearray(json.dumps(body).encode())
    for _ in range(flips):
        data[choose.randrange(len(data))] = choose.randrange(256)
    answer = gateway.post(bytes(data), timeout=20)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (bytes(data), answer.text)
    if answer.headers["Content-Type"].startswith("application/json"):
        assert isinstance(answer.json(), dict)
    else:
        assert answer.text.startswith("data: ")
