"""What a hot request asks of the store: one round trip before the upstream is called, and none
while its answer comes. Counted on the wire, between the service and the store.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from services.server import embedded_store
from tests.canaries import ADMIN_KEY
from tests.gateway import GatewayProcess, custom, question, wait_for

LIMITS = {"requests_per_minute": 1000, "tokens_per_minute": 1_000_000, "concurrent_streams": 50}
SLOW_WEB = "#long[size=2000,events=60,delay=0.02]"
OF_THE_CLOCK = (
    b":usage",
    b":accounts:added",
    b":job:",
    b":probe",
    b":tokens:due",
    b"CLIENT",
    b"HELLO",
    b"SCRIPT",
)
"""What a worker does every now and then, whether or not a request comes."""


class Sent(NamedTuple):
    """What a client sent in one go, and when."""

    at: float
    data: bytes


class Tap:
    """Passes connections on to a server; `sent` is what clients said to it, turn by turn.

    All that a client sends until the server answers is one turn: a round trip.
    """

    def __init__(self, family: socket.AddressFamily, address: Any) -> None:
        self._target = family, address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent: list[Sent] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            family, address = self._target
            server = socket.socket(family)
            server.connect(address)
            turn = threading.Event()
            turn.set()
            for work in (self._up, self._down):
                threading.Thread(target=work, args=(client, server, turn), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, turn: threading.Event) -> None:
        while data := _received(client):
            if turn.is_set():
                turn.clear()
                self.sent.append(Sent(time.monotonic(), data))
            else:
                self.sent[-1] = Sent(self.sent[-1].at, self.sent[-1].data + data)
            _send(server, data)
        server.close()

    def _down(self, client: socket.socket, server: socket.socket, turn: threading.Event) -> None:
        while data := _received(server):
            turn.set()
            _send(client, data)
        client.close()


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the other side has left
        connection.sendall(data)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


class Taps(NamedTuple):
    store: Tap
    upstream: Tap

    def asked(self, since: float, until: float) -> list[bytes]:
        """What requests asked of the store in that time."""
        turns = [sent.data for sent in self.store.sent if since <= sent.at < until]
        return [data for data in turns if not any(word in data for word in OF_THE_CLOCK)]

    def called(self, since: float) -> float:
        """When the upstream was called."""
        found: Any = wait_for(lambda: [s.at for s in self.upstream.sent if s.at >= since])
        return float(found[0])


@contextmanager
def tapped(folder: Path, upstream: str) -> Iterator[tuple[Taps, dict[str, Any]]]:
    """Taps before an upstream and before a store of our own, and settings for the latter."""
    running = embedded_store.start(folder)
    where = urlsplit(upstream)
    store = Tap(socket.AF_UNIX, running.url.removeprefix("unix://").partition("?")[0])
    tap = Tap(socket.AF_INET, (where.hostname, where.port))
    settings = {
        "auth": {"admin_key": ADMIN_KEY},
        "store": {"url": f"redis://127.0.0.1:{store.port}/0"},
    }
    try:
        yield Taps(store, tap), settings
    finally:
        tap.close()
        store.close()
        running.stop()


def limited_key(process: GatewayProcess) -> str:
    made = process.admin("POST", "/keys", {"name": "bot", "limits": LIMITS})
    return str(made["secret"])


def ask(process: GatewayProcess, key: str, model: str, text: str = "Hi", **fields: Any) -> Any:
    body = question(text, model, **fields)
    answer = process.post(body, headers={"Authorization": f"Bearer {key}"}, stream=True)
    assert answer.status_code == 200, answer.text
    return answer


def check(process: GatewayProcess, taps: Taps, key: str, model: str) -> None:
    """Ask a few times in a row, streamed and not, and look at what the store was asked."""
    for streamed in (False, True) * 3:
        time.sleep(0.1)  # what is noted after an answer has been noted
        began = time.monotonic()
        answer = ask(process, key, model, stream=streamed)
        asked = taps.asked(began, taps.called(began))
        assert len(asked) == 1, asked
        assert b"EVALSHA" in asked[0]
        assert answer.content


def check_while_it_comes(
    process: GatewayProcess, taps: Taps, key: str, model: str, text: str
) -> None:
    """An answer of sixty pieces: what is noted about it, such as that it still goes on, is noted by
    the second and not by the piece.
    """
    began = time.monotonic()
    answer = ask(process, key, model, text, stream=True)
    called = taps.called(began)
    pieces = sum(line.startswith(b"data: {") for line in answer.iter_lines())
    asked = taps.asked(called, time.monotonic())
    assert pieces >= 60
    assert len(asked) <= 8, asked


@pytest.mark.parametrize("calls_per_minute", [0, 1000])
def test_limited_key_and_account_of_a_pool_cost_one_round_trip(
    tmp_path: Path, calls_per_minute: int
) -> None:
    with BackendApi(seed=1) as web, tapped(tmp_path / "store", web.url) as (taps, settings):
        tokens = [web.accounts[name].refresh_token for name in ("alice", "bob")]
        own = {
            "accounts": [{"token": token, "concurrent": 5} for token in tokens],
            "calls_per_minute": calls_per_minute,
        }
        settings |= {
            "upstream_base_url": f"http://127.0.0.1:{taps.upstream.port}",
            "use_pandora_file_server": False,
            "refresh_ToAccess": {
                "oauth_token_url": f"{web.url}/oauth/token",
                "oauth_client_id": "a-client",
            },
            "providers": {"backend_api": own},
        }
        with GatewayProcess(tmp_path / "gateway", settings) as process:
            key = limited_key(process)
            for _ in range(4):
                ask(process, key, "gpt-4-s").close()
            check(process, taps, key, "gpt-4-s")
            check_while_it_comes(process, taps, key, "gpt-4-s", SLOW_WEB)
        assert web.count("oauth_token") == 2


@pytest.mark.parametrize("calls_per_minute", [0, 1000])
def test_limited_key_and_a_callers_own_credential_cost_one_round_trip(
    tmp_path: Path, calls_per_minute: int
) -> None:
    with BackendApi(seed=1) as web, tapped(tmp_path / "store", web.url) as (taps, settings):
        own = {
            "access_token": web.accounts["alice"].access_token,
            "calls_per_minute": calls_per_minute,
        }
        settings |= {
            "upstream_base_url": f"http://127.0.0.1:{taps.upstream.port}",
            "use_pandora_file_server": False,
            "providers": {"backend_api": own},
        }
        with GatewayProcess(tmp_path / "gateway", settings) as process:
            key = limited_key(process)
            ask(process, key, "gpt-4-s").close()
            check(process, taps, key, "gpt-4-s")
            check_while_it_comes(process, taps, key, "gpt-4-s", SLOW_WEB)


def test_limited_key_costs_one_round_trip(tmp_path: Path) -> None:
    with OpenAICompat() as upstream, tapped(tmp_path / "store", upstream.url) as (taps, settings):
        settings["providers"] = custom(f"http://127.0.0.1:{taps.upstream.port}/v1")["providers"]
        with GatewayProcess(tmp_path / "gateway", settings) as process:
            key = limited_key(process)
            ask(process, key, "up/emu-small").close()
            check(process, taps, key, "up/emu-small")
            check_while_it_comes(process, taps, key, "up/emu-small", "#long:60 #tps:50")
