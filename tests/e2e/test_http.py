"""The service's HTTP manners: JSON errors everywhere, CORS, lenient paths, health, limits."""

import json
import socket

import pytest
import requests

from emulators.openai_compat import OpenAICompat
from tests.canaries import ADMIN_KEY, MARK, UPSTREAM_KEY
from tests.gateway import KEY, GatewayProcess, custom, question


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1/v1/chat/completions",
        "/chat/completions",
        "/v1/object/completions",
        "/proxies/v1/chat/completions",
        "/v1/chat/completions/chat/completions",
    ],
)
def test_every_spelling_of_the_chat_path_answers(gateway: GatewayProcess, path: str) -> None:
    answer = gateway.post(question("#echo hello"), path)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody/has-it", 404, "model_not_found"),
    ],
)
def test_errors_are_openai_objects_with_cors_and_request_id(
    gateway: GatewayProcess, method: str, path: str, status: int, code: str
) -> None:
    answer = requests.request(
        method,
        gateway.url + path,
        headers={"Authorization": f"Bearer {KEY}", "Origin": "https://chat.example"},
        timeout=10,
    )
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("header", ["X-Request-Id", "X-Client-Request-Id"])
@pytest.mark.parametrize("stream", [False, True])
def test_callers_own_request_id_comes_back_beside_ours(
    gateway: GatewayProcess, header: str, stream: bool
) -> None:
    theirs = "123e4567-e89b-12d3-a456-426614174000"
    answers = [
        gateway.post(question("hi", stream=stream), headers={header: theirs}) for _ in range(2)
    ]
    assert {answer.headers["x-client-request-id"] for answer in answers} == {theirs}
    ours = {answer.headers["x-request-id"] for answer in answers}
    assert len(ours) == 2
    assert all(identity.startswith("req_") for identity in ours)


@pytest.mark.parametrize("theirs", ["", "two words", "x" * 513, "é", f"id-{KEY}"])
def test_request_id_that_is_none_is_left_out(gateway: GatewayProcess, theirs: str) -> None:
    headers = {"X-Request-Id": theirs.encode("latin-1")}
    answer = gateway.post(question("hi"), headers=headers)
    assert answer.status_code == 200
    assert "x-client-request-id" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nowhere"])
def test_preflight_names_the_headers_that_were_asked_for(
    gateway: GatewayProcess, path: str
) -> None:
    answer = requests.options(
        gateway.url + path,
        headers={
            "Origin": "https://chat.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
        },
        timeout=10,
    )
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
    assert "x-stainless-os" in answer.headers["Access-Control-Allow-Headers"].lower()
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "api-key"])
@pytest.mark.parametrize(("key", "status"), [(KEY, 200), ("sk-wrong-000000000000", 401), ("", 401)])
def test_all_key_headers_give_the_same_decision(
    gateway: GatewayProcess, header: str, key: str, status: int
) -> None:
    value = f"Bearer {key}" if header == "Authorization" else key
    answer = requests.get(f"{gateway.url}/v1/models", headers={header: value}, timeout=10)
    assert answer.status_code == status


def test_key_is_checked_before_the_body_is_read(gateway: GatewayProcess) -> None:
    answer = gateway.post(b"not json", headers={"Authorization": "Bearer sk-wrong-0000000000"})
    assert answer.status_code == 401


def test_gateway_key_is_never_sent_upstream(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    gateway.post(question("hi"))
    assert upstream.calls[-1].request.headers.get("Authorization") == (f"Bearer {UPSTREAM_KEY}")


def test_oversized_body_is_a_413(gateway: GatewayProcess) -> None:
    answer = gateway.post(b"x" * (33 * 1024 * 1024))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large"


def test_compressed_body_is_a_415(gateway: GatewayProcess) -> None:
    answer = gateway.post(question("hi"), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_slow_body_is_given_up(upstream: OpenAICompat, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    settings = custom(upstream.base_url) | {"server": {"slow_body_timeout": 1}}
    with (
        GatewayProcess(tmp_path_factory.mktemp("slow"), settings) as process,
        socket.create_connection(("127.0.0.1", process.port), timeout=10) as client,
    ):
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n"
            b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n{"
        )
        assert b"408" in client.recv(4096).split(b"\r\n", 1)[0]


def test_health_and_readiness_need_no_key(gateway: GatewayProcess) -> None:
    health = requests.get(f"{gateway.url}/health", timeout=10)
    assert health.json()["status"] in ("ok", "degraded")
    assert health.json()["store"] == {"status": "ok"}
    assert requests.get(f"{gateway.url}/ready", timeout=10).json() == {"ready": True}


def test_stream_has_the_headers_that_keep_proxies_from_buffering(gateway: GatewayProcess) -> None:
    answer = gateway.post(question("hi", stream=True))
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Cache-Control"] == "no-cache"
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert type(json.loads(lines[0][6:])["created"]) is int


def test_prefix_hides_the_bare_routes(upstream: OpenAICompat, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    settings = custom(upstream.base_url) | {"backend_container_api_prefix": "secret-path"}
    with GatewayProcess(tmp_path_factory.mktemp("prefix"), settings) as process:
        bare = process.post(question("hi"))
        prefixed = process.post(question("hi"), "/secret-path/v1/chat/completions")
        assert (bare.status_code, prefixed.status_code) == (404, 200)


def test_key_alone_gives_a_bot_the_form_it_can_show(
    upstream: OpenAICompat, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bots = f"sk-bot-{MARK}-0123456789"
    settings = custom(upstream.base_url)
    settings["auth"] = {
        "keys": [KEY, {"key": bots, "name": "bot", "profile": "bot+markdown_image"}],
        "admin_key": ADMIN_KEY,
    }
    with GatewayProcess(tmp_path_factory.mktemp("profiles"), settings) as process:
        made = process.admin("POST", "/keys", {"name": "cow", "profile": "bot+plain_image"})
        told = {
            key: process.post(
                question("#echo **bold** text"), headers={"Authorization": f"Bearer {key}"}
            ).json()["choices"][0]["message"]["content"]
            for key in (KEY, bots, made["secret"])
        }
        assert list(told.values()) == ["**bold** text", "bold text", "bold text"]
        [_, bot, cow] = process.admin("GET", "/keys")["data"]
        assert (bot["profile"], cow["profile"]) == ("bot+markdown_image", "bot+plain_image")
