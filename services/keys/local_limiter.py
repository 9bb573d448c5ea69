"""Limits while the store is away: each process counts for itself, from nothing.

So a key may get its limits once for every worker until the store is back. That is better than
refusing those who pay, and than no limit at all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from services.keys.records import KeyRecord, Limits
from services.keys.standing import Standing, Verdict

MINUTE = 60.0
DAY = 86_400.0


class _Used:
    """What one key has used."""

    def __init__(self) -> None:
        self.requests: deque[float] = deque()
        self.tokens: deque[tuple[float, int]] = deque()
        self.leases: set[str] = set()
        self.day = 0
        self.day_requests = 0
        self.day_tokens = 0

    def forget(self, now: float) -> None:
        while self.requests and self.requests[0] <= now - MINUTE:
            self.requests.popleft()
        while self.tokens and self.tokens[0][0] <= now - MINUTE:
            self.tokens.popleft()
        if self.day != int(now // DAY):
            self.day, self.day_requests, self.day_tokens = int(now // DAY), 0, 0

    @property
    def minute_tokens(self) -> int:
        return sum(count for _, count in self.tokens)

    def standing(self, now: float) -> Standing:
        return Standing(
            minute_requests=len(self.requests),
            day_requests=self.day_requests,
            minute_tokens=self.minute_tokens,
            day_tokens=self.day_tokens,
            requests_reset=self.requests[-1] + MINUTE - now if self.requests else 0.0,
            tokens_reset=self.tokens[-1][0] + MINUTE - now if self.tokens else 0.0,
            day_left=DAY - now % DAY,
        )


class LocalLimiter:
    """`clock` gives epoch seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, _Used] = {}

    def admit(self, record: KeyRecord, lease: str) -> Verdict:
        """Take a place under all limits of the key, as `lease`."""
        now = self._clock()
        with self._lock:
            used = self._used.setdefault(record.id, _Used())
            used.forget(now)
            refused, retry = _full(used, record.limits, now)
            if not refused:
                used.requests.append(now)
                used.leases.add(lease)
                used.day_requests += 1
            return Verdict(b"", refused, retry, used.standing(now))

    def settle(self, record: KeyRecord, lease: str, tokens: int) -> None:
        """Give the place back and count the answer's tokens."""
        with self._lock:
            used = self._used.get(record.id)
            if used is None:
                return
            used.leases.discard(lease)
            used.day_tokens += tokens
            if tokens:
                used.tokens.append((self._clock(), tokens))

    def reset(self) -> None:
        """Forget everything: the store counts again."""
        if self._used:
            with self._lock:
                self._used.clear()


def _full(used: _Used, limits: Limits, now: float) -> tuple[str, float]:
    """The first limit without room, and the seconds until it has some."""
    day_left = DAY - now % DAY
    first = used.requests[0] if used.requests else now
    first_tokens = used.tokens[0][0] if used.tokens else now
    for name, count, wait in (
        ("requests_per_day", used.day_requests, day_left),
        ("tokens_per_day", used.day_tokens, day_left),
        ("requests_per_minute", len(used.requests), first + MINUTE - now),
        ("tokens_per_minute", used.minute_tokens, first_tokens + MINUTE - now),
        ("concurrent_streams", len(used.leases), 1.0),
    ):
        limit = getattr(limits, name)
        if limit is not None and count >= limit:
            return name, wait
    return "", 0.0
