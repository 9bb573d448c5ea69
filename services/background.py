"""Work after the response: bounded, retried, and never in anybody's way."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

log = logging.getLogger(__name__)

RETRIES = (1.0, 5.0, 30.0)
"""Seconds before each further try."""


class _Task(NamedTuple):
    """Tasks sort by when they are due (`time.monotonic()`), then by when they came."""

    due: float
    number: int
    name: str
    run: Callable[[], None]
    tries: int = 0


class BackgroundQueue:
    """A few threads (greenlets, where gevent has patched) that run submitted tasks.

    A full queue drops the newest task and says so in the log. A task that raises is tried again
    after each of `retries` seconds, then given up with a log line; meanwhile others run.
    """

    def __init__(
        self, workers: int = 4, waiting: int = 1000, retries: tuple[float, ...] = RETRIES
    ) -> None:
        self._tasks: list[_Task] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._most = waiting
        self._workers = workers
        self._retries = retries
        self._started = False

    @property
    def waiting(self) -> int:
        """Tasks that are not being run now."""
        return len(self._tasks)

    def submit(self, name: str, task: Callable[[], None]) -> None:
        """Run `task` soon. `name` is what the log calls it."""
        with self._changed:
            self._start()
            if len(self._tasks) >= self._most:
                log.warning("background task dropped name=%s reason=queue-full", name)
                return
            self._unfinished += 1
            self._put(_Task(time.monotonic(), next(self._numbers), name, task))

    def drain(self, seconds: float) -> bool:
        """Wait until all is done, `seconds` at most; whether it is."""
        deadline = time.monotonic() + seconds
        while self._unfinished and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._unfinished

    def _start(self) -> None:
        """Threads start with the first task, so that none exists before a fork."""
        if self._started:
            return
        self._started = True
        for number in range(self._workers):
            threading.Thread(target=self._work, name=f"background-{number}", daemon=True).start()

    def _put(self, task: _Task) -> None:
        heapq.heappush(self._tasks, task)
        self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                task = self._next()
            again = self._run(task)
            with self._changed:
                if again is None:
                    self._unfinished -= 1
                else:
                    self._put(again)

    def _next(self) -> _Task:
        """The next task that is due; waits for it."""
        while True:
            until = self._tasks[0].due - time.monotonic() if self._tasks else None
            if until is not None and until <= 0:
                task = heapq.heappop(self._tasks)
                self._changed.notify()  # somebody has to wait for the one after it
                return task
            self._changed.wait(until)

    def _run(self, task: _Task) -> _Task | None:
        """Run it; what to run later if it fails and may be tried again."""
        try:
            task.run()
        except Exception as exc:  # the scheduler job of what comes after a response
            if task.tries >= len(self._retries):
                log.warning("background task given up name=%s error=%s", task.name, exc)
                return None
            pause = self._retries[task.tries]
            log.info("background task failed name=%s error=%s retry=%gs", task.name, exc, pause)
            return task._replace(due=time.monotonic() + pause, tries=task.tries + 1)
        return None
