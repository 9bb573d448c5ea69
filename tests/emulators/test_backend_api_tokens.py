"""The `backend-api` emulator's tokens, gizmos, arkose endpoints and prefixes."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator

import pytest
import requests
from backend_api_client import TIMEOUT, bearer, call, payload, read, say, told

from emulators.backend_api import BackendApi


@pytest.fixture
def upstream() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as server:
        yield server
    assert server.errors == []


def test_bearer_must_be_a_live_access_token(upstream: BackendApi) -> None:
    upstream.revoke("alice")
    assert say(upstream).status_code == 401
    upstream.accounts["alice"].issue(-5)
    assert say(upstream).json()["detail"]["code"] == "token_expired"
    refreshed = refresh(upstream, "rt-alice").json()["access_token"]
    assert refreshed == upstream.accounts["alice"].access_token
    assert say(upstream).status_code == 200


def refresh(upstream: BackendApi, token: str) -> requests.Response:
    body = {
        "grant_type": "refresh_token",
        "refresh_token": token,
        "client_id": "app",
        "redirect_uri": "app://callback",
    }
    return requests.post(f"{upstream.url}/oauth/token", json=body, timeout=TIMEOUT)


def test_three_refresh_endpoints_give_a_token_with_expiry(upstream: BackendApi) -> None:
    form = {"refresh_token": "rt-bob"}
    header = {"Authorization": "Bearer rt-bob"}
    answers = [
        refresh(upstream, "rt-bob"),
        requests.post(f"{upstream.url}/applelogin", data=form, timeout=TIMEOUT),
        requests.post(f"{upstream.url}/ninja/refresh", headers=header, timeout=TIMEOUT),
    ]
    tokens = [answer.json()["access_token"] for answer in answers]
    assert len(set(tokens)) == 3
    for token in tokens:
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        assert token.startswith("eyJhb")
        assert claims["exp"] > time.time() + 3600
    endpoints = ("oauth_token", "applelogin", "ninja_refresh")
    assert [upstream.count(name) for name in endpoints] == [1, 1, 1]
    assert upstream.problems == []


def test_refresh_failures_and_rotation(upstream: BackendApi) -> None:
    named = ("400", "html", "no_token", "not_json", "reset", "rotated")
    upstream.script(*({"endpoint": "oauth_token", "answer": name} for name in named))
    answers = [refresh(upstream, "rt-bob") for _ in named[:4]]
    assert [answer.status_code for answer in answers] == [400, 403, 200, 200]
    assert answers[1].text.startswith("<!DOCTYPE html>")
    assert "access_token" not in answers[2].json()
    with pytest.raises(requests.ConnectionError):
        refresh(upstream, "rt-bob")
    assert refresh(upstream, "rt-bob").json()["refresh_token"] == "rt-bob-1"
    assert refresh(upstream, "rt-bob").status_code == 400
    assert "refresh_token" not in refresh(upstream, "rt-bob-1").json()
    upstream.state.rotate_refresh = True
    assert refresh(upstream, "rt-bob-1").json()["refresh_token"] == "rt-bob-2"


def test_refresh_timeout_sees_the_client_leave(upstream: BackendApi) -> None:
    upstream.script({"endpoint": "applelogin", "answer": "timeout"})
    with pytest.raises(requests.Timeout):
        call(upstream, "POST", "/applelogin", data={"refresh_token": "rt-bob"}, timeout=0.2)
    exchange = upstream.calls("applelogin")[0].exchange
    assert upstream.wait(lambda: exchange.aborted_at is not None)


def test_gizmos_and_workspaces(upstream: BackendApi) -> None:
    info = call(upstream, "GET", "/backend-api/gizmos/g-abc-otter").json()
    assert (info["gizmo"]["id"], info["gizmo"]["display"]["name"]) == ("g-abc", "Gizmo g-abc-otter")
    assert call(upstream, "GET", "/backend-api/gizmos/g-forbidden").status_code == 403
    assert call(upstream, "GET", "/backend-api/gizmos/g-missing").status_code == 404
    assert call(upstream, "GET", "/backend-api/gizmos/g-1", headers={}).status_code == 401
    accounts = call(upstream, "GET", "/backend-api/accounts/check/v4-2023-04-27").json()["accounts"]
    plans = sorted(entry["account"]["plan_type"] for entry in accounts.values())
    assert plans == ["plus", "team"]


def test_arkose_tokens_are_checked(upstream: BackendApi) -> None:
    def arkose(kind: str) -> requests.Response:
        path = f"/arkose/{kind}/api/arkose/token"
        return call(upstream, "POST", path, data={"type": "gpt-4"}, headers={})

    assert arkose("500").status_code == 500
    assert arkose("empty").json() == {"token": ""}
    token = arkose("ok").json()["token"]
    headers = {**bearer(upstream), "Openai-Sentinel-Arkose-Token": token}
    path = "/backend-api/conversation"
    call(upstream, "POST", path, json=payload(arkose_token=token), headers=headers)
    assert upstream.problems == []
    call(upstream, "POST", path, json=payload(arkose_token="made-up"))
    assert len(upstream.problems) == 2


def test_any_prefix_works_unless_one_is_fixed(upstream: BackendApi) -> None:
    path = "/a/b/backend-api/conversation"
    assert call(upstream, "POST", path, json=payload()).status_code == 200
    assert upstream.log[0].prefix == "/a/b"
    with BackendApi(prefix="secret") as fixed:
        assert call(fixed, "POST", path, json=payload()).status_code == 404
        path = "/secret/backend-api/conversation"
        assert told(read(call(fixed, "POST", path, json=payload()))) == [
            ("assistant", "text", "Hello world!")
        ]
    assert call(upstream, "GET", "/backend-api/conversation").status_code == 405
