"""One thread (a greenlet, where gevent has patched) that looks after something, now and then and
when it is asked to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Watcher:
    """Calls `look` every `seconds`, with False, and soon after `ask`, with True. Start it after
    the fork.
    """

    def __init__(self, look: Callable[[bool], object], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._ended = threading.Event()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._work, name="config", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Look soon. Takes no lock, so that a signal handler may call it at any time."""
        with contextlib.suppress(BlockingIOError):  # then it is asked already
            os.write(self._write, b"?")

    def stop(self) -> None:
        """End it; a look that is under way is waited for."""
        self._ended.set()
        self.ask()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _work(self) -> None:
        while not self._ended.is_set():
            ready, _, _ = select.select([self._read], [], [], self._seconds)
            if ready:
                os.read(self._read, 4096)
            if self._ended.is_set():
                return
            try:
                self._look(bool(ready))
            except Exception:  # a scheduler's job: the next look goes on
                log.exception("looking at the configuration failed")
