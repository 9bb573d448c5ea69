"""Who may call, and whose credential goes upstream."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from tests.canaries import MARK, UPSTREAM_KEY
from tests.gateway import KEY, ROOT, GatewayProcess, free_port, question

STRANGERS = f"sk-{MARK}-of-a-stranger-0123456789"
NOTHING = {"Authorization": ""}
MODELS = ("up/emu-small", "pooled/emu-small", "gpt-4-s")
DRAW = {"model": "gpt-4-s", "prompt": "#dalle"}


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


def settings_for(up: OpenAICompat, web: BackendApi, **auth: Any) -> dict[str, Any]:
    """The operator has a credential of its own for every upstream."""
    entries = [
        {"prefix": "up", "base_url": up.base_url, "api_key": UPSTREAM_KEY},
        {"prefix": "pooled", "base_url": up.base_url, "accounts": [UPSTREAM_KEY]},
        {"prefix": "bare", "base_url": up.base_url},
    ]
    own = {"access_token": web.accounts["alice"].access_token, "calls_per_minute": 0}
    return {
        "auth": auth,
        "upstream_base_url": web.url,
        "use_pandora_file_server": False,
        "providers": {"custom": entries, "backend_api": own},
    }


@pytest.fixture(scope="module")
def gateway(
    openai_upstream: OpenAICompat, web: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """It has a key, and lets callers bring credentials of their own."""
    settings = settings_for(openai_upstream, web, keys=[KEY], passthrough=True)
    with GatewayProcess(tmp_path_factory.mktemp("trust"), settings) as process:
        yield process


def bearers(upstream: OpenAICompat, web: BackendApi) -> list[str]:
    """With what the upstreams were asked."""
    return [call.request.bearer for call in [*upstream.calls, *web.calls("conversation")]]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("model", MODELS)
def test_caller_without_any_credential_is_a_401_though_callers_may_bring_their_own(
    gateway: GatewayProcess, upstream: OpenAICompat, web: BackendApi, model: str
) -> None:
    web.state.calls.clear()
    for headers in (NOTHING, bearer(" "), {"Authorization": "", "x-api-key": ""}):
        for stream in (False, True):
            answer = gateway.post(question("Hi", model, stream=stream), headers=headers)
            assert answer.status_code == 401, answer.text
            assert answer.json()["error"]["message"].startswith("no API key")
        drawn = gateway.post({**DRAW, "model": model}, "/v1/images/generations", headers=headers)
        assert drawn.status_code == 401
    assert requests.get(f"{gateway.url}/v1/models", timeout=10).status_code == 401
    assert bearers(upstream, web) == []


@pytest.mark.parametrize("model", MODELS)
def test_stranger_who_brings_a_credential_spends_it_and_nothing_of_the_operators(
    gateway: GatewayProcess, upstream: OpenAICompat, web: BackendApi, model: str
) -> None:
    web.state.calls.clear()
    brought = web.accounts["bob"].access_token if model == "gpt-4-s" else STRANGERS
    answer = gateway.post(question("Hi", model), headers=bearer(brought))
    assert answer.status_code == 200, answer.text
    assert bearers(upstream, web) == [brought]


@pytest.mark.parametrize("model", MODELS)
def test_key_alone_spends_what_is_the_operators(
    gateway: GatewayProcess, upstream: OpenAICompat, web: BackendApi, model: str
) -> None:
    web.state.calls.clear()
    assert gateway.post(question("Hi", model)).status_code == 200
    operators = web.accounts["alice"].access_token if model == "gpt-4-s" else UPSTREAM_KEY
    assert bearers(upstream, web) == [operators]


@pytest.mark.parametrize("model", MODELS)
def test_holder_of_a_key_may_bring_an_upstream_token_beside_it(
    gateway: GatewayProcess, upstream: OpenAICompat, web: BackendApi, model: str
) -> None:
    web.state.calls.clear()
    brought = web.accounts["bob"].access_token if model == "gpt-4-s" else STRANGERS
    beside = {**bearer(KEY), "X-Upstream-Authorization": f"Bearer {brought}"}
    assert gateway.post(question("Hi", model), headers=beside).status_code == 200
    assert bearers(upstream, web) == [brought]


def test_key_of_ours_never_goes_upstream(gateway: GatewayProcess, upstream: OpenAICompat) -> None:
    assert gateway.post(question("Hi", "bare/emu-small")).status_code == 200
    [call] = upstream.calls
    assert call.request.headers.get("authorization") == ""


def test_key_alone_where_no_account_serves_is_a_neutral_503(tmp_path: Path) -> None:
    """A 401 would make one-api ban the channel for everybody."""
    with BackendApi(seed=1) as web:
        settings = {"auth": {"keys": [KEY], "passthrough": True}, "upstream_base_url": web.url}
        with GatewayProcess(tmp_path, settings) as process:
            for path, body in (
                ("/v1/chat/completions", question("Hi", "gpt-4-s")),
                ("/v1/chat/completions", question("Hi", "gpt-4-s", stream=True)),
                ("/v1/images/generations", DRAW),
            ):
                answer = process.post(body, path)
                assert answer.status_code == 503, answer.text
                error = answer.json()["error"]
                assert "X-Upstream-Authorization" in error["message"]
                assert error["type"] == "service_unavailable_error"
            assert web.log == []


@pytest.fixture(scope="module")
def fresh(
    openai_upstream: OpenAICompat, web: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """An upstream with the operator's key, on 127.0.0.1, and nothing said of who may call."""
    settings = settings_for(openai_upstream, web)
    with GatewayProcess(tmp_path_factory.mktemp("fresh"), settings) as process:
        yield process


