"""Settings: old files, loose spellings, the environment; all problems at once, without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.config import (
    ROOT,
    ConfigErrors,
    Settings,
    check_exposure,
    load,
    load_here,
    passthrough_enabled,
)
from services.config.settings import AccountSetting
from services.core.models import Secret
from tests.old_files import VERSIONS

LONG_KEY = "sk-9f27ab41c0de5583"

OLD_FILE: dict[str, Any] = {
    "log_level": "DEBUG",
    "need_log_to_file": "true",
    "process_workers": 2,
    "process_threads": "200",
    "proxy": "",
    "upstream_base_url": "https://mirror.example.com",
    "upstream_api_prefix": "abc",
    "backend_container_url": "http://1.2.3.4:50011",
    "backend_container_api_prefix": "",
    "key_for_gpts_info": "old-refresh-token-0001",
    "gpt_4_s_new_name": "gpt-4-s,gpt-4o",
    "gpt_4_mobile_new_name": "gpt-4-mobile,dall-e-3",
    "gpt_3_5_new_name": "gpt-3.5-turbo",
    "need_delete_conversation_after_response": "true",
    "use_oaiusercontent_url": "false",
    "use_pandora_file_server": "false",
    "custom_arkose_url": "true",
    "arkose_urls": "https://a.example.com, https://b.example.com/,",
    "dalle_prompt_prefix": "请严格按照要求作画\n",
    "bot_mode": {
        "enabled": "false",
        "enabled_markdown_image_output": "true",
        "enabled_bing_reference_output": "false",
        "enabled_plugin_output": "false",
        "enabled_plain_image_url_output": "false",
    },
    "refresh_ToAccess": {
        "steam_sleep_time": "0.05",
        "enableOai": "false",
        "xyhelper_refreshToAccess_Url": "https://refresh.example.com/applelogin",
    },
    "redis": {
        "host": "redis",
        "port": 6379,
        "password": "",
        "db": 0,
        "pool_size": 10,
        "pool_timeout": 60000,
    },
}


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """Stands in for a provider's own settings."""

    base_url: str = "https://vendor.example.com"
    api_key: Secret | None = None
    retries: int = 2


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """Stands in for one of a provider's upstreams."""

    prefix: str
    base_url: str
    api_key: Secret | None = None
    models: tuple[str, ...] = ()


class Pooled(msgspec.Struct, frozen=True, kw_only=True):
    """Stands in for a provider with accounts."""

    accounts: tuple[AccountSetting, ...] = ()
    accounts_file: str = ""


PROVIDERS: dict[str, type] = {"vendor": Vendor, "custom": list[Upstream], "pooled": Pooled}

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: Any) -> Path:
        path = tmp_path / "config.json"
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def from_environment(**variables: str) -> Settings:
    return load(None, variables, PROVIDERS)


def problems(path: Path | None, environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigErrors) as caught:
        load(path, environ or {}, PROVIDERS)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_old_file_loads_unchanged(write: Write) -> None:
    settings = load(write(OLD_FILE), {})
    assert settings.need_log_to_file is True
    assert (settings.process_workers, settings.process_threads) == (2, 200)
    assert settings.upstream_api_prefix == ("abc",)
    assert settings.key_for_gpts_info == Secret("old-refresh-token-0001")
    assert settings.gpt_4_mobile_new_name == ("gpt-4-mobile", "dall-e-3")
    assert settings.need_delete_conversation_after_response is True
    assert settings.arkose_urls == ("https://a.example.com", "https://b.example.com")
    assert settings.dalle_prompt_prefix == "请严格按照要求作画\n"
    assert settings.bot_mode.enabled_markdown_image_output is True
    assert settings.refresh_ToAccess.stream_sleep_time == 0.05
    assert settings.refresh_ToAccess.third_party == (
        "https://refresh.example.com/applelogin",
        "form",
    )
    assert (settings.redis.host, settings.redis.password) == ("redis", None)
    assert settings.warnings == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_file_of_every_predecessor_loads_and_means_what_it_meant(
    write: Write, version: str
) -> None:
    settings = load(write(VERSIONS[version]), {}, PROVIDERS)
    assert settings.upstream_base_url == "https://mirror.example.com"
    assert settings.upstream_api_prefix[0] == "abc"
    assert settings.need_log_to_file is True
    assert settings.gpt_4_mobile_new_name == ("gpt-4-mobile", "dall-e-3")
    assert settings.dalle_prompt_prefix.startswith("请严格按照")
    assert settings.process_workers == 2
    assert settings.process_threads == Settings().process_threads
    assert (settings.redis.host, settings.redis.pool_timeout) == ("redis", 60.0)
    assert settings.custom_arkose_url is False
    third = settings.refresh_ToAccess.third_party
    assert third == {
        "PAN": None,
        "NINJA": ("https://refresh.example.com/ninja/refresh", "bearer"),
    }.get(version, ("https://refresh.example.com/applelogin", "form"))
    told = {warning.split()[0] for warning in settings.warnings}
    expected = {"process_threads", "custom_arkose_url"}
    if version == "SEED":
        expected.add("refresh_ToAccess.enableOai")
    if version == "PAN":
        expected.add("refresh")
    assert told == expected


