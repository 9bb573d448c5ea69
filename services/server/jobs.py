"""Work beside the requests: jobs that run now and then, and tasks that follow an answer."""

from __future__ import annotations

import datetime
import heapq
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from apscheduler.schedulers.background import BackgroundScheduler

from services.store import Store, StoreAway

log = logging.getLogger(__name__)

JITTER = 0.1
"""The part of its interval by which a job may come earlier or later."""
LEASE_PART = 0.8
"""Of its interval a lease lasts: less than the shortest pause between two runs."""
SOON = 5.0
"""Seconds after the start by which a job has run for the first time."""
RETRIES = (1.0, 5.0, 30.0)
"""Seconds before each further try of a task."""


class _Job(NamedTuple):
    name: str
    seconds: float
    run: Callable[[], object]
    everywhere: bool


class Schedule:
    """Jobs that run now and then, in threads of their own (greenlets, where gevent has patched).

    Every worker of every machine has the same ones. A job that is not for `everywhere` runs in the
    worker that gets its lease in the store, and while the store is away in none. A lease lasts
    nearly until the job is due again, so that a worker that has just started does not run what ran
    a moment ago. Start it after the fork.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: dict[str, _Job] = {}
        self._scheduler: BackgroundScheduler | None = None

    def every(
        self, seconds: float, name: str, run: Callable[[], object], *, everywhere: bool = False
    ) -> None:
        """Run `run` every `seconds`. Raises `ValueError` for a name that is taken, and once the
        schedule has started.
        """
        if name in self._jobs or self._scheduler is not None:
            raise ValueError(f"the job {name} comes twice or too late")
        self._jobs[name] = _Job(name, seconds, run, everywhere)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._jobs)

    def start(self) -> None:
        """Begin, unless that has happened."""
        if self._scheduler is not None:
            return
        self._scheduler = BackgroundScheduler(
            timezone=datetime.UTC, job_defaults={"coalesce": True, "misfire_grace_time": None}
        )
        now = datetime.datetime.now(datetime.UTC)
        for job in self._jobs.values():
            soon = random.uniform(0, min(SOON, job.seconds))  # noqa: S311  # only spreads them
            self._scheduler.add_job(
                self.run,
                "interval",
                args=[job.name],
                seconds=job.seconds,
                jitter=job.seconds * JITTER,
                next_run_time=now + datetime.timedelta(seconds=soon),
            )
        self._scheduler.start()

    def stop(self) -> None:
        """End; a job that runs is not waited for."""
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
            self._scheduler = None

    def run(self, name: str) -> bool:
        """Run a job now if it is ours to run; whether it ran to its end. Its failure is logged."""
        job = self._jobs[name]
        try:
            if not job.everywhere:
                lease, length = self._store.key("job", name), int(job.seconds * LEASE_PART * 1000)
                if not self._store.run(lambda c: c.set(lease, b"1", nx=True, px=max(1, length))):
                    return False
            job.run()
        except StoreAway:
            return False  # said already, once, by the store
        except Exception:
            log.exception("job failed name=%s", name)
            return False
        return True


class _Task(NamedTuple):
    """Tasks sort by when they are due (`time.monotonic()`), then by when they came."""

    due: float
    number: int
    name: str
    run: Callable[[], None]
    tries: int = 0


class BackgroundQueue:
    """A few threads (greenlets, where gevent has patched) that run what is submitted. A request
    may submit two tasks: each costs 15 µs here, and 400 as a job of APScheduler's.

    A full queue drops the newest task and says so in the log. A task that raises is tried again
    after each of `retries` seconds, then given up with a log line; meanwhile others run.
    """

    def __init__(
        self, workers: int = 4, waiting: int = 1000, retries: tuple[float, ...] = RETRIES
    ) -> None:
        self._tasks: list[_Task] = []  # a heap
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._most = waiting
        self._to_start = workers
        self._retries = retries

    @property
    def waiting(self) -> int:
        """Tasks that are not being run now."""
        return len(self._tasks)

    def submit(self, name: str, task: Callable[[], None]) -> None:
        """Run `task` soon. `name` is what the log calls it."""
        with self._changed:
            while self._to_start:  # with the first task, so that no thread exists before a fork
                self._to_start -= 1
                thread = f"background-{self._to_start}"
                threading.Thread(target=self._work, name=thread, daemon=True).start()
            if len(self._tasks) >= self._most:
                log.warning("background task dropped name=%s reason=queue-full", name)
                return
            self._unfinished += 1
            heapq.heappush(self._tasks, _Task(time.monotonic(), next(self._numbers), name, task))
            self._changed.notify()

    def drain(self, seconds: float) -> bool:
        """Wait until all is done, `seconds` at most; whether it is."""
        deadline = time.monotonic() + seconds
        while self._unfinished and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._unfinished

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._tasks or self._tasks[0].due > time.monotonic():
                    self._changed.wait(
                        self._tasks[0].due - time.monotonic() if self._tasks else None
                    )
                task = heapq.heappop(self._tasks)
                self._changed.notify()  # somebody has to wait for the one after it
            again = self._run(task)
            with self._changed:
                if again is None:
                    self._unfinished -= 1
                else:
                    heapq.heappush(self._tasks, again)
                    self._changed.notify()

    def _run(self, task: _Task) -> _Task | None:
        """Run it; what to try later if it fails."""
        try:
            task.run()
        except Exception as exc:  # the scheduler job of what comes after a response
            if task.tries < len(self._retries):
                pause = self._retries[task.tries]
                log.info("background task failed name=%s error=%s retry=%gs", task.name, exc, pause)
                return task._replace(due=time.monotonic() + pause, tries=task.tries + 1)
            log.warning("background task given up name=%s error=%s", task.name, exc)
        return None
