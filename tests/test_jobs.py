"""Work after the response: retried, bounded, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from services.server.jobs import RETRIES, BackgroundQueue
from tests.gateway import wait_for

PATIENCE = 5.0


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_task_runs_once_and_off_the_callers_thread() -> None:
    ran: list[str] = []
    background = BackgroundQueue()
    background.submit("note", lambda: ran.append(threading.current_thread().name))
    assert background.drain(PATIENCE)
    assert len(ran) == 1
    assert ran[0].startswith("background-")


def test_failing_task_is_tried_again_after_each_pause_and_then_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tried: list[float] = []

    def fail() -> None:
        tried.append(time.monotonic())
        raise RuntimeError("the upstream is away")

    background = BackgroundQueue(retries=(0.05, 0.2))
    background.submit("hide", fail)
    assert background.drain(PATIENCE)
    assert len(tried) == 3
    assert tried[1] - tried[0] >= 0.05
    assert tried[2] - tried[1] >= 0.2
    said = [r.getMessage() for r in caplog.records if r.name == "services.server.jobs"]
    assert said == [
        "background task failed name=hide error=the upstream is away retry=0.05s",
        "background task failed name=hide error=the upstream is away retry=0.2s",
        "background task given up name=hide error=the upstream is away",
    ]


def test_task_that_succeeds_at_last_is_not_given_up(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def fail_once() -> None:
        tried.append(1)
        if len(tried) == 1:
            raise OSError("not yet")

    background = BackgroundQueue(retries=(0.01, 0.01))
    background.submit("hide", fail_once)
    assert background.drain(PATIENCE)
    assert len(tried) == 2
    assert "given up" not in caplog.text


def test_failing_task_does_not_keep_others_from_running() -> None:
    ran = threading.Event()
    background = BackgroundQueue(workers=1, retries=(0.5,))
    for _ in range(5):
        background.submit("bad", lambda: 1 / 0)  # type: ignore[arg-type]
    background.submit("good", ran.set)
    assert ran.wait(0.4)
    assert not background.drain(0)
    assert background.drain(PATIENCE)


def test_worker_survives_a_task_that_was_given_up() -> None:
    background = BackgroundQueue(workers=1, retries=())
    ran: list[int] = []
    background.submit("bad", lambda: 1 / 0)  # type: ignore[arg-type]
    background.submit("good", lambda: ran.append(1))
    assert background.drain(PATIENCE)
    assert ran == [1]


def test_full_queue_drops_the_newest_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    ran: list[int] = []
    background = BackgroundQueue(workers=1, waiting=2)
    background.submit("blocker", lambda: go.wait(PATIENCE))  # type: ignore[arg-type]
    wait_for(lambda: not background.waiting, PATIENCE, "the blocker's start")
    began = time.monotonic()
    for number in range(5):
        background.submit(f"task-{number}", lambda number=number: ran.append(number))  # type: ignore[misc]
    assert time.monotonic() - began < 1
    go.set()
    assert background.drain(PATIENCE)
    assert ran == [0, 1]
    dropped = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert dropped == [
        f"background task dropped name=task-{n} reason=queue-full" for n in (2, 3, 4)
    ]


def test_no_thread_exists_before_the_first_task() -> None:
    before = threading.active_count()
    background = BackgroundQueue(workers=3)
    assert threading.active_count() == before
    background.submit("first", lambda: None)
    assert threading.active_count() == before + 3
    assert background.drain(PATIENCE)


def test_pauses_between_tries_grow() -> None:
    assert list(RETRIES) == sorted(RETRIES)
    assert sum(RETRIES) < 60