def test_enable_oai_without_oauth_keys_means_the_third_party_address_that_is_set(
    write: Write,
) -> None:
    group: dict[str, Any] = {"ninja_refreshToAccess_Url": "https://n.example.com/r"}
    file = {"upstream_base_url": "https://u.example.com", "refresh_ToAccess": group}
    settings = load(write(file), {})
    assert settings.refresh_ToAccess.enableOai is False
    [warning] = [w for w in settings.warnings if "enableOai" in w]
    assert "ninja_refreshToAccess_Url" in warning
    group["oauth_token_url"] = "https://oauth.example.com/token"
    settings = load(write(file), {})
    assert settings.refresh_ToAccess.enableOai is True
    assert not any("enableOai" in warning for warning in settings.warnings)


@pytest.mark.parametrize(
    ("threads", "worker_class", "meant"),
    [(1, "gevent", 2000), (2, "gevent", 2000), (15, "gevent", 2000), (16, "gevent", 16)]
    + [(2, "gthread", 2)],
)
def test_few_threads_of_old_files_are_raised_and_that_is_said(
    write: Write, threads: int, worker_class: str, meant: int
) -> None:
    file = {"process_threads": threads, "server": {"worker_class": worker_class}}
    settings = load(write(file), {})
    assert settings.process_threads == meant
    said = [w for w in settings.warnings if w.startswith("process_threads")]
    assert len(said) == (meant != threads)
    assert load(None, {"PROCESS_THREADS": "2"}).process_threads == 2000


@pytest.mark.parametrize(
    ("written", "seconds"), [(0.5, 0.5), (30, 30.0), (999, 999.0), (1000, 1.0), (60000, 60.0)]
)
def test_pool_timeout_of_a_thousand_and_more_is_in_milliseconds(
    write: Write, written: float, seconds: float
) -> None:
    assert load(write({"redis": {"pool_timeout": written}}), {}).redis.pool_timeout == seconds


def test_built_in_name_gives_way_to_an_old_list_that_uses_it(write: Write) -> None:
    settings = load(write(OLD_FILE), {})
    assert settings.gpt_4_s_new_name == ("gpt-4-s", "gpt-4o")
    assert settings.gpt_4_o_new_name == ()


def test_no_file_and_no_environment_give_the_defaults() -> None:
    assert load(None, {}) == Settings()


@pytest.mark.parametrize("written", [True, "true", "True", " yes ", 1, "1", "on"])
def test_true_in_all_its_spellings(write: Write, written: Any) -> None:
    assert load(write({"bot_mode": {"enabled": written}}), {}).bot_mode.enabled is True


@pytest.mark.parametrize("written", [False, "false", "FALSE", "no", 0, "0", "off"])
def test_false_in_all_its_spellings(write: Write, written: Any) -> None:
    assert load(write({"need_log_to_file": written}), {}).need_log_to_file is False


