"""Limits of keys, counted in the store, so that they hold across workers and machines to the
request.

One script reads the record, checks everything and counts, in one round trip. Minutes are moving
windows: never more than the limit in any 60 seconds. A refused request is not counted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.accounts.call_limiter import ClockWindow
from services.core.errors import KeyLimitReached
from services.keys.records import KeyRecord, Limits
from services.store import ScriptCall, Store, StoreScript

LEASE_SECONDS = 60.0
"""How long the place of a request lasts if its worker dies; renewed while that lives."""

_ADMIT = StoreScript.beside(__file__, "admit.lua")
_SETTLE = StoreScript.beside(__file__, "settle.lua")
_RENEW = StoreScript.beside(__file__, "renew.lua")
_PARTS = ("record", "state", "requests", "tokens", "leases")
_WORDS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "requests_per_day": "requests a day",
    "tokens_per_day": "tokens a day",
    "concurrent_streams": "answers at a time",
}


class LimitUsage(msgspec.Struct, frozen=True):
    """What is used of each limit that there is, this request included.

    Seconds until the minute's requests, the minute's tokens and the day are as if nothing had
    been used.
    """

    minute_requests: int = 0
    day_requests: int = 0
    minute_tokens: int = 0
    day_tokens: int = 0
    requests_reset: float = 0.0
    tokens_reset: float = 0.0
    day_left: float = 0.0


class Decision(msgspec.Struct, frozen=True):
    """`refused` names the limit that has no room, empty if all have. `record` is as stored."""

    refused: str
    retry_after: float
    usage: LimitUsage
    record: bytes = b""


class KeyLimiter:
    """Counts in the store; every method raises `StoreAway`. A `lease` names a request."""

    def __init__(self, store: Store, lease_seconds: float = LEASE_SECONDS) -> None:
        self._store = store
        self._lease = int(lease_seconds * 1000)

    def admitting(self, digest: bytes, lease: str) -> ScriptCall:
        """The script that takes a place under all limits of the key; `decision` reads its answer.
        It leaves a key at `refusal` for a moment if the request is not let in.
        """
        names = [key_name(self._store, digest, part) for part in _PARTS]
        return ScriptCall(_ADMIT, [*names, self.refusal(digest, lease)], [lease, self._lease])

    def refusal(self, digest: bytes, lease: str) -> str:
        """Where it is noted for a moment that a request is refused."""
        return key_name(self._store, digest, f"refused:{lease}")

    @staticmethod
    def decision(answer: Any) -> Decision | None:
        """What the script of `admitting` answered; None if there is no such key."""
        if answer is None:
            return None
        record, refused, retry, *used = answer
        seconds = [milliseconds / 1000 for milliseconds in used[4:]]
        return Decision(refused.decode(), retry / 1000, LimitUsage(*used[:4], *seconds), record)

    def settle(self, digest: bytes, lease: str, tokens: int, limits: Limits) -> None:
        """Give the place back and count the answer's tokens."""
        names = [key_name(self._store, digest, part) for part in ("state", "tokens", "leases")]
        flags = (int(limits.tokens_per_minute is not None), int(limits.tokens_per_day is not None))
        self._store.run_script(_SETTLE, names, (lease, tokens, *flags))

    def renew(self, leases: Mapping[str, bytes]) -> None:
        """Keep the places of requests that are still under way: their keys' digests by lease."""
        calls = [
            ScriptCall(_RENEW, [key_name(self._store, digest, "leases")], (lease, self._lease))
            for lease, digest in leases.items()
        ]
        self._store.run_scripts(calls)


class LimiterWithoutStore:
    """The rule while the store is away: this process counts for itself, from nothing, and all
    things double, in minutes and days of the clock. `clock` gives epoch seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._minute, self._day = ClockWindow(60), ClockWindow(86_400)
        self._open: Counter[str] = Counter()

    def admit(self, record: KeyRecord) -> Decision:
        """Take a place under all limits of the key."""
        with self._lock:
            now, usage = self._clock(), self._usage(record.id)
            for name, used, wait in (
                ("requests_per_day", usage.day_requests, usage.day_left),
                ("tokens_per_day", usage.day_tokens, usage.day_left),
                ("requests_per_minute", usage.minute_requests, usage.requests_reset),
                ("tokens_per_minute", usage.minute_tokens, usage.tokens_reset),
                ("concurrent_streams", 2 * self._open[record.id], 1.0),
            ):
                limit = getattr(record.limits, name)
                if limit is not None and used >= limit:
                    return Decision(name, wait, usage)
            for window in (self._minute, self._day):
                window.counts(now)[record.id, "requests"] += 2
            self._open[record.id] += record.limits.concurrent_streams is not None
            return Decision("", 0.0, self._usage(record.id))

    def settle(self, record: KeyRecord, tokens: int) -> None:
        """Give the place back and count the answer's tokens."""
        with self._lock:
            self._open[record.id] -= record.limits.concurrent_streams is not None
            for window in (self._minute, self._day):
                window.counts(self._clock())[record.id, "tokens"] += 2 * tokens

    def _usage(self, key: str) -> LimitUsage:
        now = self._clock()
        minute, day = self._minute.counts(now), self._day.counts(now)
        left = self._minute.left(now)
        return LimitUsage(
            minute_requests=minute[key, "requests"],
            day_requests=day[key, "requests"],
            minute_tokens=minute[key, "tokens"],
            day_tokens=day[key, "tokens"],
            requests_reset=left,
            tokens_reset=left,
            day_left=self._day.left(now),
        )


def key_name(store: Store, digest: bytes, part: str) -> str:
    """Where a part of what is known of a key lies; all parts in one slot of a cluster."""
    return store.key("key", f"{{{digest.hex()}}}", part)


def too_many(decision: Decision, limits: Limits) -> KeyLimitReached:
    """The refusal, in words that no relay takes for a dead account."""
    words, limit = _WORDS[decision.refused], getattr(limits, decision.refused)
    wait = duration(decision.retry_after)
    return KeyLimitReached(
        f"this key's limit of {limit} {words} is reached; try again in {wait}",
        retry_after=decision.retry_after,
        headers=headers(limits, decision.usage),
    )


def headers(limits: Limits, usage: LimitUsage) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI sends them: of minute and day the one with less left."""
    requests = _tighter(
        (limits.requests_per_minute, usage.minute_requests, usage.requests_reset),
        (limits.requests_per_day, usage.day_requests, usage.day_left),
    )
    tokens = _tighter(
        (limits.tokens_per_minute, usage.minute_tokens, usage.tokens_reset),
        (limits.tokens_per_day, usage.day_tokens, usage.day_left),
    )
    return {**_lines("requests", requests), **_lines("tokens", tokens)}


Meter = tuple[int | None, int, float]
"""A limit, what is used of it, and the seconds until nothing is."""


def _tighter(minute: Meter, day: Meter) -> Meter:
    left = [meter for meter in (minute, day) if meter[0] is not None]
    return min(left, key=lambda meter: (meter[0] or 0) - meter[1], default=minute)


def _lines(kind: str, meter: Meter) -> dict[str, str]:
    limit, used, reset = meter
    if limit is None:
        return {}
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(0, limit - used)),
        f"x-ratelimit-reset-{kind}": duration(reset),
    }


def duration(seconds: float) -> str:
    """Such as `120ms`, `7s`, `6m0s` or `3h0m5s`, rounded up."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
