"""A limit of calls a minute: exact over processes, and still a limit without the store."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import embedded_store
from services.embedded_store import EmbeddedStore
from services.rate_gate import StoreRateGate
from services.store import Store
from tests.gateway import ROOT

LIMIT = 60
PROCESSES = 4
WORKER = """
import json, sys
from services.rate_gate import StoreRateGate
from services.store import Store
gate = StoreRateGate(Store(sys.argv[1]))
sys.stdin.readline()
print(json.dumps([gate.wait("shared", int(sys.argv[2]), 0.0) for _ in range(40)]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    running = embedded_store.start(tmp_path_factory.mktemp("gate"))
    yield running
    running.stop()


@pytest.fixture
def gate(server: EmbeddedStore, request: pytest.FixtureRequest) -> Iterator[StoreRateGate]:
    with contextlib.closing(Store(server.url, namespace=request.node.name[:60])) as store:
        yield StoreRateGate(store)


def test_four_processes_together_get_exactly_the_limit(server: EmbeddedStore) -> None:
    command = [sys.executable, "-c", WORKER, server.url, str(LIMIT)]
    workers = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    for worker in workers:  # all wait for this line, so that they start together
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outcomes = [json.loads(worker.communicate(timeout=30)[0]) for worker in workers]
    let_through = sum(outcome.count(None) for outcome in outcomes)
    assert let_through == LIMIT
    assert all(0 < wait <= 60 for outcome in outcomes for wait in outcome if wait is not None)


def test_keys_are_counted_apart(gate: StoreRateGate) -> None:
    assert [gate.wait(key, 1, 0.0) for key in ("a", "b")] == [None, None]
    assert gate.wait("a", 1, 0.0) is not None


def test_full_gate_tells_the_seconds_without_waiting_them(gate: StoreRateGate) -> None:
    gate.wait("k", 1, 0.0)
    began = time.monotonic()
    seconds = gate.wait("k", 1, 5.0)
    assert seconds is not None
    assert 50 < seconds <= 60
    assert time.monotonic() - began < 1


def test_place_that_gets_free_in_time_is_waited_for(
    gate: StoreRateGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 59.3)
    assert gate.wait("k", 1, 0.0) is None
    monkeypatch.undo()
    began = time.monotonic()
    assert gate.wait("k", 1, 5.0) is None
    assert 0.2 < time.monotonic() - began < 4


def test_each_process_counts_for_itself_while_the_store_is_away() -> None:
    first, second = StoreRateGate(Store("")), StoreRateGate(Store(""))
    outcomes = [first.wait("k", 3, 0.0) for _ in range(5)]
    assert outcomes[:3] == [None] * 3
    assert all(wait is not None and 0 < wait <= 60 for wait in outcomes[3:])
    assert second.wait("k", 3, 0.0) is None


def test_store_that_goes_away_is_not_waited_for(tmp_path: Path) -> None:
    running = embedded_store.start(tmp_path)
    with contextlib.closing(Store(running.url, timeout=0.5)) as store:
        gate = StoreRateGate(store)
        assert gate.wait("k", 2, 0.0) is None
        running.stop()
        began = time.monotonic()
        outcomes = [gate.wait("k", 2, 0.0) for _ in range(4)]
        assert time.monotonic() - began < 2
    assert [outcome is None for outcome in outcomes] == [True, True, False, False]
