"""One time limit over everything that a fetch does."""

from __future__ import annotations

import time


class Deadline:
    """A moment `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, always more than 0. Raise TimeoutError when it has passed."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left
