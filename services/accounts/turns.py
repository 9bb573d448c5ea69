"""One at a time for each name, within this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.interested = 0


class Turns:
    """Locks by name; a name that nobody waits for takes no memory."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._turns: dict[str, _Turn] = {}

    @contextlib.contextmanager
    def take(self, name: str, patience: float) -> Iterator[None]:
        """Hold the lock of `name`. Raises `TimeoutError` after `patience` seconds without it."""
        with self._guard:
            turn = self._turns.setdefault(name, _Turn())
            turn.interested += 1
        try:
            if not turn.lock.acquire(timeout=patience):
                raise TimeoutError
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            with self._guard:
                turn.interested -= 1
                if not turn.interested:
                    del self._turns[name]
