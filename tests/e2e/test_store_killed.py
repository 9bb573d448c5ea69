"""The store is killed in the middle of work and comes back: no answer breaks, no storm follows,
and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from services.server.embedded_store import _socket_path
from services.store import Store
from tests.accounts.support import hanging, server_pid
from tests.canaries import ADMIN_KEY, UPSTREAM_KEY
from tests.e2e.relays import one_api_stream
from tests.gateway import KEY, SERVERS, GatewayProcess, RedisServer, question, wait_for

STREAMS = 20
WORKERS = 2
SLOW = "#long:100 #tps:20"
BRIEF = "#long:100"
WEB, UP = "gpt-4-s", "up/emu-small"


class OnTheNetwork:
    """A server that only we start."""

    def __init__(self, folder: Path, program: str) -> None:
        self._server = RedisServer(folder / "redis", program=program).start()
        self.settings: dict[str, Any] = {"store": {"url": self._server.url}}

    def url(self) -> str:
        return self._server.url

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        self._server.kill()
        yield
        self._server.start()

    def close(self) -> None:
        self._server.kill()


class Embedded:
    """The gateway's own, which the master starts again: it hangs while the store is away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "gateway" / "data" / "store"
        self.settings: dict[str, Any] = {}

    def url(self) -> str:
        return f"unix://{_socket_path(self._folder)}"

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        with contextlib.closing(Store(self.url())) as store:
            server = psutil.Process(server_pid(store))
            assert self.url().removeprefix("unix://") in " ".join(server.cmdline())
            with hanging(server.ppid()):
                os.kill(server.pid, signal.SIGKILL)
                wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE, what="the store's end")
                yield
            wait_for(lambda: store.probe().state == "ok", 15, "the store's return")
            assert server_pid(store) != server.pid

    def close(self) -> None:
        pass


@pytest.fixture(params=["embedded", *SERVERS])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnTheNetwork | Embedded]:
    embedded = request.param == "embedded"
    store = Embedded(tmp_path) if embedded else OnTheNetwork(tmp_path, request.param)
    yield store
    store.close()


class Service:
    """A gateway of two workers before two upstreams, and what its callers do."""

    def __init__(self, process: GatewayProcess, web: BackendApi) -> None:
        self.process = process
        self.web = web

    def ask(self, key: str, model: str = UP) -> int:
        headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
        return int(self.process.post(question("Hi", model), headers=headers).status_code)

    def ask_each_worker(self, key: str, model: str = UP) -> None:
        """One request by each, the others hanging meanwhile."""
        workers = self.process.workers()
        assert len(workers) == WORKERS
        for chosen in workers:
            with contextlib.ExitStack() as others:
                for worker in set(workers) - {chosen}:
                    others.enter_context(hanging(worker))
                assert self.ask(key, model) == 200

    def statuses(self, key: str, model: str, times: int = 10) -> set[int]:
        with ThreadPoolExecutor(times) as pool:
            return set(pool.map(lambda _: self.ask(key, model), range(times)))

    def counted(self, key_id: str) -> int:
        rows = self.process.admin("GET", f"/usage?key={key_id}")["data"]
        return sum(row["requests"] for row in rows)

    def health(self) -> str:
        answer = requests.get(f"{self.process.url}/health", timeout=10)
        return str(answer.json()["status"])

    def exchanged(self) -> list[str]:
        """The refresh tokens exchanged so far."""
        return [call.json["refresh_token"] for call in self.web.calls("oauth_token")]


def settings_for(up: OpenAICompat, web: BackendApi, store: dict[str, Any]) -> dict[str, Any]:
    return store | {
        "process_workers": WORKERS,
        "auth": {"keys": [KEY], "admin_key": ADMIN_KEY, "passthrough": True},
        "use_pandora_file_server": False,
        "upstream_base_url": web.url,
        "refresh_ToAccess": {"oauth_token_url": f"{web.url}/oauth/token", "oauth_client_id": "a"},
        "providers": {
            "backend_api": {"calls_per_minute": 0},
            "custom": [{"prefix": "up", "base_url": up.base_url, "api_key": UPSTREAM_KEY}],
        },
    }


@pytest.fixture
def up() -> Iterator[OpenAICompat]:
    with OpenAICompat([UPSTREAM_KEY]) as upstream:
        yield upstream