@pytest.mark.parametrize(
    ("written", "meant"),
    [("temporary", "temporary"), ("Temporary", "temporary"), ("true", True), (0, False)],
)
def test_deleting_has_three_values(write: Write, written: Any, meant: Any) -> None:
    settings = load(write({"need_delete_conversation_after_response": written}), {})
    assert settings.need_delete_conversation_after_response == meant
    assert type(settings.need_delete_conversation_after_response) is type(meant)


@pytest.mark.parametrize("written", ["/a/b/, c", ["a/b", "c"], '["a/b", "c"]'])
def test_prefixes_come_as_text_or_list(write: Write, written: Any) -> None:
    assert load(write({"upstream_api_prefix": written}), {}).upstream_api_prefix == ("a/b", "c")


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (
            {"pandora_base_url": "https://old.example.com/"},
            lambda settings: settings.upstream_base_url == "https://old.example.com",
        ),
        (
            {"pandora_api_prefix": "p"},
            lambda settings: settings.upstream_api_prefix == ("p",),
        ),
        (
            {"refresh_ToAccess": {"oaifree_refreshToAccess_Url": "https://o.example.com/r/"}},
            lambda s: s.refresh_ToAccess.third_party == ("https://o.example.com/r/", "form"),
        ),
        (
            {"refresh_ToAccess": {"ninja_refreshToAccess_Url": "https://n.example.com/r"}},
            lambda s: s.refresh_ToAccess.third_party == ("https://n.example.com/r", "bearer"),
        ),
        (
            {"refresh_ToAccess": {"stream_sleep_time": 1, "steam_sleep_time": 1}},
            lambda settings: settings.refresh_ToAccess.stream_sleep_time == 1.0,
        ),
        ({"redis": {"password": 123456}}, lambda s: s.redis.password == Secret("123456")),
        ({"proxy": None}, lambda settings: settings.proxy == ""),
        ({"log_level": "info"}, lambda settings: settings.log_level == "INFO"),
    ],
)
def test_old_and_loose_spellings(
    write: Write, file: dict[str, Any], read: Callable[[Settings], bool]
) -> None:
    assert read(load(write(file), {}))


def test_key_and_its_old_spelling_with_different_values_are_a_problem(write: Write) -> None:
    file = {"upstream_base_url": "https://a.example.com", "pandora_base_url": "https://b.example"}
    assert "given twice with different values" in problems(write(file))["upstream_base_url"]


def test_every_problem_is_reported_at_once(write: Write) -> None:
    found = problems(
        write(
            {
                "process_workers": 0,
                "proxy": "ftp://127.0.0.1:1",
                "need_log_to_file": "maybe",
                "redis": {"port": 70000},
                "server": {"port": "http", "keepalive": "sometimes", "commit_windw": 3},
                "files": {"storage": "s3"},
                "providers": {"vendr": {}, "vendor": {"retries": "x"}, "custom": [{"prefix": "a"}]},
            }
        ),
        {"SERVER_IDLE_TIMEOUT": "soon"},
    )
    expected = {
        "process_workers": "= 0: expected a whole number of at least 1",
        "proxy": '= "ftp://127.0.0.1:1": expected an http, https, socks5 or socks5h URL',
        "need_log_to_file": '= "maybe": expected true or false',
        "redis.port": "= 70000: expected a whole number from 1 to 65535",
        "server.port": '= "http": expected a whole number from 0 to 65535',
        "server.keepalive": 'expected one of "chunk", "comment", "off"',
        "server.commit_windw": "unknown key; did you mean commit_window?",
        "server.idle_timeout": 'SERVER_IDLE_TIMEOUT: server.idle_timeout = "soon": expected',
        "files.s3_bucket": "needed",
        "providers.vendr": "unknown key; did you mean vendor?",
        "providers.vendor.retries": '= "x": expected a whole number',
        "providers.custom[0].base_url": "missing; expected text",
    }
    assert found.keys() == expected.keys()
    for key, words in expected.items():
        assert words in found[key]


