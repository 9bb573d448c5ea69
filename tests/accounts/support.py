"""What the account tests share: token managers on real stores and endpoints, and steered clocks."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from services import transport
from services.accounts.token_endpoint import refresher_of
from services.accounts.token_store import TokenFiles, TokenStore
from services.accounts.tokens import TokenManager
from services.accounts.vault import open_vault
from services.config import RefreshToAccess
from services.server.embedded_store import EmbeddedStore
from services.store import Store
from services.transport import Timeouts
from tests.gateway import ROOT, wait_for

QUICK = Timeouts(connect=1.0, first_byte=0.6, idle=0.6, total=1.0)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now


def official(url: str, **fields: Any) -> RefreshToAccess:
    """Settings for the official form at an emulator."""
    return RefreshToAccess(
        oauth_token_url=f"{url}/oauth/token",
        oauth_client_id="app",
        oauth_redirect_uri="app://callback",
        **fields,
    )


def manager(store: Store, folder: Path, group: RefreshToAccess, **options: Any) -> TokenManager:
    """A token manager such as one worker has."""
    vault = open_vault(folder)
    refresher = refresher_of(group, transport.Transport(), QUICK)
    files = TokenFiles(folder / "data" / "tokens", vault)
    return TokenManager(TokenStore(store, vault), refresher, files, **options)


def together(count: int, task: Callable[[], Any]) -> list[Any]:
    """What `count` threads get from `task`, begun at once; an exception counts as a result."""
    results: list[Any] = []
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        try:
            results.append(task())
        except Exception as exc:
            results.append(exc)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == count
    return results


def jwt(expires: float, name: str = "x") -> str:
    """An unsigned access token."""
    parts = ({"alg": "none"}, {"exp": int(expires), "sub": name})
    coded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts)
    return ".".join(text.rstrip("=") for text in coded) + ".canary7f3e-unsigned"


def server_pid(store: Store) -> int:
    [about] = store.pipeline(lambda p: p.info("server"))
    return int(about["process_id"])


class Monitor:
    """Everything that a server is told, as MONITOR shows it."""

    def __init__(self, store: Store) -> None:
        connection: Any = store.pool.make_connection()
        self._connection = connection
        self._connection.connect()
        self._connection.send_command("MONITOR")
        assert self._connection.read_response() == b"OK"
        self.text = ""

    def read(self, until: str) -> str:
        """All up to a line that holds `until`."""
        while until not in self.text:
            line = self._connection.read_response()
            self.text += (line if isinstance(line, str) else bytes(line).decode()) + "\n"
        return self.text

    def close(self) -> None:
        self._connection.disconnect()


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """The process hangs meanwhile."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def killed(server: EmbeddedStore, store: Store) -> Iterator[None]:
    """The server is dead meanwhile, and starts again afterwards."""
    os.kill(server_pid(store), signal.SIGKILL)
    yield
    wait_for(lambda: server.keep_running() or store.probe().state == "ok")


def start_workers(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """`count` processes of tests/accounts/worker.py that wait for a line before they begin."""
    command = [sys.executable, "-m", "tests.accounts.worker", *arguments]
    workers = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    return workers


def results_of(workers: list[subprocess.Popen[str]]) -> list[list[str]]:
    """Let them begin at once; what each of their threads got."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
