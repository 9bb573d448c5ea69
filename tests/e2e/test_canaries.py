"""Secrets in every place where there may be some, every error that upstreams know: none shows.

The gateways log all they can; their store logs too, asks for a password, and is watched.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from emulators.backend_api import BackendApi
from emulators.backend_api_records import Account
from emulators.backend_api_scenarios.failures import SCENES
from emulators.openai_compat import OpenAICompat
from tests.accounts.support import jwt
from tests.canaries import ADMIN_KEY, MARK, STORE_PASSWORD, UPSTREAM_KEY, found
from tests.canary_watch import StoreMonitor
from tests.e2e.test_relays import BROKEN, FAULTS
from tests.gateway import KEY, GatewayProcess, RedisServer, free_port, question

SLOW_SCENES = {"silence", "slow_headers"}
STATUSES = (400, 401, 402, 403, 404, 409, 422, 429, 500, 503)
REFRESH_FAULTS = ("400", "html", "no_token", "not_json", "cut", "reset")
SECOND_KEY = f"{MARK}0123456789abcdef"
POOL_KEYS = (f"pool-{MARK}-first-0123456789", f"sk-{MARK}")
BOTS_OWN = f"bots-own-{MARK}"
ADDED = f"added-0123456789-{MARK}"
GPTS_KEY = f"rt-{MARK}-for-gpts"
VAULT_KEY = base64.urlsafe_b64encode(MARK.ljust(32, "-").encode()).decode()
PROXY = f"http://user:{MARK}-of-proxy@127.0.0.1:{free_port()}"
STRANGERS = {
    "key": f"sk-wrong-{MARK}",
    "bare": f"{MARK}",
    "old": jwt(0.0, MARK),
    "chinese": f"钥匙{MARK}",
    "long": f"{MARK}-" + "x" * 9000,
    "spaces": f"two words {MARK}",
    "account": f"rt-{MARK},acc-{MARK}",
    "list": json.dumps([7, MARK]),
}
BROKEN_LINES = {
    "no colon": f"Authorization Bearer {KEY}",
    "bad name": f"X {MARK}: 1",
}
HEADS = {
    "no scheme": f"Authorization: {KEY}",
    "basic": "Authorization: Basic " + base64.b64encode(f"user:{MARK}".encode()).decode(),
    "blank before colon": f"Authorization : Bearer {KEY}",
    "folded": f"Authorization: Bearer\r\n {KEY}",
    "zero": f"Authorization: Bearer {MARK}\0{MARK}",
    "control": f"Authorization: Bearer {MARK}\x01",
    "latin": f"Authorization: Bearer é{MARK}",
    "in a name": f"X-{MARK}: 1",
    "twice": f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer {MARK}",
    "huge": f"Authorization: Bearer {MARK}{'x' * 20_000}",
    "length": f"Authorization: Bearer {KEY}\r\nContent-Length: {MARK}",
    "cookie": f"Cookie: session={MARK}",
    "request id": f"X-Request-Id: {KEY}",
    "forwarded": f"X-Forwarded-For: {MARK}",
    "key in two": f"x-api-key: {MARK}\r\napi-key: {KEY}",
}


class Watched(GatewayProcess):
    """A gateway that logs all it can and keeps what it knows in the watched store."""

    def __init__(self, folder: Path, store: str, settings: dict[str, Any]) -> None:
        shared = {
            "log_level": "DEBUG",
            "process_workers": 1,  # so that a test knows which token is in use
            "use_pandora_file_server": False,
            "store": {"url": store, "secret_key": VAULT_KEY, "timeout": 5},
            "server": {"commit_window": 1, "keepalive_interval": 1, "idle_timeout": 5},
        }
        super().__init__(folder, shared | settings)

    def ask(self, key: str, model: str, said: str = "Hi", **fields: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}".encode()}
        answer: requests.Response = self.post(question(said, model, **fields), headers=headers)
        return answer

    def both(self, key: str, model: str, said: str = "Hi") -> None:
        for stream in (False, True):
            self.ask(key, model, said, stream=stream)

    def admin(self, method: str, path: str, body: Any = None, key: str = ADMIN_KEY) -> Any:
        answer = requests.request(
            method,
            f"{self.url}/admin/api{path}",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=10,
        )
        return answer.json()

    def make_ready(self) -> None:
        for account in self.admin("GET", "/accounts")["data"]:
            self.admin("POST", f"/accounts/{account['id']}/reset")


@pytest.fixture(scope="module")
def store(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreMonitor]:
    """A store that asks for a password and logs all it can."""
    folder = tmp_path_factory.mktemp("redis")
    options = ("--loglevel", "debug", "--logfile", str(folder / "redis.log"))
    server = RedisServer(folder, *options, password=STORE_PASSWORD, program=program)
    with server, StoreMonitor(server.url) as monitor:
        yield monitor
        monitor.catch_up()
        assert monitor.size > 50_000
        assert (folder / "redis.log").stat().st_size > 1000
        found.look_in_folder("the store", folder)


@pytest.fixture(scope="module")
def up() -> Iterator[OpenAICompat]:
    with OpenAICompat() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        upstream.state.rotate_refresh = True
        yield upstream


@pytest.fixture(scope="module")
def own(
    store: StoreMonitor,
    up: OpenAICompat,
    web: BackendApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """A gateway with keys and credentials of its own."""
    folder = tmp_path_factory.mktemp("own")
    with Watched(folder, store.url, own_keys(up, web)) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def through(
    store: StoreMonitor,
    up: OpenAICompat,
    web: BackendApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """A gateway whose callers bring their credentials."""
    folder = tmp_path_factory.mktemp("through")
    with Watched(folder, store.url, passing_through(up, web)) as gateway:
        yield gateway


def refreshing(web: BackendApi) -> dict[str, Any]:
    return {
        "upstream_base_url": web.url,
        "refresh_ToAccess": {"oauth_token_url": f"{web.url}/oauth/token", "oauth_client_id": "a"},
    }


def own_keys(up: OpenAICompat, web: BackendApi) -> dict[str, Any]:
    tokens = [web.accounts["alice"].refresh_token]
    entry = {"base_url": up.base_url}
    return refreshing(web) | {
        "auth": {"keys": [KEY, {"key": SECOND_KEY, "name": "second"}], "admin_key": ADMIN_KEY},
        "key_for_gpts_info": GPTS_KEY,
        "providers": {
            "backend_api": {"calls_per_minute": 0, "accounts": tokens},
            "custom": [
                {**entry, "prefix": "up", "api_key": UPSTREAM_KEY},
                {**entry, "prefix": "pool", "accounts": list(POOL_KEYS)},
                {**entry, "prefix": "own", "models": ["*"]},
                {**entry, "prefix": "behind", "proxy": PROXY, "api_key": UPSTREAM_KEY},
                {"prefix": "gone", "base_url": f"http://127.0.0.1:{free_port()}/v1"},
            ],
        },
    }


def passing_through(up: OpenAICompat, web: BackendApi) -> dict[str, Any]:
    return refreshing(web) | {
        "auth": {"keys": [KEY], "passthrough": True},
        "providers": {
            "backend_api": {"calls_per_minute": 0},
            "custom": [{"prefix": "up", "base_url": up.base_url}],
        },
    }


def chats_fail_in_every_way(
    gateway: Watched, up: OpenAICompat, key: str, model: str, repeated: str
) -> None:
    """Each marked fault; then each error status, its text repeating the credential."""
    for said in [*FAULTS, *BROKEN]:
        gateway.ask(key, model, said, stream=True)
    for status in STATUSES:
        for body in (
            {"error": {"message": f"bad key {repeated}"}},
            {"detail": [{"msg": repeated}]},
            f"<html>{repeated}</html>",
            f"{repeated}",
        ):
            up.script({"status": status, "body": body, "headers": {"X-Seen": repeated}, "times": 2})
            gateway.both(key, model)
    up.reset()


def web_fails_in_every_way(
    gateway: Watched, web: BackendApi, account: Account, key: str, *, pooled: bool = False
) -> None:
    """Each scene of failure; then each error status, its text repeating the token just used."""
    answers: list[Any] = sorted(set(SCENES) - SLOW_SCENES)
    answers += [{"endpoint": "conversation", "status": status} for status in STATUSES]
    for answer in answers:
        for stream in (False, True):
            if not isinstance(answer, str):
                used = web.calls("conversation")[-1].request.bearer
                assert used in account.access_tokens
                answer["body"] = {"detail": f"bad token {used}"}
            web.script(answer)
            gateway.ask(key, "gpt-4-s", stream=stream)
            if pooled:
                gateway.make_ready()
    with web.state.lock:
        web.state.scripts.clear()


def raw(gateway: Watched, head: str) -> bytes:
    """What comes for a request with such a head."""
    text = f"GET /v1/models HTTP/1.1\r\nHost: h\r\n{head}\r\nConnection: close\r\n\r\n"
    answer = b""
    address = ("127.0.0.1", gateway.port)
    with contextlib.suppress(ConnectionError), socket.create_connection(address, 10) as connection:
        connection.sendall(text.encode("latin-1"))
        while piece := connection.recv(65536):
            answer += piece
    return answer


def strangers_come(gateway: Watched) -> None:
    for secret in STRANGERS.values():
        for name in ("Authorization", "x-api-key", "api-key", "X-Upstream-Authorization"):
            value = f"Bearer {secret}" if "uth" in name else secret
            own = {"Authorization": f"Bearer {KEY}"} if name.startswith("X-") else {}
            for model in ("up/emu-small", "gpt-4-s"):
                headers = own | {name: value.encode()}
                gateway.post(question("Hi", model), headers={"Authorization": None} | headers)


def nothing_showed() -> None:
    """So far; what is written is looked at when a gateway stops, after the last test."""
    leaks = found.take()
    assert not leaks, "\n".join(leaks)


@pytest.fixture(params=["own", "through"])
def gateway(request: pytest.FixtureRequest, own: Watched, through: Watched) -> Watched:
    return own if request.param == "own" else through


def test_every_credential_is_used_and_none_shows(
    own: Watched, through: Watched, up: OpenAICompat, web: BackendApi
) -> None:
    for key in (KEY, SECOND_KEY):
        for model in ("up/emu-small", "pool/emu-small", "gpt-4-s", "behind/emu-small", "gone/x"):
            own.both(key, model)
    used = {call.request.bearer for call in up.calls}
    assert used == {UPSTREAM_KEY, *POOL_KEYS}
    bob = web.accounts["bob"]
    first = bob.refresh_token
    through.both(first, "gpt-4-s")
    web.revoke("bob")
    through.both(first, "gpt-4-s")
    exchanged = [call.json["refresh_token"] for call in web.calls("oauth_token")]
    assert {first, f"rt-bob-1-{MARK}"} <= set(exchanged), "replaced, and the new one used"
    nothing_showed()


@pytest.mark.parametrize("model", ["up/emu-small", "pool/emu-small"])
def test_failing_openai_upstream_makes_no_secret_show(
    own: Watched, up: OpenAICompat, model: str
) -> None:
    repeated = UPSTREAM_KEY if model.startswith("up/") else " ".join(POOL_KEYS)
    chats_fail_in_every_way(own, up, KEY, model, repeated)
    own.make_ready()
    nothing_showed()


def test_openai_upstream_that_fails_with_a_callers_own_key(
    through: Watched, up: OpenAICompat
) -> None:
    mine = f"mine-{MARK}-0123456789"
    through.both(mine, "up/emu-small")
    chats_fail_in_every_way(through, up, mine, "up/emu-small", mine)
    nothing_showed()


def test_failing_web_upstream_makes_no_secret_show(own: Watched, web: BackendApi) -> None:
    web_fails_in_every_way(own, web, web.accounts["alice"], KEY, pooled=True)
    nothing_showed()


def test_web_upstream_that_fails_with_a_callers_own_tokens(
    through: Watched, web: BackendApi
) -> None:
    bob = web.accounts["bob"]
    for token in (bob.refresh_token, bob.issue()):
        assert through.ask(token, "gpt-4-s").status_code == 200
        web_fails_in_every_way(through, web, bob, token)
    nothing_showed()


def test_failing_token_endpoint_makes_no_secret_show(through: Watched, web: BackendApi) -> None:
    for number, answer in enumerate(REFRESH_FAULTS):
        token = f"rt-{MARK}-{number}"
        web.script({"endpoint": "oauth_token", "answer": answer})
        assert through.ask(token, "gpt-4-s").status_code >= 400
        body = {"error": f"rt-again-{MARK}-{number}", "error_description": MARK}
        web.script({"endpoint": "oauth_token", "status": 400 + number, "body": body})
        assert through.ask(f"rt-again-{MARK}-{number}", "gpt-4-s").status_code >= 400
    nothing_showed()


def test_keys_of_strangers_do_not_show(gateway: Watched) -> None:
    strangers_come(gateway)
    nothing_showed()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_odd_head_of_a_request_does_not_show(own: Watched, head: str) -> None:
    found.look("the answer to an odd head", raw(own, head))
    nothing_showed()


def test_admin_api_tells_no_secret(own: Watched) -> None:
    operators_work(own)
    nothing_showed()


def operators_work(gateway: Watched) -> None:
    """Keys, accounts and figures by the admin API, right and wrong."""
    made = gateway.admin(
        "POST", "/keys", {"name": "bot", "provider_keys": {"custom": BOTS_OWN}, "models": ["*"]}
    )
    gateway.both(made["secret"], "own/emu-small")
    gateway.both(made["secret"], "own/emu-small", "#401")
    changes = {"provider_keys": {"custom": f"{BOTS_OWN}-new"}}
    gateway.admin("PATCH", f"/keys/{made['key']['id']}", changes)
    for account in (
        {"provider": "custom/pool", "token": ADDED, "name": "added"},
        {"provider": "backend_api", "token": f"rt-{ADDED}", "account": "acc"},
        {"provider": "nobody", "token": ADDED},
        {"provider": "custom/pool", "token": [ADDED]},
        {"provider": "custom/pool", "tokens": ADDED},
        {"provider": "custom/pool", "token": ADDED, "weight": ADDED},
    ):
        gateway.admin("POST", "/accounts", account)
    gateway.make_ready()
    for path in ("/keys", "/accounts", "/config", "/health", "/usage", "/openapi.json"):
        gateway.admin("GET", path)
        gateway.admin("GET", path, key=f"wrong-{MARK}")
    gateway.admin("POST", "/keys", {"name": "x", "provider_keys": {"custom": [BOTS_OWN]}})
    gateway.admin("DELETE", f"/keys/{made['key']['id']}")


@pytest.fixture
def alone(up: OpenAICompat, web: BackendApi, tmp_path: Path) -> Iterator[Watched]:
    """A gateway with an embedded store, which nobody else uses."""
    settings = own_keys(up, web) | {"store": {}, "process_workers": 1}
    gateway = Watched(tmp_path, "", settings).start()
    yield gateway
    gateway.stop()


def showed(gateway: Watched) -> str:
    """What has shown, in its files too."""
    gateway.stop()
    return "\n".join(found.take())


@pytest.mark.parametrize("head", BROKEN_LINES.values(), ids=BROKEN_LINES.keys())
def test_line_that_is_no_header_does_not_show(alone: Watched, head: str) -> None:
    found.look("the answer to an odd head", raw(alone, head))
    assert showed(alone) == ""


def test_key_that_an_upstream_repeats_beside_its_message_does_not_show(
    alone: Watched, up: OpenAICompat
) -> None:
    for field in ("type", "code", "param"):
        for status in (400, 404, 409, 422):
            error = {"message": "no", field: f"the key {UPSTREAM_KEY}"}
            up.script({"status": status, "body": {"error": error}})
            assert alone.ask(KEY, "up/emu-small").status_code == status
    assert showed(alone) == ""