@pytest.fixture
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


class Streams:
    """Slow streams that run at the same time."""

    def __init__(self, process: GatewayProcess, keys: Sequence[str], pool: ThreadPoolExecutor):
        self._process = process
        self._begun = threading.Semaphore(0)
        self._running = [pool.submit(self._read, keys[n % len(keys)]) for n in range(STREAMS)]

    def _read(self, key: str) -> requests.Response:
        body = question(SLOW, UP, stream=True, stream_options={"include_usage": True})
        headers = {"Authorization": f"Bearer {key}"}
        answer: requests.Response = self._process.post(body, headers=headers, stream=True)
        pieces = answer.iter_content(None)
        first = next(pieces)
        self._begun.release()
        answer._content = first + b"".join(pieces)  # as `.content` does
        return answer

    def wait_until_begun(self) -> None:
        for _ in self._running:
            assert self._begun.acquire(timeout=15)

    def under_way(self) -> int:
        return sum(not future.done() for future in self._running)

    def ended(self) -> list[requests.Response]:
        results: list[Future[requests.Response]] = self._running
        return [future.result(timeout=30) for future in results]


def test_killed_store_breaks_no_answer_starts_no_storm_and_loses_nothing(
    kind: OnTheNetwork | Embedded, up: OpenAICompat, web: BackendApi, tmp_path: Path
) -> None:
    alice, bob = (web.accounts[name].refresh_token for name in ("alice", "bob"))
    settings = settings_for(up, web, kind.settings)
    with GatewayProcess(tmp_path / "gateway", settings) as process, ThreadPoolExecutor(99) as pool:
        service = Service(process, web)
        made = service.process.admin(
            "POST", "/keys", {"name": "bot", "limits": {"requests_per_day": 999}}
        )
        key, key_id = made["secret"], made["key"]["id"]
        web.state.rotate_refresh = True
        service.ask_each_worker(alice, WEB)
        web.state.rotate_refresh = False
        service.ask_each_worker(key)
        assert service.exchanged() == [alice]
        rotated = web.accounts["alice"].refresh_token
        assert rotated != alice
        wait_for(lambda: service.counted(key_id) == WORKERS, what="the usage of the key")
        whole = one_api_stream(
            process.post(question(BRIEF, UP, stream=True, stream_options={"include_usage": True}))
        )
        streams = Streams(process, [key, KEY], pool)
        streams.wait_until_begun()

        with kind.killed():
            assert streams.under_way() == STREAMS
            assert service.statuses(alice, WEB) == {200}
            assert service.statuses(key, UP) == {200}
            assert service.statuses(KEY, UP) == {200}
            assert service.exchanged() == [alice]
            assert service.statuses(bob, WEB) == {200}
            assert 1 <= service.exchanged().count(bob) <= WORKERS, "each helps itself, once"
        exchanged = len(service.exchanged())

        for answer in streams.ended():
            relayed = one_api_stream(answer)
            assert relayed.finishes == ["stop"]
            assert relayed.text == whole.text
            assert relayed.usage and whole.usage
            assert relayed.usage.completion_tokens == whole.usage.completion_tokens
            assert answer.content.endswith(b"data: [DONE]\n\n")
        wait_for(lambda: service.health() == "ok", 40, "health")
        assert service.statuses(alice, WEB, 20) == {200}
        assert len(service.exchanged()) == exchanged
        assert service.statuses(bob, WEB, 20) == {200}
        assert len(service.exchanged()) <= exchanged + 1
        assert service.process.admin("GET", f"/keys/{key_id}")["name"] == "bot"
        assert service.statuses(key, UP) == {200}
        served = WORKERS + STREAMS // 2 + 2 * 10
        wait_for(lambda: service.counted(key_id) == served, 20, f"the usage of {served} requests")

    exchanged = len(service.exchanged())
    with GatewayProcess(tmp_path / "gateway", settings) as process:
        service = Service(process, web)
        assert service.statuses(alice, WEB) == {200}
        assert service.statuses(bob, WEB) == {200}
        assert len(service.exchanged()) == exchanged, "what was obtained is in the store"
        web.revoke("alice")
        assert service.statuses(alice, WEB) == {200}
        assert service.exchanged()[exchanged:] == [rotated]
        assert service.counted(key_id) == served
        assert service.statuses(key, UP) == {200}
