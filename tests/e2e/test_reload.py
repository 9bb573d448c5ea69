"""The configuration changes while the service runs: taken up whole, or refused whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
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


def all_serve_it(process: GatewayProcess, since: int) -> bool:
    """Whether every worker has said that it serves the file as it is; the first of those lines may
    be about the file before. One that starts hears no signal yet.
    """
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.3)
    lines = said(process, "config unchanged")[since:]
    told = [int(n) for line in lines for n in re.findall(r"worker=(\d+)", line)]
    return all(told.count(pid) >= 2 for pid in process.workers())


@pytest.fixture
def settings(process: GatewayProcess, upstream: OpenAICompat) -> dict[str, Any]:
    """Those of the start, which serve again when a test begins."""
    settings = based(upstream, worker_class(process))
    process.configure(settings)
    since = len(said(process, "config unchanged"))
    wait_for(lambda: all_serve_it(process, since), 20, "the settings of the start")
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


def hang_up(process: GatewayProcess, answer: str) -> list[str]:
    """SIGHUP to the master; what each worker has to say to it."""
    before = len(said(process, answer))
    os.kill(process.pid, signal.SIGHUP)
    wait_for(lambda: len(said(process, answer)) >= before + WORKERS, 15, answer)
    return said(process, answer)[before:]


def take_up(process: GatewayProcess, settings: dict[str, Any]) -> list[str]:
    """The log lines of the workers that have taken up `settings`."""
    before = len(said(process, "config reloaded"))
    process.configure(settings)
    os.kill(process.pid, signal.SIGHUP)
    wait_for(lambda: len(said(process, "config reloaded")) >= before + WORKERS, 15, "the reload")
    return said(process, "config reloaded")[before:]


def test_edit_is_taken_up_by_every_worker_without_a_signal(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    workers = set(process.workers())
    before = len(said(process, "config reloaded"))
    process.configure(settings | {"auth": {"keys": [NEW_KEY]}})
    wait_for(lambda: len(said(process, "config reloaded")) >= before + WORKERS, 15, "the reload")
    assert everywhere(process, lambda: ask(process, NEW_KEY) == 200)
    assert everywhere(process, lambda: ask(process, KEY) == 401)
    lines = said(process, "config reloaded")[before:]
    assert {int(n) for line in lines for n in re.findall(r"worker=(\d+)", line)} == workers
    assert all("changed=auth.keys" in line for line in lines)
    assert set(process.workers()) == workers


def test_open_stream_outlives_the_change_and_ends_whole(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    body = question("#tps:8 #long:16", stream=True)
    with process.post(body, stream=True) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line)
        gone = {"custom": [{"prefix": "other", "base_url": "http://127.0.0.1:9/v1"}]}
        take_up(process, settings | {"auth": {"keys": [NEW_KEY]}, "providers": gone})
        assert ask(process, KEY) == 401
        frames = [first, *(line for line in lines if line)]
    assert frames[-1] == b"data: [DONE]"
    choices = [json.loads(frame[6:])["choices"] for frame in frames[:-1]]
    pieces = [choice[0]["delta"].get("content") for choice in choices if choice]
    assert len([piece for piece in pieces if piece]) == 16
    assert choices[-1][0]["finish_reason"] == "stop"


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
    assert all(f"problems={problems}:" in line and " ERROR " in line for line in refused)
    listed = said(process, "config problem: ")[before:]
    assert len(listed) == WORKERS * problems
    report = health(process)
    assert report["config"] == {"state": "refused", "problems": problems}
    assert report["status"] == "degraded"
    assert str(process.folder) not in json.dumps(report)
    assert everywhere(process, lambda: ask(process, KEY) == 200)
    take_up(process, settings | {"dalle_prompt_prefix": name})
    assert states(process) == {"ok"}
    assert set(process.workers()) == workers


def test_file_that_goes_away_opens_no_door(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    process.config.unlink()
    hang_up(process, "config refused")
    assert everywhere(process, lambda: ask(process, KEY) == 200)
    assert ask(process, "sk-of-nobody-0123456789") == 401
    process.configure(settings)


def test_signal_without_a_change_changes_nothing(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    workers, reloads = process.workers(), said(process, "config reloaded")
    process.config.touch()
    hang_up(process, "config unchanged")
    before = len(said(process, "config unchanged"))
    for worker in workers:  # as when a terminal is closed
        os.kill(worker, signal.SIGHUP)
    wait_for(lambda: len(said(process, "config unchanged")) >= before + WORKERS, 10, "their word")
    assert said(process, "config reloaded") == reloads
    assert process.workers() == workers


def test_keys_that_need_a_restart_are_named_and_the_rest_is_taken_up(
    process: GatewayProcess, settings: dict[str, Any]
) -> None:
    server = {
        "worker_class": worker_class(process),
        "graceful_timeout": 7,
        "stream_usage": "always",
    }
    changed = settings | {
        "auth": {"keys": [NEW_KEY]},
        "process_workers": 1,
        "server": server,
        "store": {"namespace": "elsewhere"},
    }
    for line in take_up(process, changed):
        assert "changed=server.stream_usage,auth.keys " in line
        named = "process_workers,server.graceful_timeout,store.namespace"
        assert line.endswith(f" needs_restart={named}")
    assert everywhere(process, lambda: ask(process, NEW_KEY) == 200)
    assert len(process.workers()) == WORKERS
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
    (fresh,) = set(process.workers()) - {int(p) for p in told_of(process)}
    wait_for(lambda: said(process, f"config refused worker={fresh} "), 15, "its word")
    assert everywhere(process, lambda: ask(process, NEW_KEY) == 200)
    assert everywhere(process, lambda: ask(process, KEY) == 401)
    assert states(process) == {"refused"}


def told_of(process: GatewayProcess) -> list[str]:
    """The workers that have reloaded before."""
    return re.findall(r"config reloaded worker=(\d+)", process.log_text())


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
        assert (folder / "started.json").read_bytes() == process.config.read_bytes()
    assert copies(aside) == []
    shutil.rmtree(aside)


def copies(folder: Path) -> list[Path]:
    """Those that services whose temporary files are in `folder` keep."""
    return list(folder.glob("causeway-metrics-*/config"))