def test_message_names_file_and_counts(write: Write) -> None:
    path = write({"process_workers": "many"})
    with pytest.raises(ConfigErrors) as caught:
        load(path, {})
    assert str(caught.value) == (
        "1 problem in the configuration:\n"
        f'  {path}: process_workers = "many": expected a whole number of at least 1'
    )


def test_unknown_old_keys_are_warnings_with_a_suggestion(write: Write) -> None:
    settings = load(write({"proces_workers": 3, "zzz": 1, "redis": {"ssl": "true"}}), {})
    assert settings.process_workers == 1
    first, second, third = sorted(settings.warnings)
    assert "proces_workers: unknown key, ignored; did you mean process_workers?" in first
    assert "redis.ssl: unknown key, ignored" in second
    assert "zzz: unknown key, ignored" in third


def test_mistyped_group_is_a_problem_for_it_may_hold_keys(write: Write) -> None:
    assert "did you mean auth?" in problems(write({"auht": {"keys": [LONG_KEY]}}))["auht"]


def test_keys_that_begin_like_comments_are_passed_over(write: Write) -> None:
    assert load(write({"_note": "x", "$schema": "y", "server": {"//": "z"}}), {}).warnings == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n "a": 1,,\n}', "not JSON at line 2, column 9"),
        ("", "not JSON at line 1, column 1"),
        ("[1]", "a list: expected an object"),
        ('{"proxy": "", "proxy": ""}', "stands twice in one object: proxy"),
    ],
)
def test_broken_file_says_where(write: Write, text: str, words: str) -> None:
    assert words in problems(write(text))[""]


def test_missing_file_is_a_problem(tmp_path: Path) -> None:
    assert "absent.json: cannot be read: No such file" in problems(tmp_path / "absent.json")[""]


def test_file_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"proxy": "\xff"}')
    assert "not UTF-8" in problems(path)[""]


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"process_workers": 4}')
    assert load(path, {}).process_workers == 4


def test_name_in_two_lists_is_a_problem(write: Write) -> None:
    file = {"gpt_4_s_new_name": "gpt-4,x", "gpt_4_mobile_new_name": ["y", "gpt-4"]}
    found = problems(write(file))
    assert "model name gpt-4 is in gpt_4_s_new_name too" in found["gpt_4_mobile_new_name"]


@pytest.mark.parametrize("number", ["NaN", '"nan"', "Infinity", '"inf"', "true", "-1", '""'])
def test_seconds_are_positive_finite_numbers(write: Write, number: str) -> None:
    assert "server.idle_timeout" in problems(write(f'{{"server": {{"idle_timeout": {number}}}}}'))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server", {"trusted_proxies": ["10.0.0.0/33"]}),
        ("server", {"proxies": "socks4://127.0.0.1:1"}),
        ("server", {"host": ""}),
        ("store", {"url": "http://127.0.0.1"}),
        ("store", {"namespace": "a b"}),
        ("models", {"aliases": ["a"]}),
        ("models", {"extra": {"gpt-4o": "text"}}),
        ("auth", {"keys": [""]}),
        ("auth", {"keys": [{"name": "anna"}]}),
        ("auth", {"keys": [{"key": LONG_KEY, "profile": "bot+nothing"}]}),
        ("auth", {"keys": [LONG_KEY, {"key": LONG_KEY}]}),
        ("auth", {"passthrough": "sometimes"}),
        ("auth", "open"),
        ("upstream_base_url", "mirror.example.com"),
    ],
)
def test_values_out_of_range_are_refused(write: Write, key: str, value: Any) -> None:
    (found,) = problems(write({key: value}))
    assert found.startswith(key)


def test_trusted_proxies_take_addresses_and_networks(write: Write) -> None:
    file = {"server": {"trusted_proxies": "10.0.0.1/8, ::1"}}
    assert load(write(file), {}).server.trusted_proxies == ("10.0.0.1/8", "::1")


