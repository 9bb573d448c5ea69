"""Symptoms of starting, and of several processes that know nothing of each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import requests

from emulators.backend_api import BackendApi
from tests.gateway import KEY, ROOT, SERVICE_PYTHON, GatewayProcess, free_port, wait_for

from .support import Told, alice, ask, gateway, watched


@pytest.fixture(scope="module")
def crew(
    upstream_of_file: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway of three workers; whom it meets from its start on is in `seen.txt`."""
    folder = tmp_path_factory.mktemp("crew")
    with gateway(folder, upstream_of_file, watched(folder), process_workers=3) as process:
        yield process


def refuses_to_start(folder: Path, settings: Any) -> str:
    """What a start with these settings prints; it must fail by its settings, in words."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.json"
    config.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    command = [SERVICE_PYTHON, "-m", "services.server.start", "--port", str(free_port())]
    command += ["--config", str(config), "--data", str(folder)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_start_and_answers_need_no_other_host(crew: GatewayProcess, web: BackendApi) -> None:
    told = ask(crew, "Hi there", alice(web), stream_options={"include_usage": True})
    assert told.chunks[-1]["usage"]["completion_tokens"] > 0
    port = int(web.url.rpartition(":")[2])
    lines = (crew.folder / "seen.txt").read_text().splitlines()
    assert any(f"('127.0.0.1', {port})" in line for line in lines)
    near = re.compile(r"127\.0\.0\.1|localhost|::1|/|socket\.getaddrinfo (None|'')")
    assert [line for line in lines if not near.search(line)] == []


def test_mistake_in_the_settings_is_told_in_words(tmp_path: Path) -> None:
    said = refuses_to_start(
        tmp_path / "values", {"process_workers": "many", "bot_mode": {"enabled": "perhaps"}}
    )
    assert "process_workers" in said
    assert "bot_mode.enabled" in said
    assert "line 1" in refuses_to_start(tmp_path / "syntax", '{"log_level": }')


@contextlib.contextmanager
def alone(process: GatewayProcess, worker: int) -> Iterator[None]:
    """Only this worker takes connections."""
    others = [pid for pid in process.workers() if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def test_twenty_requests_over_several_workers_make_one_exchange(
    crew: GatewayProcess, web: BackendApi
) -> None:
    token = web.accounts["alice"].refresh_token
    web.script({"endpoint": "oauth_token", "delay": 2})
    asked: list[Future[Told]] = []
    with ThreadPoolExecutor(21) as pool:
        for worker in crew.workers():
            with alone(crew, worker):
                asked += [pool.submit(ask, crew, "Hi", token) for _ in range(7)]
                wait_for(lambda pid=worker: callers(crew, pid) >= 7, 10, "seven callers")
        assert {future.result().status for future in asked} == {200}
    assert web.count("oauth_token") == 1


def callers(process: GatewayProcess, worker: int) -> int:
    """How many connections this worker has taken."""
    found = psutil.Process(worker).net_connections("tcp")
    return sum(c.laddr.port == process.port and c.status == "ESTABLISHED" for c in found)


def test_revoked_token_is_renewed_at_once_and_a_dead_one_harms_no_other(
    crew: GatewayProcess, web: BackendApi
) -> None:
    token = web.accounts["bob"].refresh_token
    assert ask(crew, "Hi", token).status == 200
    assert ask(crew, "Hi", "rt-dead-for-long").status == 401
    before = web.count("oauth_token")
    web.revoke("bob")
    for stream in (True, False):
        assert ask(crew, "Hi", token, stream=stream).status == 200
    assert web.count("oauth_token") == before + 1
    with redis.Redis(unix_socket_path=str(store_of(crew))) as store:
        kept = [key for key in store.scan_iter("causeway:*") if store.type(key) == b"string"]
        assert [key for key in kept if store.get(key) in (b"null", b"None", b"")] == []


def store_of(process: GatewayProcess) -> Path:
    return process.folder / "data" / "store" / "valkey.sock"


def models(process: GatewayProcess, times: int = 12) -> list[set[str]]:
    """The names that as many listings show, from whichever workers."""
    headers = {"Authorization": f"Bearer {KEY}", "Connection": "close"}
    replies = (
        requests.get(f"{process.url}/v1/models", headers=headers, timeout=10) for _ in range(times)
    )
    return [{model["id"] for model in reply.json()["data"]} for reply in replies]


def test_edited_gpts_file_counts_without_a_restart_in_every_worker(
    crew: GatewayProcess, web: BackendApi
) -> None:
    file = crew.folder / "gpts.json"
    workers = crew.workers()
    assert not any("my-otter" in names for names in models(crew))
    file.write_text(json.dumps({"my-otter": {"id": "g-otter-knows"}}))
    wait_for(lambda: all("my-otter" in names for names in models(crew)), 15, "the new name")
    told = ask(crew, "Hi", alice(web), model="my-otter")
    assert told.status == 200
    asked = web.calls("conversation")[-1].json
    assert asked["conversation_mode"]["kind"] == "gizmo_interaction"
    file.write_text(json.dumps({"other": {"id": "g-other"}, "bad": {"id": 7}}))
    wait_for(
        lambda: all("my-otter" not in names and "other" in names for names in models(crew)),
        15,
        "the old name's end",
    )
    assert crew.workers() == workers


def test_gpts_that_were_asked_for_are_neither_listed_nor_kept_for_ever(
    crew: GatewayProcess, web: BackendApi
) -> None:
    before = models(crew, 1)
    for number in range(5):
        assert ask(crew, "Hi", alice(web), model=f"gpt-4-gizmo-g-n{number}").status == 200
    assert models(crew, 1) == before
    with redis.Redis(unix_socket_path=str(store_of(crew))) as store:
        keys = list(store.scan_iter("causeway:cache:backend_api:gizmo:g-n*"))
        assert len(keys) == 5
        assert all(0 < int(store.ttl(key)) <= 86400 for key in keys)


def just_before_midnight(seconds: int) -> str:
    """A time zone in which the day ends in so many seconds."""
    hours, rest = divmod(int(time.time() + seconds) % 86400, 3600)
    return f"ZONE{hours}:{rest // 60}:{rest % 60}"


def test_log_of_several_processes_loses_no_line_over_a_midnight(
    web: BackendApi, tmp_path: Path
) -> None:
    environ = {"TZ": just_before_midnight(20)}
    with gateway(tmp_path, web, environ, process_workers=3) as crew:
        look_over_midnight(crew)


def look_over_midnight(crew: GatewayProcess) -> None:
    folder, numbers = crew.folder / "log", itertools.count()

    def look(number: int) -> None:
        headers = {"Connection": "close"}
        requests.get(f"{crew.url}/nowhere/{number}-midnight", headers=headers, timeout=10)

    def lines() -> list[str]:
        texts = (path.read_text() for path in sorted(folder.glob("access.log.*")))
        return [line for text in texts for line in text.splitlines()]

    def seen() -> list[int]:
        found = (re.search(r"/(\d+)-midnight", line) for line in lines())
        return sorted(int(match[1]) for match in found if match)

    def each_worker_and_all() -> list[int]:
        first = next(numbers)
        wanted = [first, *itertools.islice(numbers, 10 * len(crew.workers()) + 29)]
        with ThreadPoolExecutor(6) as pool:
            for place, worker in enumerate(crew.workers()):
                with alone(crew, worker):
                    list(pool.map(look, wanted[10 * place : 10 * place + 10]))
            list(pool.map(look, wanted[-30:]))
        return wanted

    def all_in_the_new_file() -> bool:
        wanted = each_worker_and_all()
        wait_for(lambda: len(seen()) > wanted[-1], 10, "all lines")
        text = (folder / "access.log").read_text()
        return all(f"/{number}-midnight" in text for number in wanted)

    each_worker_and_all()
    assert len(list(folder.glob("access.log.2*"))) == 1
    while len(list(folder.glob("access.log.2*"))) == 1:
        look(next(numbers))
        time.sleep(0.2)
    assert all_in_the_new_file()
    sent = next(numbers)
    assert seen() == list(range(sent))
    form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+ \S+ .+")
    assert [line for line in lines() if not form.fullmatch(line)] == []
    assert len(list(folder.glob("access.log.2*"))) == 2


def survives(folder: Path, web: BackendApi, kind: str) -> bool:
    """Whether an answer outlives the worker timeout, with the one thread of old files.

    A timeout of 3 s stands for the usual one.
    """
    environ = {"GUNICORN_CMD_ARGS": "--timeout 3"}
    server = {"worker_class": kind, "idle_timeout": 30}
    with gateway(folder, web, environ, process_threads=1, server=server) as process:
        before = process.workers()
        told = ask(process, "#silence[seconds=5]", alice(web))
        killed = "WORKER TIMEOUT" in process.log_text() or process.workers() != before
        return not killed and (told.text, told.finish, told.done) == ("Hello world!", "stop", True)


def test_answer_longer_than_the_workers_timeout_is_not_killed(
    web: BackendApi, tmp_path: Path
) -> None:
    kinds = ("gevent", "gthread")
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda kind: survives(tmp_path / kind, web, kind), kinds))
