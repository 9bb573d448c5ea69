"""The admin API over HTTP and through `bin/causeway`, on a real store."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from werkzeug.serving import make_server

from services.api import admin, errors
from services.command_line import main
from services.config import Auth, GatewayKeySetting, Redis, Server, Settings
from services.config.settings import AccountSetting
from services.core.errors import NotFound
from services.core.models import Secret
from services.keys.usage import today
from services.store import Store
from tests.gateway import ROOT, free_port
from tests.keys.support import Desk

ADMIN_KEY = "adm-canary7f3e-0123456789"
CONFIGURED = "sk-configured-canary7f3e-0123456789"
SECRETS = (ADMIN_KEY, CONFIGURED, "redis-canary7f3e-password-0123", "proxy-password")


class Account(msgspec.Struct):
    id: str
    provider: str
    name: str
    state: str = "ready"
    reason: str = ""
    until: float | None = None
    source: str = "settings"


class Accounts:
    """An account book in memory."""

    def __init__(self) -> None:
        cooling = Account(
            "acc_1", "custom", "first", "cooling", "limited upstream", 1_800_000_000.0
        )
        self._accounts = {a.id: a for a in (cooling, Account("acc_2", "custom", "second"))}

    def accounts(self) -> Sequence[Account]:
        return tuple(self._accounts.values())

    def reset(self, account_id: str) -> Account:
        return self._set(account_id, "ready", "")

    def disable(self, account_id: str) -> Account:
        return self._set(account_id, "disabled", "by the operator")

    def add(self, name: str, setting: AccountSetting) -> Account:
        account = Account("acc_3", name, setting.name, source="store")
        self._accounts[account.id] = account
        return account

    def remove(self, account_id: str) -> Account:
        self._set(account_id, "ready", "")
        return self._accounts.pop(account_id)

    def _set(self, account_id: str, state: str, reason: str) -> Account:
        account = self._accounts.get(account_id)
        if account is None:
            raise NotFound("there is no such account", param="id")
        account.state, account.reason, account.until = state, reason, None
        return account


def settings(admin_key: str | None = ADMIN_KEY) -> Settings:
    return Settings(
        auth=Auth(
            keys=(GatewayKeySetting(key=Secret(CONFIGURED), name="relay"),),
            admin_key=Secret(admin_key) if admin_key else None,
        ),
        server=Server(proxies="http://user:proxy-password@proxy.example:3128"),
        redis=Redis(password=Secret("redis-canary7f3e-password-0123")),
    )


class Service:
    """The admin API of one worker, in this process."""

    def __init__(self, store: Store, config: Settings) -> None:
        self.desk = Desk(store, config.auth.keys)
        views = admin.Admin(
            config,
            self.desk.editor,
            self.desk.usage,
            Accounts(),
            lambda: ("custom",),
            lambda: {"status": "ok"},
        )
        self.app = Flask(__name__)
        errors.register(self.app)
        self.app.register_blueprint(admin.blueprint(config, views))
        self.client = self.app.test_client()

    def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.client.open(
            f"/admin/api{path}",
            method=method,
            data=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
        )
        assert answer.status_code == status, answer.text
        assert not any(secret in answer.text for secret in SECRETS)
        return answer.get_json()


@pytest.fixture
def service(store_url: str) -> Iterator[Service]:
    with contextlib.closing(Store(store_url)) as store:
        store.run(lambda c: c.flushdb())
        yield Service(store, settings())


PATHS = [
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("GET", "/keys/key_1"),
    ("PATCH", "/keys/key_1"),
    ("DELETE", "/keys/key_1"),
    ("GET", "/accounts"),
    ("POST", "/accounts"),
    ("DELETE", "/accounts/acc_1"),
    ("POST", "/accounts/acc_1/reset"),
    ("POST", "/accounts/acc_1/disable"),
    ("GET", "/usage"),
    ("GET", "/config"),
    ("GET", "/health"),
    ("GET", "/openapi.json"),
]


class TestDoor:
    @pytest.mark.parametrize(("method", "path"), [*PATHS, ("PUT", "/keys")])
    def test_without_an_admin_key_there_is_no_such_path(self, method: str, path: str) -> None:
        closed = Service(Store(""), settings(admin_key=None))
        answer = closed.client.open(
            f"/admin/api{path}", method=method, headers={"Authorization": f"Bearer {ADMIN_KEY}"}
        )
        assert answer.status_code == 404

    @pytest.mark.parametrize(("method", "path"), PATHS)
    @pytest.mark.parametrize("key", ["", CONFIGURED, ADMIN_KEY[:-1], ADMIN_KEY + "x"])
    def test_other_keys_do_not_open_it(
        self, service: Service, method: str, path: str, key: str
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = service.client.open(f"/admin/api{path}", method=method, headers=headers)
        assert answer.status_code == 401
        assert answer.get_json()["error"]["code"] == "invalid_api_key"

    def test_gateway_key_made_here_is_no_admin_key(self, service: Service) -> None:
        made = service.call("POST", "/keys", {"name": "bot"}, 201)
        headers = {"x-api-key": made["secret"]}
        assert service.client.get("/admin/api/keys", headers=headers).status_code == 401

    def test_key_is_taken_from_the_usual_headers(self, service: Service) -> None:
        for name in ("x-api-key", "api-key"):
            answer = service.client.get("/admin/api/health", headers={name: ADMIN_KEY})
            assert answer.get_json() == {"status": "ok"}


class TestKeys:
    def test_life_of_a_key(self, service: Service) -> None:
        body = {
            "name": "bot",
            "limits": {"requests_per_minute": 5},
            "models": ["gpt-*"],
            "provider_keys": {"custom": "sk-the-bots-own-canary7f3e"},
        }
        made = service.call("POST", "/keys", body, 201)
        secret, key = made["secret"], made["key"]
        assert secret.startswith("sk-cw-")
        assert key["key"] == f"sk-cw-…{secret[-4:]}"
        assert key["provider_keys"] == ["custom"]
        assert key["limits"]["requests_per_minute"] == 5
        assert key["limits"]["tokens_per_day"] is None

        limits = {"requests_per_minute": None, "tokens_per_day": 9}
        changes = {"limits": limits, "always_usage": True}
        changed = service.call("PATCH", f"/keys/{key['id']}", changes)
        assert changed["limits"] == key["limits"] | limits
        assert service.call("GET", f"/keys/{key['id']}") == changed
        assert changed["always_usage"] is True

        [relay, bot] = service.call("GET", "/keys")["data"]
        assert (relay["name"], relay["source"], relay["key"]) == ("relay", "settings", "…6789")
        assert bot == changed
        assert secret not in json.dumps([relay, bot])
        assert service.desk.book.recognise(secret) is not None

        assert service.call("DELETE", f"/keys/{key['id']}")["revoked"] is not None
        assert service.desk.book.recognise(secret) is None
        service.call("PATCH", f"/keys/{key['id']}", {"profile": "bot"}, 409)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "a bot", "profile": "bto"}, "profile"),
            ({"name": "a bot", "profile": "normal+plain_image"}, "profile"),
            ({"name": "x\ny"}, "name"),
            ({"name": "x", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
            ({"name": "x", "limits": {"requests_per_minute": "5"}}, "limits.requests_per_minute"),
            ({"name": "x", "models": [""]}, "models[0]"),
            ({"name": "x", "limit": {}}, None),
        ],
    )
    def test_wrong_body_is_named(self, service: Service, body: Any, param: str | None) -> None:
        error = service.call("POST", "/keys", body, 400)["error"]
        assert error["param"] == param
        if param is None:
            assert "limit" in error["message"]

    def test_unknown_key_is_a_404_and_one_of_the_settings_cannot_change(
        self, service: Service
    ) -> None:
        for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
            service.call(method, "/keys/key_none", body, 404)
        service.call("DELETE", "/keys/settings:relay", None, 409)
        service.call("POST", "/keys", {"name": "relay"}, 409)

    def test_answers_are_not_cached(self, service: Service) -> None:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = service.client.get("/admin/api/keys", headers=headers)
        assert answer.headers["Cache-Control"] == "no-store"

    def test_store_away_is_a_503(self) -> None:
        away = Service(Store(""), settings())
        for path in ("/keys", "/usage"):
            assert away.call("GET", path, None, 503)["error"]["code"] == "unavailable"


class TestTheRest:
    def test_accounts_are_listed_reset_and_disabled(self, service: Service) -> None:
        first, second = service.call("GET", "/accounts")["data"]
        assert (first["state"], first["until"], second["state"]) == ("cooling", 1.8e9, "ready")
        assert service.call("POST", "/accounts/acc_1/reset")["state"] == "ready"
        assert service.call("POST", "/accounts/acc_2/disable")["state"] == "disabled"
        service.call("POST", "/accounts/acc_9/reset", None, 404)

    def test_account_is_added_to_a_known_provider_and_removed(self, service: Service) -> None:
        body = {"provider": "custom", "token": "sk-of-an-upstream-canary7f3e", "name": "third"}
        added = service.call("POST", "/accounts", body, 201)
        assert (added["name"], added["source"]) == ("third", "store")
        assert "sk-of-an-upstream" not in json.dumps(added)
        told = service.call("POST", "/accounts", {**body, "provider": "nobody"}, 400)
        assert "custom" in told["error"]["message"]
        service.call("POST", "/accounts", {**body, "weight": 0}, 400)
        service.call("DELETE", f"/accounts/{added['id']}")
        service.call("DELETE", f"/accounts/{added['id']}", None, 404)

    def test_usage_by_groups_with_names(self, service: Service) -> None:
        key = service.call("POST", "/keys", {"name": "bot"}, 201)["key"]["id"]
        counts = {(key, "small", "requests"): 2, (key, "small", "prompt_tokens"): 30}
        service.desk.usage.count("b1", today(), counts)
        service.desk.usage.count("b2", today() - timedelta(1), {(key, "large", "requests"): 1})
        answer = service.call("GET", "/usage?by=key,model")
        assert answer["names"] == {key: "bot"}
        assert [(row["model"], row["requests"]) for row in answer["data"]] == [
            ("large", 1),
            ("small", 2),
        ]
        [row] = service.call("GET", f"/usage?start={today()}&by=day&model=small")["data"]
        assert (row["day"], row["prompt_tokens"], row["key"]) == (today().isoformat(), 30, None)

    @pytest.mark.parametrize(
        ("query", "param"), [("start=soon", "start"), ("by=week", "by[0]"), ("of=all", None)]
    )
    def test_wrong_query_is_named(self, service: Service, query: str, param: str | None) -> None:
        error = service.call("GET", f"/usage?{query}", None, 400)["error"]
        assert error["param"] == param
        assert "in the query" in error["message"]

    def test_config_is_whole_and_without_secrets(self, service: Service) -> None:
        shown = service.call("GET", "/config")
        assert set(shown) == set(Settings.__struct_fields__)
        assert shown["server"]["port"] == 8080
        assert shown["server"]["proxies"] == "http://…@proxy.example:3128"
        assert shown["auth"]["keys"][0] == {
            "key": "Secret(…6789)",
            "name": "relay",
            "profile": "",
        }
        assert shown["redis"]["password"] == "Secret(…0123)"

    def test_description_is_openapi_and_has_every_route(self, service: Service) -> None:
        document = service.call("GET", "/openapi.json")
        OpenAPIV31SpecValidator(document).validate()
        described = {(m.upper(), p) for p, item in document["paths"].items() for m in item}
        served = {
            (method, str(rule).replace("<", "{").replace(">", "}"))
            for rule in service.app.url_map.iter_rules()
            if rule.endpoint.startswith("admin.") and not rule.endpoint.endswith("openapi")
            for method in rule.methods or ()
            if method not in ("HEAD", "OPTIONS")
        }
        assert described == served
        body = document["paths"]["/admin/api/keys"]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert "limits" in document["components"]["schemas"][schema]["properties"]


class Shell:
    """`bin/causeway` in this process, against the service on a real socket."""

    def __init__(self, url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._key_file = folder / "admin.key"
        self._key_file.write_text(ADMIN_KEY + "\n")
        self._url = url
        self._capsys = capsys

    def __call__(self, *words: str, url: str | None = None) -> tuple[int, str, str]:
        flags = ["--url", url or self._url, "--admin-key-file", str(self._key_file)]
        status = main([*flags, *words])
        told = self._capsys.readouterr()
        return status, told.out, told.err


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    httpd = make_server("127.0.0.1", 0, service.app, threaded=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def shell(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(url, tmp_path, capsys)


class TestCommandLine:
    @pytest.mark.parametrize(
        "words",
        [
            "{} keys create late",
            "keys {} create late",
            "keys create {} late",
            "keys create late {}",
        ],
    )
    def test_options_stand_in_any_place(
        self, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
    ) -> None:
        """`bin/causeway keys create NAME --url …` was refused."""
        key = tmp_path / "admin.key"
        key.write_text(ADMIN_KEY)
        options = f"--url {url} --admin-key-file {key} --json"
        assert main(words.format(options).split()) == 0
        assert json.loads(capsys.readouterr().out)["key"]["name"] == "late"

    def test_life_of_a_key(self, shell: Shell, service: Service, tmp_path: Path) -> None:
        own = tmp_path / "own.key"
        own.write_text("sk-the-bots-own-canary7f3e\n")
        status, out, _ = shell(
            "keys", "create", "bot", "--requests-per-minute", "7", "--models", "gpt-*,small",
            "--always-usage", "--provider-key-file", f"custom={own}", "--json",
        )  # fmt: skip
        made = json.loads(out)
        assert status == 0
        assert made["secret"].startswith("sk-cw-")
        identity = made["key"]["id"]
        record = service.desk.editor.get(identity)
        assert record.models == ("gpt-*", "small")
        credential = service.desk.control.credential(record, "custom")
        assert credential.token == Secret("sk-the-bots-own-canary7f3e")

        _, out, _ = shell("keys", "list")
        header, relay, bot = out.splitlines()
        assert header.split()[:3] == ["ID", "NAME", "KEY"]
        assert relay.startswith("settings:relay")
        assert "requests_per_minute=7" in bot
        assert made["secret"] not in out

        words = ("--requests-per-minute", "none", "--tokens-per-day", "5", "--no-always-usage")
        status, out, _ = shell("keys", "change", identity, *words)
        assert status == 0
        changed = service.desk.editor.get(identity)
        assert (changed.limits.requests_per_minute, changed.limits.tokens_per_day) == (None, 5)
        assert changed.always_usage is False
        assert "limits.tokens_per_day" in out

        assert shell("keys", "revoke", identity)[0] == 0
        _, out, _ = shell("keys", "show", identity, "--json")
        assert json.loads(out)["revoked"] is not None

    def test_new_key_is_shown_to_people_too(self, shell: Shell, service: Service) -> None:
        _, out, _ = shell("keys", "create", "bot")
        secret = out.splitlines()[0].split()[1]
        assert service.desk.book.recognise(secret) is not None

    def test_accounts_usage_config_health(self, shell: Shell, service: Service) -> None:
        _, out, _ = shell("accounts", "list")
        assert "2027-01-15 08:00:00Z" in out
        assert "cooling" in out
        assert "disabled" in shell("accounts", "disable", "acc_2")[1]
        assert "ready" in shell("accounts", "reset", "acc_2")[1]
        key = service.call("POST", "/keys", {"name": "bot"}, 201)["key"]["id"]
        for number, model in enumerate(("small", "large")):
            counts = {(key, model, "requests"): 2 + number}
            service.desk.usage.count(f"b{number}", today(), counts)
        lines = shell("usage", "--by", "key,model")[1].splitlines()
        assert lines[0].split()[:3] == ["KEY", "MODEL", "REQUESTS"]
        assert [line.split()[:3] for line in lines[1:3]] == [
            ["bot", "large", "3"],
            ["bot", "small", "2"],
        ]
        assert lines[3].split()[:2] == ["total", "5"]
        assert shell("usage", "--start", "2001-01-01", "--end", "2001-01-02")[1] == (
            "nothing was used\n"
        )
        assert "server.port" in shell("config")[1]
        assert json.loads(shell("health", "--json")[1]) == {"status": "ok"}

    def test_refusal_is_told_with_status_1(self, shell: Shell) -> None:
        status, out, err = shell("keys", "show", "key_none")
        assert (status, out) == (1, "")
        assert err.startswith("causeway: no such key")
        status, _, err = shell("keys", "create", "relay")
        assert (status, "named relay already" in err) == (1, True)

    def test_gateway_without_admin_api_is_told(self, shell: Shell, url: str) -> None:
        status, _, err = shell("keys", "list", url=f"{url}/elsewhere")
        assert (status, "is auth.admin_key set there?" in err) == (1, True)

    def test_wrong_admin_key_is_told_and_not_repeated(
        self, shell: Shell, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wrong = tmp_path / "wrong.key"
        wrong.write_text("adm-wrong-key-0123456789")
        status = main(["--url", url, "--admin-key-file", str(wrong), "keys", "list"])
        told = capsys.readouterr()
        assert status == 1
        assert "admin key" in told.err
        assert "adm-wrong" not in told.out + told.err

    def test_gateway_that_is_not_there_is_told_with_status_3(self, shell: Shell) -> None:
        status, out, err = shell("keys", "list", url=f"http://127.0.0.1:{free_port()}")
        assert (status, out) == (3, "")
        assert "cannot reach the gateway" in err
        assert ADMIN_KEY not in err

    @pytest.mark.parametrize(
        "words",
        [
            ("keys",),
            ("keys", "create"),
            ("keys", "create", "x", "--requests-per-minute", "many"),
            ("usage", "--start", "soon"),
        ],
    )
    def test_wrong_arguments_end_with_status_2(
        self, shell: Shell, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            shell(*words)
        assert ended.value.code == 2
        assert "usage:" in capsys.readouterr().err

    def test_missing_key_and_empty_change_end_with_status_2(
        self, shell: Shell, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--admin-key-file", "/no/such/file", "keys", "list"]) == 2
        assert "cannot read a key" in capsys.readouterr().err
        status, _, err = shell("keys", "change", "key_1")
        assert (status, "nothing to change" in err) == (2, True)

    def test_script_finds_files_from_where_it_is_called(
        self, url: str, shell: Shell, tmp_path: Path
    ) -> None:
        (tmp_path / "services").mkdir()  # must not be taken for ours
        command = [str(ROOT / "bin" / "causeway"), "--url", url, "--admin-key-file", "admin.key"]
        done = subprocess.run(
            [*command, "health"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (0, "status  ok\n"), done.stderr