def test_environment_overrides_the_file(write: Write) -> None:
    environ = {
        "PROCESS_WORKERS": "5",
        "REDIS_HOST": "elsewhere",
        "BOT_MODE_ENABLED": "yes",
        "REFRESH_TOACCESS_ENABLEOAI": "true",
        "REFRESH_TOACCESS_OAUTH_TOKEN_URL": "https://oauth.example.com/token",
        "SERVER_COMMIT_WINDOW": "7.5",
        "SERVER_CORS_ORIGINS": "https://a.example.com,https://b.example.com",
        "MODELS_ALIASES": '{"gpt-5": "gpt-4o"}',
        "DALLE_PROMPT_PREFIX": "draw: ",
    }
    settings = load(write(OLD_FILE), environ)
    assert settings.process_workers == 5
    assert settings.redis.host == "elsewhere"
    assert settings.bot_mode.enabled is True
    assert settings.refresh_ToAccess.enableOai is True
    assert settings.server.commit_window == 7.5
    assert settings.server.cors_origins == ("https://a.example.com", "https://b.example.com")
    assert settings.models.aliases == {"gpt-5": "gpt-4o"}
    assert settings.dalle_prompt_prefix == "draw: "


def test_old_variable_names_still_work() -> None:
    settings = from_environment(
        BASE_URL="https://mirror.example.com",
        PROXY_API_PREFIX="p",
        UPLOAD_BASE_URL="http://me.example.com/",
        API_PREFIX="secret-path",
        GPT_4_S_New_Name="four",
        BOT_MODE="true",
    )
    assert settings.upstream_base_url == "https://mirror.example.com"
    assert settings.upstream_api_prefix == ("p",)
    assert settings.backend_container_url == "http://me.example.com"
    assert settings.backend_container_api_prefix == "secret-path"
    assert settings.gpt_4_s_new_name == ("four",)
    assert settings.bot_mode.enabled is True


def test_new_variable_name_wins_over_the_old() -> None:
    settings = from_environment(BOT_MODE="true", BOT_MODE_ENABLED="false")
    assert settings.bot_mode.enabled is False


def test_group_can_come_as_json_in_one_variable() -> None:
    settings = from_environment(BOT_MODE='{"enabled_plugin_output": true}', REDIS_DB="3")
    assert settings.bot_mode.enabled_plugin_output is True
    assert settings.bot_mode.enabled is False
    assert settings.redis.db == 3


def test_variables_meant_for_others_are_passed_over() -> None:
    settings = from_environment(
        REDIS_PORT="tcp://10.0.0.7:6379", REDIS="x", SERVER="y", FILES="/srv", PROCESS_WORKERS=" "
    )
    assert settings == Settings()


@pytest.mark.parametrize(
    "text", [f"{LONG_KEY}, second-key-0123456", f'["{LONG_KEY}", {{"key": "second-key-0123456"}}]']
)
def test_keys_come_as_commas_or_json(text: str) -> None:
    keys = from_environment(AUTH_KEYS=text).auth.keys
    assert [key.key for key in keys] == [Secret(LONG_KEY), Secret("second-key-0123456")]
    assert [key.name for key in keys] == ["…5583", "…3456"]


def test_short_nameless_keys_are_named_by_place() -> None:
    assert [key.name for key in from_environment(AUTH_KEYS="a,b").auth.keys] == ["key 1", "key 2"]


def test_broken_json_in_a_variable_names_it() -> None:
    found = problems(None, {"MODELS_ALIASES": '{"a": ', "AUTH_KEYS": '["sk-not-closed'})
    assert "environment variable MODELS_ALIASES" in found["models.aliases"]
    assert "not JSON" in found["auth.keys"]
    assert "sk-not-closed" not in found["auth.keys"]


def test_providers_are_typed_by_their_own_structs(write: Write) -> None:
    custom = [{"prefix": "a/", "base_url": "https://a.example.com", "models": "m1,m2"}]
    settings = load(write({"providers": {"custom": custom}}), {}, PROVIDERS)
    assert settings.providers == {
        "custom": [Upstream(prefix="a/", base_url="https://a.example.com", models=("m1", "m2"))]
    }


