"""One thread (a greenlet, where gevent has patched) for what a worker does every second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)


class Ticker:
    """Runs `tasks` one after another, every `seconds`, from the first `start` to `close`."""

    def __init__(self, tasks: Sequence[Callable[[], None]], seconds: float = 1.0) -> None:
        self._tasks = tuple(tasks)
        self._seconds = seconds
        self._closing: threading.Event | None = None
        self._lock = threading.Lock()
        self._running = threading.Lock()

    def start(self) -> None:
        """Begin, unless that has happened: with the first request, so after any fork."""
        if self._closing is None:
            with self._lock:
                self._start_once()

    def tick(self) -> None:
        """Run every task once, whatever the others do."""
        with self._running:
            for task in self._tasks:
                try:
                    task()
                except Exception:  # a scheduler's job: the next one and the next second go on
                    log.exception("periodic task failed")

    def close(self) -> None:
        """Stop, and run every task a last time."""
        if self._closing is not None:
            self._closing.set()
        self.tick()

    def _start_once(self) -> None:
        if self._closing is None:
            self._closing = threading.Event()
            threading.Thread(target=self._work, args=(self._closing,), daemon=True).start()

    def _work(self, closing: threading.Event) -> None:
        while not closing.wait(self._seconds):
            self.tick()
