"""One application follows another in a process: nothing known is lost, nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from werkzeug.test import Client

from app import create_app
from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from services.config import (
    NEEDS_RESTART,
    ROOT,
    KeptConfig,
    Settings,
    differing,
    keep_running,
    load,
    needs_restart,
)
from services.config.load import KEPT_VARIABLE
from services.core.models import Secret
from services.reload import Live
from services.reload.watcher import Watcher
from tests.canaries import MARK
from tests.gateway import KEY, custom, question, wait_for

RELOADS = 50
JOBS = 11
"""Threads that the schedules of worker and application may have for their jobs, sooner or later."""
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}

Change = Callable[..., None]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A service in this process sends every logger to its own handlers."""
    loggers = (logging.getLogger(), logging.getLogger("access"))
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def settings(upstream: OpenAICompat, tmp_path: Path) -> dict[str, Any]:
    """Without a store: what is lost then is lost for good."""
    return custom(upstream.base_url, models=["emu-small"]) | {
        "log_level": "INFO",
        "server": {"data_dir": str(tmp_path)},
        "store": {"embedded": False},
    }


@pytest.fixture
def live(settings: dict[str, Any], tmp_path: Path) -> Iterator[Live]:
    """A service whose file is looked at when a test says so."""
    write(tmp_path, settings)
    service = Live(create_app, root=tmp_path, look_every=3600, settled_after=0)
    try:
        yield service
    finally:
        service.close()
        service.lasting.serving.close()


def write(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(settings))


def change(live: Live, folder: Path, settings: dict[str, Any]) -> None:
    write(folder, settings)
    live.look()


def ask(live: Live, key: str = KEY) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    with Client(live).post(
        "/v1/chat/completions", json=question("#echo hi"), headers=headers
    ) as answer:
        return answer.status_code


def said(folder: Path, words: str) -> list[str]:
    lines = (folder / "log" / "access.log").read_text().splitlines()
    return [line for line in lines if words in line]


def test_differences_are_named_by_key() -> None:
    before = load(None, {})
    after = load(None, {"SERVER_PORT": "1", "STORE_TIMEOUT": "3", "DALLE_PROMPT_PREFIX": "x"})
    assert set(differing(before, after)) == {"server.port", "store.timeout", "dalle_prompt_prefix"}
    assert differing(before, before) == ()


def test_what_needs_a_restart_keeps_its_value_and_the_rest_does_not() -> None:
    before = load(None, {})
    after = load(None, {"SERVER_PORT": "1", "STORE_TIMEOUT": "3", "DALLE_PROMPT_PREFIX": "x"})
    kept = keep_running(after, before)
    assert differing(before, kept) == ("dalle_prompt_prefix",)
    assert {key for key in differing(before, after) if needs_restart(key)} == {
        "server.port",
        "store.timeout",
    }


@pytest.mark.parametrize("key", NEEDS_RESTART)
def test_key_that_needs_a_restart_exists(key: str) -> None:
    group, _, name = key.rpartition(".")
    assert (
        name in getattr(Settings(), group).__struct_fields__ if group else hasattr(Settings(), key)
    )


def test_all_that_the_master_acts_on_needs_a_restart() -> None:
    text = (ROOT / "gunicorn.conf.py").read_text()
    used = set(re.findall(r"_settings\.(\w+)(?!\w*\()", text))
    used |= {f"server.{name}" for name in re.findall(r"_server\.(\w+)", text)}
    of_log = {"log_level", "log_folder", "secrets", "server", "server.folder"}
    assert used - of_log
    assert {key for key in used - of_log if not needs_restart(key)} == set()


def test_documentation_lists_what_needs_a_restart() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = text.split("\n## Changing it while it runs\n", 1)[1].split("\n## ", 1)[0]
    (listed,) = re.findall(r"need a restart: (.+?)\. ", section, re.DOTALL)
    assert sorted(re.findall(r"`([\w.]+)`", listed)) == sorted(NEEDS_RESTART)


