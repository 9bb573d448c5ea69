"""Jobs that run in one worker only, on a real store, in threads and in greenlets."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from services.server.embedded_store import EmbeddedStore
from services.server.jobs import Schedule
from services.store import Store
from tests.gateway import ROOT, wait_for

IN_GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, sys, threading
from services.server.jobs import Schedule
from services.store import Store
store = Store(sys.argv[1])
schedule = Schedule(store)
ran, where, ticks = [], set(), 0
def job():
    ran.append(1)
    where.add(type(gevent.getcurrent()).__name__ != "Hub" and gevent.getcurrent() is not None)
    gevent.sleep(0.05)
schedule.every(0.2, "often", job)
schedule.every(0.2, "everywhere", lambda: ran.append(2), everywhere=True)
schedule.start()
with gevent.Timeout(20):
    while ran.count(1) < 3 or ran.count(2) < 3:
        gevent.sleep(0.01)
        ticks += 1
schedule.stop()
count = len(ran)
gevent.sleep(0.5)
assert len(ran) <= count + 1, (count, len(ran))
assert ticks > 20, ticks
assert type(threading.current_thread()).__name__ == "_MainThread"
print("done", where)
"""


def test_job_runs_in_one_worker_and_again_when_its_time_has_come(store: Store) -> None:
    ran: list[str] = []
    schedules = [Schedule(store) for _ in range(3)]
    for name, schedule in zip("abc", schedules, strict=True):
        schedule.every(60, "job", lambda name=name: ran.append(name))  # type: ignore[misc]
    assert [schedule.run("job") for schedule in schedules] == [True, False, False]
    assert [schedule.run("job") for schedule in schedules] == [False, False, False]
    lease = store.key("job", "job")
    assert 47_000 < int(str(store.run(lambda c: c.pttl(lease)))) <= 48_000
    store.run(lambda c: c.delete(lease))  # as if the time had passed
    assert [schedule.run("job") for schedule in reversed(schedules)] == [True, False, False]
    assert ran == ["a", "c"]


def test_job_for_everybody_runs_everywhere(store: Store) -> None:
    ran: list[int] = []
    for number in range(3):
        schedule = Schedule(store)
        schedule.every(60, "job", lambda number=number: ran.append(number), everywhere=True)  # type: ignore[misc]
        assert schedule.run("job")
    assert ran == [0, 1, 2]


def test_failing_job_is_logged_and_runs_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = Schedule(store)
    schedule.every(0.2, "job", lambda: 1 / 0)
    assert not schedule.run("job")
    assert "job failed name=job" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    time.sleep(0.2)
    assert not schedule.run("job")
    assert caplog.text.count("job failed") == 2


def test_without_a_store_only_jobs_for_everybody_run(caplog: pytest.LogCaptureFixture) -> None:
    schedule = Schedule(Store(""))
    schedule.every(60, "one", lambda: None)
    schedule.every(60, "all", lambda: None, everywhere=True)
    caplog.clear()
    assert [schedule.run(name) for name in schedule.names] == [False, True]
    assert caplog.text == ""


def test_a_name_is_taken_once_and_before_the_start(store: Store) -> None:
    schedule = Schedule(store)
    schedule.every(60, "job", lambda: None)
    with pytest.raises(ValueError, match="job comes twice"):
        schedule.every(60, "job", lambda: None)
    schedule.start()
    with pytest.raises(ValueError, match="too late"):
        schedule.every(60, "other", lambda: None)
    schedule.stop()


def test_started_schedules_share_the_runs_and_stop(server: EmbeddedStore) -> None:
    ran: list[str] = []
    before = set(threading.enumerate())  # of tests that ran before
    with contextlib.closing(Store(server.url)) as store:
        schedules = [Schedule(store) for _ in range(3)]
        for schedule in schedules:
            schedule.every(0.5, "job", lambda: ran.append("x"))
            schedule.start()
            schedule.start()
        wait_for(lambda: len(ran) >= 2)
        for schedule in schedules:
            schedule.stop()
            schedule.stop()
        ours = [t for t in threading.enumerate() if "APScheduler" in t.name and t not in before]
        wait_for(lambda: not any(thread.is_alive() for thread in ours))


def test_it_works_in_greenlets(server: EmbeddedStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_GEVENT, server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("done {True}", "")