@pytest.mark.parametrize("headers", [NOTHING, bearer("sk-made-up")], ids=["none", "made-up"])
def test_first_user_is_told_which_settings_to_choose_from(
    fresh: GatewayProcess, upstream: OpenAICompat, headers: dict[str, str]
) -> None:
    answer = fresh.post(question("Hi", "up/emu-small"), headers=headers)
    assert answer.status_code == 401
    message = answer.json()["error"]["message"]
    assert "auth.keys" in message
    assert "auth.anonymous" in message
    assert upstream.calls == []


def test_start_says_that_nobody_can_use_the_credentials(fresh: GatewayProcess) -> None:
    [line] = [line for line in fresh.log_text().splitlines() if "auth.anonymous" in line]
    assert "WARNING" in line
    assert "nobody can use" in line


@pytest.fixture(scope="module")
def local(
    openai_upstream: OpenAICompat, web: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """`auth.anonymous`, and the operator's credentials."""
    settings = settings_for(openai_upstream, web, anonymous=True)
    with GatewayProcess(tmp_path_factory.mktemp("anonymous"), settings) as process:
        yield process


@pytest.mark.parametrize("headers", [NOTHING, bearer("none")], ids=["none", "made-up"])
@pytest.mark.parametrize("model", MODELS)
def test_anonymous_serves_whoever_calls(
    local: GatewayProcess, model: str, headers: dict[str, str]
) -> None:
    assert local.post(question("Hi", model), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "rebound.example"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Real-IP": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"Via": "1.1 proxy"},
    ],
    ids=lambda headers: "-".join(headers),
)
def test_anonymous_serves_neither_a_web_page_nor_what_a_reverse_proxy_lets_in(
    local: GatewayProcess, upstream: OpenAICompat, headers: dict[str, str]
) -> None:
    body = json.dumps(question("Hi", "up/emu-small")).encode()
    sent = {**NOTHING, "Content-Type": "text/plain", **headers}
    answer = local.post(body, headers=sent)
    assert answer.status_code == 401
    assert "this machine" in answer.json()["error"]["message"]
    assert upstream.calls == []


def test_anonymous_serves_a_page_of_this_machine(local: GatewayProcess) -> None:
    headers = {**NOTHING, "Origin": "http://localhost:3000"}
    assert local.post(question("Hi", "up/emu-small"), headers=headers).status_code == 200


def test_start_refuses_anonymous_beyond_this_machine(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auth": {"keys": [KEY], "anonymous": True}}))
    command = [sys.executable, "-m", "services.server.start", "--host", "0.0.0.0"]
    command += ["--port", str(free_port()), "--config", str(config), "--data", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert "auth.anonymous" in ended.stderr
