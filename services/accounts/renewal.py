"""Renewing tokens before they end, so that no request has to wait for it.

Each known token is due at a time of its own, well before its end. A token that nobody has used
for a month is left to end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from services.accounts.failures import TokenFailure
from services.accounts.shelf import TokenShelf
from services.accounts.tokens import TokenManager

IDLE_AFTER = 30 * 86400.0
RETRY_AFTER = 300.0
LONGEST_RUN = 10.0
"""Seconds after which a run leaves the rest to the next one: a worker that ends waits for it."""
_BATCH = 50


class Renewal:
    """The scheduled job: `run` renews what is due."""

    def __init__(
        self, tokens: TokenManager, shelf: TokenShelf, clock: Callable[[], float] = time.time
    ) -> None:
        self._tokens = tokens
        self._shelf = shelf
        self._clock = clock

    def run(self) -> int:
        """Renew all that is due; how many were. Raises `StoreAway`."""
        ends = time.monotonic() + LONGEST_RUN
        renewed = 0
        tried: set[str] = set()
        while time.monotonic() < ends:
            digests = self._shelf.due(self._clock(), _BATCH)
            if tried.issuperset(digests):  # nothing left but what others are at
                break
            tried.update(digests)
            used = self._shelf.last_used(digests)
            for digest, when in zip(digests, used, strict=True):
                if time.monotonic() < ends:
                    renewed += self._renew(digest, when)
        return renewed

    def _renew(self, digest: str, used: float | None) -> bool:
        now = self._clock()
        if used is not None and now - used > IDLE_AFTER:
            self._shelf.postpone(digest, None)
            return False
        try:
            self._tokens.renew(digest)
        except TokenFailure as failure:
            again = now + RETRY_AFTER * random.uniform(1.0, 1.5)  # noqa: S311  # only spreads
            self._shelf.postpone(digest, None if failure.is_the_tokens else again)
            return False
        return True
