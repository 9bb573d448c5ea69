"""A limit of calls per minute that holds across workers: a queue with a deadline."""

from __future__ import annotations

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from services.store import Store, StoreAway

LONGEST_NAP = 1.0


class StoreRateGate:
    """Counts in the store; while that is away, each process counts for itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shared: MovingWindowRateLimiter | None = None
        self._own = MovingWindowRateLimiter(MemoryStorage())

    def wait(self, key: str, per_minute: int, patience: float) -> float | None:
        """Take a place, waiting at most `patience` seconds; else the seconds until there is one."""
        limit = RateLimitItemPerMinute(per_minute)
        deadline = time.monotonic() + patience
        while not self._hit(limit, key):
            until_free = self._until_free(limit, key)
            left = deadline - time.monotonic()
            if until_free > left:
                return until_free
            time.sleep(min(until_free, LONGEST_NAP))
        return None

    def _hit(self, limit: RateLimitItemPerMinute, key: str) -> bool:
        try:
            return bool(self._store.run(lambda _: self._limiter().hit(limit, "calls", key)))
        except StoreAway:
            return bool(self._own.hit(limit, "calls", key))

    def _until_free(self, limit: RateLimitItemPerMinute, key: str) -> float:
        try:
            stats = self._store.run(lambda _: self._limiter().get_window_stats(limit, "calls", key))
        except StoreAway:
            stats = self._own.get_window_stats(limit, "calls", key)
        return max(0.05, float(stats.reset_time) - time.time())

    def _limiter(self) -> MovingWindowRateLimiter:
        if self._shared is None:
            # the pool says where the server is; the URL is only asked for its kind
            storage = RedisStorage(
                "redis://", connection_pool=self._store.pool, key_prefix=self._store.key("limits")
            )
            self._shared = MovingWindowRateLimiter(storage)
        return self._shared
