"""The service without its store: degraded, answering, and recovering by itself."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import requests

from emulators.openai_compat import OpenAICompat
from services.server.embedded_store import find_server
from tests.accounts.support import hanging
from tests.canaries import ADMIN_KEY
from tests.gateway import GatewayProcess, custom, free_port, question, wait_for


def health(process: GatewayProcess) -> dict[str, object]:
    answer: dict[str, object] = requests.get(f"{process.url}/health", timeout=10).json()
    return answer


def test_service_starts_without_its_store_and_recovers_when_it_comes(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    port = free_port()
    settings = custom(upstream.base_url) | {"redis": {"host": "127.0.0.1", "port": port}}
    with GatewayProcess(tmp_path / "gateway", settings) as process:
        assert health(process)["status"] == "degraded"
        assert "store" in str(health(process)["reasons"])
        assert process.post(question("#echo hello")).status_code == 200
        command = [str(find_server()), "--port", str(port), "--dir", str(tmp_path), "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            wait_for(lambda: health(process)["status"] == "ok", 40, "recovery")
            server.kill()
        wait_for(lambda: health(process)["status"] == "degraded", 10, "the loss being seen")
        assert process.post(question("#echo hello")).status_code == 200
        assert process.log_text().count("store away") == 2


class Server:
    """A Valkey server on a port, which can be made to refuse."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [str(find_server()), "--port", str(self.port), "--dir", str(folder)]
        command += ["--save", "", "--busy-reply-threshold", "100"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.admin = redis.Redis(port=self.port)
        wait_for(lambda: is_answering(self.admin))

    def close(self) -> None:
        self.admin.close()
        self._process.kill()
        self._process.wait()


def is_answering(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


@contextlib.contextmanager
def without_replicas(server: Server) -> Iterator[None]:
    server.admin.config_set("min-replicas-to-write", 1)
    yield
    server.admin.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def without_memory(server: Server) -> Iterator[None]:
    server.admin.config_set("maxmemory", 1)
    yield
    server.admin.config_set("maxmemory", 0)


@contextlib.contextmanager
def with_a_new_password(server: Server) -> Iterator[None]:
    server.admin.config_set("requirepass", "new")
    server.admin.client_kill_filter(_type="normal", skipme=True)
    yield
    server.admin.config_set("requirepass", "")


@contextlib.contextmanager
def with_a_demoted_server(server: Server) -> Iterator[None]:
    server.admin.replicaof("127.0.0.1", str(free_port()))
    yield
    server.admin.replicaof("NO", "ONE")


@contextlib.contextmanager
def with_a_script_that_runs_on(server: Server) -> Iterator[None]:
    with redis.Redis(port=server.port) as other, ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            other.eval, "local e = os.clock() + 30 while os.clock() < e do end", 0
        )
        wait_for(lambda: not is_free(server), 10, "the script's being noticed")
        yield
        with contextlib.suppress(redis.ResponseError):
            server.admin.script_kill()
        assert isinstance(running.exception(), redis.ResponseError)


def is_free(server: Server) -> bool:
    try:
        return bool(server.admin.ping())
    except redis.ResponseError:
        return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.close()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (without_replicas, "it has too few replicas"),
        (without_memory, "it is out of memory"),
        (with_a_demoted_server, "it is a read-only replica"),
        (with_a_new_password, "it asks for a password"),
        (with_a_script_that_runs_on, "a script keeps it busy"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_server_that_refuses_is_away_and_no_caller_gets_an_error(
    fault: Callable[[Server], contextlib.AbstractContextManager[None]],
    reason: str,
    upstream: OpenAICompat,
    server: Server,
    tmp_path: Path,
) -> None:
    settings = custom(upstream.base_url) | {
        "process_workers": 2,
        "redis": {"host": "127.0.0.1", "port": server.port},
    }
    settings["auth"] |= {"admin_key": ADMIN_KEY}
    with GatewayProcess(tmp_path / "gateway", settings) as process:
        made = process.admin("POST", "/keys", {"name": "a", "limits": {"requests_per_day": 999}})
        headers = {"Authorization": f"Bearer {made['secret']}", "Connection": "close"}

        def ask(_: object = None) -> int:
            return int(process.post(question("#echo x"), headers=headers).status_code)

        def statuses() -> set[int]:
            with ThreadPoolExecutor(8) as pool:
                return set(pool.map(ask, range(40)))

        for worker in process.workers():  # the other has to know the key
            with hanging(worker):
                assert ask() == 200
        with fault(server):
            assert statuses() == {200}
            wait_for(lambda: reason in str(health(process)["reasons"]), 10, "the reason")
            assert health(process)["status"] == "degraded"
            killed, *_ = process.workers()
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: len(set(process.workers()) - {killed}) == 2, 20, "another worker")
            body = question("#echo x")
            assert {process.post(body).status_code for _ in range(10)} == {200}
        wait_for(lambda: health(process)["status"] == "ok", 20, "recovery")
        wait_for(lambda: statuses() == {200}, 20, "all workers' recovery")
        assert process.stop() == 0
        assert "Traceback" not in process.log_text()
        assert process.log_text().count("store away") <= 2 * 3


@pytest.mark.parametrize(
    ("password", "reason"),
    [("", "it asks for a password"), ("wrong", "it refuses our user or password")],
)
def test_start_says_in_words_why_the_store_is_away(
    password: str, reason: str, upstream: OpenAICompat, server: Server, tmp_path: Path
) -> None:
    server.admin.config_set("requirepass", "right")
    group = {"host": "127.0.0.1", "port": server.port, "password": password}
    settings = custom(upstream.base_url) | {"redis": group}
    with GatewayProcess(tmp_path / "gateway", settings, SERVER_HOST="127.0.0.1") as process:
        away = [line for line in process.log_text().splitlines() if "store away" in line]
        assert len(away) == 1
        assert f'reason="{reason}"' in away[0] or f"reason='{reason}'" in away[0]
        assert f"address=127.0.0.1:{server.port}" in away[0]