def test_provider_can_come_from_the_environment_alone() -> None:
    settings = from_environment(
        PROVIDERS_VENDOR_API_KEY=LONG_KEY,
        PROVIDERS_CUSTOM='[{"prefix": "a/", "base_url": "https://a.example.com"}]',
    )
    assert settings.providers["vendor"] == Vendor(api_key=Secret(LONG_KEY))
    assert settings.providers["custom"][0].prefix == "a/"


def test_provider_that_nobody_mentions_is_absent() -> None:
    assert from_environment().providers == {}


def test_without_provider_types_providers_are_left_out(write: Write) -> None:
    assert load(write({"providers": {"vendor": {"api_key": LONG_KEY}}}), {}).providers == {}


def test_secrets_never_show(write: Write) -> None:
    canary = "canary-7f3a-77-secret"
    settings = load(
        write(
            {
                "key_for_gpts_info": canary,
                "redis": {"password": canary},
                "auth": {"keys": [{"key": canary + "-a", "name": "n"}], "admin_key": canary},
                "store": {"url": f"redis://user:{canary}@127.0.0.1/0"},
                "proxy": f"http://user:{canary}@127.0.0.1:1",
                "providers": {"vendor": {"api_key": canary}},
            }
        ),
        {},
        PROVIDERS,
    )
    assert canary not in repr(settings)
    assert settings.auth.admin_key is not None
    assert settings.auth.admin_key.reveal() == canary


def test_secrets_never_show_in_problems(write: Write) -> None:
    canary = "canary7f3a77secret"
    path = write(
        {
            "redis": {"password": [canary]},
            "auth": {"keys": {canary: "anna"}, "admin_key": {"key": canary}},
            "proxy": f"ftp://user:{canary}@127.0.0.1:1",
            "providers": {"vendor": {"api_key": [canary]}, "custom": canary},
        }
    )
    with pytest.raises(ConfigErrors) as caught:
        load(path, {"STORE_URL": f"http://:{canary}@x"}, PROVIDERS)
    assert len(caught.value.problems) == 7
    assert canary not in str(caught.value)


def test_what_has_no_effect_is_said(write: Write) -> None:
    file = {
        "upstream_base_url": "https://mirror.example.com",
        "custom_arkose_url": True,
        "refresh_ToAccess": {"enableOai": False},
        "process_threads": 2,
    }
    text = "\n".join(load(write(file), {}).warnings)
    for words in ("process_threads", "file_server_host", "arkose_urls", "enableOai is false"):
        assert words in text


def settings_at(host: str, *keys: str, passthrough: str = "", admin: str = "") -> Settings:
    return from_environment(
        SERVER_HOST=host,
        AUTH_KEYS=",".join(keys),
        AUTH_PASSTHROUGH=passthrough,
        AUTH_ADMIN_KEY=admin,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert check_exposure(settings_at(host)) == []
    assert check_exposure(settings_at(host, "short")) == []
    assert passthrough_enabled(settings_at(host)) is True


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "gateway.example.com"])
def test_open_address_without_key_is_refused(host: str) -> None:
    assert "set auth.keys" in check_exposure(settings_at(host))[0]
    assert len(check_exposure(settings_at(host, passthrough="false"))) == 1
    assert check_exposure(settings_at(host, passthrough="true")) == []
    assert check_exposure(settings_at(host, LONG_KEY)) == []
    assert passthrough_enabled(settings_at(host, LONG_KEY)) is False


@pytest.mark.parametrize(
    "key",
    [
        "sk-9f27ab41c0d",
        "sk-change-me",
        "changemechangeme",
        "sk-change-me-please-now",
        "password-for-gateway",
        "1234567890123456",
        "aaaaaaaaaaaaaaaaaaaa",
        "your-api-key-goes-here",
    ],
)
def test_weak_key_on_an_open_address_is_refused(key: str) -> None:
    (objection,) = check_exposure(settings_at("0.0.0.0", LONG_KEY, key, passthrough="true"))
    assert "auth.keys[1]" in objection
    assert key not in objection
    (objection,) = check_exposure(settings_at("0.0.0.0", LONG_KEY, admin=key))
    assert "auth.admin_key" in objection


