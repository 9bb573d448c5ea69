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

from services.accounts.call_limiter import CallLimiter
from services.core.models import CallLimit
from services.server import embedded_store
from services.store import Store
from tests.gateway import ROOT

LIMIT = 60
PROCESSES = 4


def limit(account: str, per_minute: int) -> CallLimit:
    return CallLimit("up", account, per_minute)


WORKER = """
import json, sys
from services.core.models import CallLimit
from services.accounts.call_limiter import CallLimiter
from services.store import Store
limiter = CallLimiter(Store(sys.argv[1]))
sys.stdin.readline()
print(json.dumps([limiter.take(CallLimit('up', 'shared', int(sys.argv[2]))) for _ in range(40)]))
"""


@pytest.fixture
def limiter(store_url: str, request: pytest.FixtureRequest) -> Iterator[CallLimiter]:
    with contextlib.closing(Store(store_url, namespace=request.node.name[:60])) as store:
        yield CallLimiter(store)


def test_four_processes_together_get_exactly_the_limit(store_url: str) -> None:
    command = [sys.executable, "-c", WORKER, store_url, str(LIMIT)]
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


def test_keys_are_counted_apart(limiter: CallLimiter) -> None:
    assert [limiter.take(limit(key, 1)) for key in ("a", "b")] == [None, None]
    assert limiter.take(limit("a", 1)) is not None


def test_full_minute_tells_the_seconds_without_waiting_them(limiter: CallLimiter) -> None:
    limiter.take(limit("k", 1))
    began = time.monotonic()
    seconds = limiter.take(limit("k", 1))
    assert seconds is not None
    assert 50 < seconds <= 60
    assert time.monotonic() - began < 1


def test_place_is_free_again_after_a_minute(limiter: CallLimiter, store_url: str) -> None:
    one = limit("k", 1)
    assert limiter.take(one) is None
    with contextlib.closing(Store(store_url, namespace="any")) as store:
        now = time.time()
        [name] = store.run(lambda c: c.keys("test_place_is_free*:calls:k"))
        store.run(lambda c: c.lset(name, 0, str(int((now - 59.7) * 1000))))
    wait = limiter.take(one)
    assert wait is not None
    assert 0 < wait <= 0.3
    time.sleep(wait)
    assert limiter.take(one) is None


def test_place_taken_ahead_is_the_next_calls(limiter: CallLimiter) -> None:
    one = limit("k", 1)
    assert limiter.take(one) is None
    limiter.note_taken(one)
    assert limiter.take(one) is None
    assert limiter.take(one) is not None


def test_each_process_counts_for_itself_and_double_while_the_store_is_away() -> None:
    now = 6000.0
    first, second = (CallLimiter(Store(""), lambda: now) for _ in range(2))
    now += 20
    assert [first.take(limit("k", 4)) for _ in range(4)] == [None, None, 40.0, 40.0]
    assert first.take(limit("other", 1)) is None
    assert second.take(limit("k", 4)) is None
    now += 40
    assert [first.take(limit("k", 1)) for _ in range(2)] == [None, 60.0]


def test_store_that_goes_away_is_not_waited_for(tmp_path: Path) -> None:
    running = embedded_store.start(tmp_path)
    with contextlib.closing(Store(running.url, timeout=0.5)) as store:
        limiter = CallLimiter(store, lambda: 6000.0)
        assert limiter.take(limit("k", 4)) is None
        running.stop()
        began = time.monotonic()
        outcomes = [limiter.take(limit("k", 4)) for _ in range(4)]
        assert time.monotonic() - began < 2
    assert [outcome is None for outcome in outcomes] == [True, True, False, False]
