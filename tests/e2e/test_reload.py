"""The configuration changes while the service runs: taken up whole, or refused whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from emulators.openai_compat import OpenAICompat
from tests.canaries import MARK
from tests.gateway import KEY, GatewayProcess, custom, question, wait_for

NEW_KEY = f"sk-test-{MARK}-after-an-edit-9876543210"
WORKERS = 2
ASKED = 12
"""New connections, which mostly reach every worker; that each has the settings its log says."""


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def process(
    request: pytest.FixtureRequest,
    openai_upstream: OpenAICompat,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp(request.param)
    settings = based(openai_upstream, request.param)
    with GatewayProcess(folder, settings) as running:
        yield running


@pytest.fixture
def settings(process: GatewayProcess, upstream: OpenAICompat) -> dict[str, Any]:
    """Those of the start, which serve again when a test begins."""
    settings = based(upstream, worker_class(process))
    now = process.config.read_text() if process.config.exists() else ""
    if now != json.dumps({"log_level": "INFO", **settings}):
        take_up(process, settings)
    return settings


def based(upstream: OpenAICompat, kind: str) -> dict[str, Any]:
    return custom(upstream.base_url, models=["emu-small"]) | {
        "process_workers": WORKERS,
        "server": {"worker_class": kind},
    }


def worker_class(process: GatewayProcess) -> str:
    return "gthread" if "gthread" in process.folder.name else "gevent"


def ask(process: GatewayProcess, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return int(process.post(question("#echo hi"), headers=headers).status_code)


def everywhere(process: GatewayProcess, holds: Callable[[], bool]) -> bool:
    return all(holds() for _ in range(ASKED))


def states(process: GatewayProcess) -> set[str]:
    """What the workers say of their configuration."""
    return {health(process)["config"]["state"] for _ in range(ASKED)}


def health(process: GatewayProcess) -> Any:
    return requests.get(f"{process.url}/health", timeout=10).json()


def said(process: GatewayProcess, words: str) -> list[str]:
    return [line for line in process.log_text().splitlines() if words in line]


def hang_up(process: GatewayProcess, answer: str) -> str:
    """SIGHUP to the master; what it has to say to it."""
    before = len(said(process, answer))
    os.kill(process.pid, signal.SIGHUP)
    wait_for(lambda: len(said(process, answer)) > before, 60, answer)
    return said(process, answer)[before]


def take_up(process: GatewayProcess, settings: dict[str, Any], leaving: bool = True) -> str:
    """The log's line about `settings`, once new workers serve by them; `leaving`: and once the
    old ones have left.
    """
    old = set(process.workers())
    process.configure(settings)
    line = hang_up(process, "config reloaded")
    if "changed=nothing" not in line:
        wait_for(lambda: not leaving or not old & set(process.workers()), 60, "their leaving")
        wait_for(lambda: len(set(process.workers()) - old) == WORKERS, 60, "new workers")
    return line


def test_edit_is_taken_up_without_a_signal(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    old = set(process.workers())
    before = len(said(process, "config reloaded"))
    process.configure(settings | {"auth": {"keys": [NEW_KEY]}})
    wait_for(lambda: len(said(process, "config reloaded")) > before, 60, "the reload")
    wait_for(lambda: not old & set(process.workers()), 60, "the old workers' end")
    assert everywhere(process, lambda: ask(process, NEW_KEY) == 200)
    assert everywhere(process, lambda: ask(process, KEY) == 401)
    assert said(process, "config reloaded")[before:][0].endswith("changed=auth.keys")
    assert len(process.workers()) == WORKERS


def test_open_stream_outlives_the_change_and_ends_whole(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    body = question("#tps:4 #long:40", stream=True)
    with process.post(body, stream=True) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line)
        gone = {"custom": [{"prefix": "other", "base_url": "http://127.0.0.1:9/v1"}]}
        take_up(process, settings | {"auth": {"keys": [NEW_KEY]}, "providers": gone}, False)
        wait_for(lambda: everywhere(process, lambda: ask(process, KEY) == 401), 30, "new keys only")
        frames = [first, *(line for line in lines if line)]
    assert frames[-1] == b"data: [DONE]"
    choices = [json.loads(frame[6:])["choices"] for frame in frames[:-1]]
    pieces = [choice[0]["delta"].get("content") for choice in choices if choice]
    assert len([piece for piece in pieces if piece]) == 40
    assert choices[-1][0]["finish_reason"] == "stop"
    wait_for(lambda: len(process.workers()) == WORKERS, 30, "the old worker's end")


BROKEN = {
    "half written": ('{"auth": {"keys": ["', 1),
    "empty": ("", 1),
    "unknown field of a provider": (
        json.dumps(
            {"providers": {"custom": [{"prefix": "x", "base_url": "http://h/v1", "no": 1}]}}
        ),
        1,
    ),
    "two mistakes": (json.dumps({"server": {"keepalive": "x", "idle_timeout": -1}}), 2),
    "accounts that are not there": (
        json.dumps({"providers": {"backend_api": {"accounts_file": "/nonexistent/accounts"}}}),
        1,
    ),
    "a vault key that is none": (json.dumps({"store": {"secret_key": f"{MARK}-no-key"}}), 1),
    "keys too weak for the world": (
        json.dumps({"server": {"host": "0.0.0.0"}, "auth": {"keys": ["short"]}}),
        1,
    ),
}


@pytest.mark.parametrize("process", ["gevent"], indirect=True)
@pytest.mark.parametrize("name", BROKEN)
def test_invalid_edit_is_refused_and_mended(
    process: GatewayProcess, settings: dict[str, Any], name: str
) -> None:
    text, problems = BROKEN[name]
    workers = set(process.workers())
    before = len(said(process, "config problem: "))
    process.config.write_text(text)
    refused = hang_up(process, "config refused")
    assert f"problems={problems}:" in refused
    assert " ERROR " in refused
    listed = said(process, "config problem: ")[before:]
    assert len(listed) == problems
    assert not any("draft" in line for line in listed)
    report = health(process)
    assert report["config"] == {"state": "refused", "problems": problems}
    assert report["status"] == "degraded"
    assert str(process.folder) not in json.dumps(report)
    assert everywhere(process, lambda: ask(process, KEY) == 200)
    assert set(process.workers()) == workers
    take_up(process, settings | {"dalle_prompt_prefix": name})
    assert states(process) == {"ok"}


def test_file_that_goes_away_opens_no_door(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    process.config.unlink()
    hang_up(process, "config refused")
    assert everywhere(process, lambda: ask(process, KEY) == 200)
    assert ask(process, "sk-of-nobody-0123456789") == 401
    take_up(process, settings)


def test_keys_stay_while_the_service_listens_to_the_world(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    """Though the new file says that it listens on loopback."""
    settings = based(upstream, "gevent")
    world = settings["server"] | {"host": "0.0.0.0"}
    with GatewayProcess(tmp_path, settings | {"server": world, "auth": {"keys": [KEY]}}) as process:
        process.configure(settings | {"auth": {}})
        hang_up(process, "config refused")
        assert ask(process, "sk-of-nobody-0123456789") == 401


def test_signal_without_a_change_changes_nothing(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    workers, reloads = process.workers(), said(process, "config reloaded")
    process.config.touch()
    hang_up(process, "config unchanged")
    for worker in workers:  # as when a terminal is closed
        os.kill(worker, signal.SIGHUP)
    assert everywhere(process, lambda: ask(process, KEY) == 200)
    assert said(process, "config reloaded") == reloads
    assert process.workers() == workers


def test_other_spelling_of_the_same_settings_starts_no_worker(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    workers = process.workers()
    process.config.write_text(json.dumps({"log_level": "INFO", **settings}, indent=4))
    assert hang_up(process, "config reloaded").endswith("changed=nothing")
    assert process.workers() == workers


def test_keys_that_need_a_restart_are_named_and_the_rest_is_taken_up(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    server = {"worker_class": worker_class(process), "port": 1, "stream_usage": "always"}
    changed = settings | {
        "auth": {"keys": [NEW_KEY]},
        "server": server,
        "store": {"namespace": "elsewhere"},
    }
    line = take_up(process, changed)
    assert "changed=server.stream_usage,auth.keys " in line
    assert line.endswith(" needs_restart=store.namespace")  # the port is the start's own flag
    assert everywhere(process, lambda: ask(process, NEW_KEY) == 200)
    frames = process.post(
        question("hi", stream=True), headers={"Authorization": f"Bearer {NEW_KEY}"}
    )
    assert '"usage":{' in frames.text.replace('": ', '":')


def test_worker_that_dies_while_a_file_is_refused_comes_back_with_the_last_good_one(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    take_up(process, settings | {"auth": {"keys": [NEW_KEY]}, "store": {"namespace": "elsewhere"}})
    process.config.write_text("{ not JSON")
    hang_up(process, "config refused")
    victim = process.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(
        lambda: victim not in process.workers() and len(process.workers()) == WORKERS,
        15,
        "the new worker",
    )
    assert everywhere(process, lambda: ask(process, NEW_KEY) == 200)
    assert everywhere(process, lambda: ask(process, KEY) == 401)
    assert states(process) == {"refused"}


def test_no_request_fails_during_five_reloads(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    over = threading.Event()

    def hammer(keep: bool) -> list[int]:
        statuses: list[int] = []
        with requests.Session() as session:
            while not over.is_set():
                answer = (session if keep else requests).post(
                    f"{process.url}/v1/chat/completions",
                    json=question("#echo hi"),
                    headers={"Authorization": f"Bearer {KEY}"},
                    timeout=20,
                )
                statuses.append(answer.status_code)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        hammering = [pool.submit(hammer, keep) for keep in (True, True, False, False)]
        try:
            for number in range(5):
                take_up(process, settings | {"dalle_prompt_prefix": f"draw {number}"})
        finally:
            over.set()
        statuses = [status for one in hammering for status in one.result()]
    assert set(statuses) == {200}
    assert len(statuses) > 20


def test_private_copies_go_with_the_service(upstream: OpenAICompat, tmp_path: Path) -> None:
    aside = Path(tempfile.mkdtemp())  # a socket's address has to be short
    settings = custom(upstream.base_url, models=["emu-small"])
    with GatewayProcess(tmp_path, settings, TMPDIR=str(aside)) as process:
        (folder,) = copies(aside)
        assert folder.stat().st_mode & 0o077 == 0
        assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}
        assert (folder / "config.json").read_bytes() == process.config.read_bytes()
    assert copies(aside) == []
    shutil.rmtree(aside)


def copies(folder: Path) -> list[Path]:
    """Those that services whose temporary files are in `folder` keep."""
    return list(folder.glob("causeway-metrics-*/config"))