@pytest.mark.parametrize(
    "group",
    [
        {"vendor": {"api_key": LONG_KEY}},
        {"custom": [{"prefix": "a", "base_url": "https://a.example.com", "api_key": LONG_KEY}]},
        {"pooled": {"accounts": [LONG_KEY]}},
        {"pooled": {"accounts_file": "/srv/accounts"}},
    ],
)
def test_credentials_of_the_operators_end_the_passthrough_of_loopback_and_ask_for_a_key(
    write: Write, group: dict[str, Any]
) -> None:
    path = write({"providers": group})
    settings = load(path, {}, PROVIDERS)
    assert passthrough_enabled(settings) is False
    assert "nobody can use the upstream credentials" in settings.warnings[0]
    for variable in ("AUTH_KEYS", "AUTH_ADMIN_KEY", "AUTH_ANONYMOUS"):
        value = "true" if variable == "AUTH_ANONYMOUS" else LONG_KEY
        assert load(path, {variable: value}, PROVIDERS).warnings == ()
    assert passthrough_enabled(load(path, {"AUTH_PASSTHROUGH": "true"}, PROVIDERS)) is True


def test_anonymous_is_refused_off_loopback_whatever_else_is_set() -> None:
    environ = {"AUTH_ANONYMOUS": "true", "AUTH_KEYS": LONG_KEY, "AUTH_PASSTHROUGH": "true"}
    assert check_exposure(from_environment(**environ)) == []
    (objection,) = check_exposure(from_environment(SERVER_HOST="0.0.0.0", **environ))
    assert "auth.anonymous" in objection


def test_anonymous_ends_the_passthrough_that_loopback_has_by_default() -> None:
    assert passthrough_enabled(from_environment(AUTH_ANONYMOUS="true")) is False


def test_explicit_passthrough_wins_on_loopback() -> None:
    assert passthrough_enabled(settings_at("127.0.0.1", passthrough="false")) is False


def test_process_reads_dotenv_under_data_config(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("CAUSEWAY_CONFIG", raising=False)
    monkeypatch.setenv("PROCESS_WORKERS", "7")
    (tmp_path / "config.json").write_text('{"server": {"port": 1}}')
    assert load_here(root=tmp_path).server.port == 1
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_text('{"server": {"port": 2}}')
    (tmp_path / ".env").write_text("PROCESS_WORKERS=3\nREDIS_PASSWORD='a$b${c}'\n")
    settings = load_here(root=tmp_path)
    assert (settings.server.port, settings.process_workers) == (2, 7)
    assert settings.redis.password == Secret("a$b${c}")
    monkeypatch.setenv("CAUSEWAY_CONFIG", "config.json")
    assert load_here(root=tmp_path).server.port == 1


def test_folder_is_the_project_unless_told() -> None:
    assert from_environment().server.folder == ROOT
    assert from_environment(SERVER_DATA_DIR="/srv/causeway").server.folder == Path("/srv/causeway")


def test_shipped_file_runs_keyless_on_loopback() -> None:
    settings = load(ROOT / "config.json", {}, PROVIDERS)
    assert settings.warnings == ()
    assert check_exposure(settings) == []
    assert passthrough_enabled(settings) is True
    assert json.loads((ROOT / "gpts.json").read_text()) == {}


def test_settings_load_before_a_worker_has_patched_ssl() -> None:
    code = "import sys, services.config as c; c.load(None, {}); sys.exit('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


def test_a_key_ends_the_passthrough_that_loopback_has_by_default() -> None:
    assert passthrough_enabled(settings_at("127.0.0.1", LONG_KEY)) is False


def test_secrets_of_all_groups_are_collected() -> None:
    settings = settings_at("127.0.0.1", LONG_KEY, admin="the-admin-key")
    assert set(settings.secrets()) >= {LONG_KEY, "the-admin-key"}