def test_copies_are_those_of_the_start_until_something_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEPT_VARIABLE, "")  # `begin` sets it, and afterwards it goes
    monkeypatch.setenv("CAUSEWAY_CONFIG", str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".env").write_text("LOG_LEVEL=ERROR\n")
    kept = KeptConfig.begin(tmp_path / "copies", tmp_path)
    assert os.environ[KEPT_VARIABLE] == str(kept.folder)
    assert kept.started is not None
    assert kept.accepted == kept.started
    kept.accept(b'{"a": 1}')
    assert kept.accepted is not None
    assert kept.accepted.read_bytes() == b'{"a": 1}'
    assert kept.started.read_bytes() == b"{}"
    assert (kept.folder / ".env").read_text() == "LOG_LEVEL=ERROR\n"
    for path in (kept.folder, *kept.folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_watcher_looks_when_asked_and_by_itself_and_survives_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks: list[bool] = []

    def look(asked: bool) -> None:
        looks.append(asked)
        raise RuntimeError("this look failed")

    watcher = Watcher(look, 0.05)
    watcher.start()
    wait_for(lambda: looks.count(False) > 1, 5, "looks")
    watcher.ask()
    wait_for(lambda: True in looks, 5, "the look that was asked for")
    watcher.stop()
    count = len(looks)
    time.sleep(0.12)
    assert len(looks) == count
    assert "this look failed" in caplog.text


def test_same_content_is_never_taken_up_again(live: Live, tmp_path: Path) -> None:
    serving = live.lasting.serving
    (tmp_path / "config.json").touch()
    live.look()
    live.look(asked=True)
    assert live.lasting.serving is serving
    assert len(said(tmp_path, "config unchanged")) == 1


def test_other_spelling_of_the_same_settings_makes_no_application(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    serving = live.lasting.serving
    (tmp_path / "config.json").write_text(json.dumps(settings, indent=4))
    live.look()
    assert live.lasting.serving is serving
    assert len(said(tmp_path, "changed=nothing")) == 1


def test_refusal_is_logged_once_for_each_content(live: Live, tmp_path: Path) -> None:
    for text in ("{", "{", '{"log_level": 7, "bad": ', '{"log_level": 7, "bad": '):
        (tmp_path / "config.json").write_text(text)
        live.look()
        live.look(asked=True)
    assert len(said(tmp_path, "config refused")) == 2
    assert ask(live) == 200


def test_file_that_is_being_written_is_waited_for(settings: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, settings)
    live = Live(create_app, root=tmp_path, look_every=3600, settled_after=0.3)
    text = json.dumps(settings | {"dalle_prompt_prefix": "drawn"})
    with (tmp_path / "config.json").open("w") as file:
        file.write(text[:40])
        file.flush()
        writer = threading.Timer(0.1, lambda: print(text[40:], file=file, flush=True))
        writer.start()
        live.look()
        writer.join()
    assert live.settings.dalle_prompt_prefix == "drawn"
    assert said(tmp_path, "config refused") == []
    live.close()
    live.lasting.serving.close()


def test_door_that_a_change_would_open_stays_shut(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    change(live, tmp_path, settings | {"server": {"host": "0.0.0.0"}, "auth": {}})
    assert live.lasting.problems == 1
    assert ask(live, "sk-of-nobody-0123456789") == 401


def test_running_address_counts_and_not_the_written_one(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Keys may not go while the service listens to the world, though the file says loopback."""
    world = {"host": "0.0.0.0", "data_dir": str(tmp_path)}
    write(tmp_path, settings | {"server": world})
    live = Live(create_app, root=tmp_path, look_every=3600, settled_after=0)
    change(live, tmp_path, settings | {"auth": {}})
    assert live.lasting.problems == 1
    assert ask(live, "sk-of-nobody-0123456789") == 401
    live.close()
    live.lasting.serving.close()


def test_failure_within_our_own_code_refuses_too(settings: dict[str, Any], tmp_path: Path) -> None:
    def make(made: Settings, lasting: Any) -> Any:
        if made.dalle_prompt_prefix:
            raise KeyError(made.dalle_prompt_prefix)
        return create_app(made, lasting)

    write(tmp_path, settings)
    live = Live(make, root=tmp_path, look_every=3600, settled_after=0)
    change(live, tmp_path, settings | {"dalle_prompt_prefix": "drawn"})
    assert live.lasting.problems == 1
    assert ask(live) == 200
    live.close()
    live.lasting.serving.close()


def test_application_is_closed_after_its_last_answer(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    old = live.lasting.serving
    stream = Client(live).post(
        "/v1/chat/completions", json=question("#long:5", stream=True), headers=AUTHORIZED
    )
    change(live, tmp_path, settings | {"dalle_prompt_prefix": "drawn"})
    live.look()
    assert old.schedule._scheduler is not None
    assert stream.text.endswith("data: [DONE]\n\n")
    stream.close()
    live.look()
    assert old.schedule._scheduler is None
    assert live.lasting.serving is not old


def test_path_prefix_and_counters_follow(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert ask(live) == 200
    change(live, tmp_path, settings | {"backend_container_api_prefix": "secret-path"})
    assert ask(live) == 404
    with Client(live).post(
        "/secret-path/v1/chat/completions", json=question("#echo hi"), headers=AUTHORIZED
    ) as answer:
        assert answer.status_code == 200
    live.lasting.write()
    told = live.lasting.metrics.exposition().decode()
    turns = re.search(r'causeway_turns_total{model="emu-small",.*} (\S+)', told) or re.search(
        r"causeway_turns_total{.*} (\S+)", told
    )
    assert turns is not None
    assert turns[1] == "2.0"
    assert 'route="/secret-path/v1/chat/completions"' in told


def test_new_secrets_are_kept_out_of_the_log_and_old_ones_still(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    old, new = "an-old-key-of-no-shape", "a-new-key-of-no-shape"
    change(live, tmp_path, settings | {"auth": {"keys": [old]}})
    change(live, tmp_path, settings | {"auth": {"keys": [new]}, "log_level": "DEBUG"})
    logging.getLogger("some.module").debug("new=%s old=%s end", new, old)
    assert said(tmp_path, "new=… old=… end")


def test_fault_noted_without_the_store_is_remembered(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    entry = settings["providers"]["custom"][0] | {"accounts": [f"sk-{MARK}-account-one"]}
    pooled = settings | {"providers": {"custom": [entry]}}
    change(live, tmp_path, pooled)
    pool = live.lasting.serving.credentials.pools.of("custom/up")
    assert pool is not None
    pool.strike(pool.lease(), "banned")
    change(live, tmp_path, pooled | {"dalle_prompt_prefix": "drawn"})
    heir = live.lasting.serving.credentials.pools.of("custom/up")
    assert heir is not None
    assert heir is not pool
    assert [account.state for account in heir.view()] == ["banned"]


def test_token_exchanged_without_the_store_is_remembered(
    live: Live, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with BackendApi(seed=1) as web:
        web.state.rotate_refresh = True
        token = Secret(web.accounts["alice"].refresh_token)
        group = {"oauth_token_url": f"{web.url}/oauth/token", "oauth_client_id": "a-client"}
        refreshing = settings | {"refresh_ToAccess": group, "upstream_base_url": web.url}
        change(live, tmp_path, refreshing)
        before = live.lasting.serving.credentials.tokens
        access = before.access(token)
        change(live, tmp_path, refreshing | {"dalle_prompt_prefix": "drawn"})
        after = live.lasting.serving.credentials.tokens
        assert after is not before
        assert after.access(token) == access
        again = after.access(token, not_this=access)
        assert again != access
        used = [call.json["refresh_token"] for call in web.calls("oauth_token")]
        assert len(used) == len(set(used)) == 2


def test_fifty_reloads_leave_nothing_behind(
    live: Live, tmp_path: Path, settings: dict[str, Any], upstream: OpenAICompat
) -> None:
    def reload(number: int) -> None:
        change(live, tmp_path, settings | {"dalle_prompt_prefix": f"draw {number}"})
        assert ask(live) == 200

    process = psutil.Process()
    reload(-1)
    reload(-2)
    live.look()
    threads, descriptors = process.num_threads(), process.num_fds()
    open_upstream = upstream.connections
    for number in range(RELOADS):
        reload(number)
    live.look()
    assert len(said(tmp_path, "config reloaded")) == RELOADS + 2
    wait_for(lambda: process.num_threads() <= threads + JOBS, 10, "the end of threads")
    wait_for(lambda: process.num_fds() <= descriptors + 4, 10, "closed descriptors")
    wait_for(lambda: upstream.connections <= open_upstream + 2, 5, "closed connections")
