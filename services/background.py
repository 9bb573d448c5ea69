"""Work after the response: bounded, retried, and never in anybody's way."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

RETRIES = (1.0, 5.0, 30.0)
"""Seconds before each further try."""


class BackgroundQueue:
    """A few threads (greenlets, where gevent has patched) that run submitted tasks.

    A full queue drops the newest task and says so in the log. A task that raises is tried again
    after each of `retries` seconds, then given up with a log line.
    """

    def __init__(
        self, workers: int = 4, waiting: int = 1000, retries: tuple[float, ...] = RETRIES
    ) -> None:
        self._tasks: queue.Queue[tuple[str, Callable[[], None]]] = queue.Queue(waiting)
        self._workers = workers
        self._retries = retries
        self._started = False
        self._lock = threading.Lock()

    def submit(self, name: str, task: Callable[[], None]) -> None:
        """Run `task` soon. `name` is what the log calls it."""
        self._start()
        try:
            self._tasks.put_nowait((name, task))
        except queue.Full:
            log.warning("background task dropped name=%s reason=queue-full", name)

    def _start(self) -> None:
        """Threads start with the first task, so that none exists before a fork."""
        with self._lock:
            if self._started:
                return
            self._started = True
        for number in range(self._workers):
            threading.Thread(target=self._work, name=f"background-{number}", daemon=True).start()

    def _work(self) -> None:
        while True:
            name, task = self._tasks.get()
            self._run(name, task)
            self._tasks.task_done()

    def _run(self, name: str, task: Callable[[], None]) -> None:
        for pause in (*self._retries, None):
            try:
                task()
                return
            except Exception as exc:  # the scheduler job of what comes after a response
                if pause is None:
                    log.warning("background task given up name=%s error=%s", name, exc)
                    return
                log.info("background task failed name=%s error=%s retry=%gs", name, exc, pause)
            time.sleep(pause)

    def drain(self, seconds: float) -> bool:
        """Wait until all is done, `seconds` at most; whether it is."""
        deadline = time.monotonic() + seconds
        while self._tasks.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._tasks.unfinished_tasks
