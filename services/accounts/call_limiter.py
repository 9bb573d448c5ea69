"""How many calls a minute an account may get, over all workers and machines.

A minute is any 60 seconds. Who asks the store for other things as well can take the first place
of a request along with them, in the same round trip, and leave it here for the call.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable

from services.core.models import CallLimit
from services.store import ScriptCall, Store, StoreAway, StoreScript

SHORTEST_WAIT = 0.05
TAKEN_SECONDS = 5.0
"""How long a place that was taken ahead of its call is kept for it."""

_NOBODY = CallLimit("-", "-", 1)
_PLACE = StoreScript.beside(__file__, "place.lua")


class CallLimiter:
    """Counts in the store. While that is away, each process counts for itself and each call
    double, in minutes of the clock.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._minute = ClockWindow(60)
        self._taken: dict[CallLimit, list[float]] = {}

    def take(self, limit: CallLimit) -> float | None:
        """Take a place; else the seconds until there may be one."""
        if self._use_taken(limit):
            return None
        try:
            [wait] = self._store.run_scripts([self.taking(limit)])
        except StoreAway:
            return self._take_without_store(limit)
        return max(SHORTEST_WAIT, wait / 1000) if wait else None

    def taking(self, limit: CallLimit, refusal: str = "") -> ScriptCall:
        """The script that takes a place, unless the key `refusal` is there; answers 0, or the
        milliseconds until there is one.
        """
        names = [calls_key(self._store, limit), refusal or calls_key(self._store, _NOBODY)]
        return ScriptCall(_PLACE, names, [limit.per_minute])

    def note_taken(self, limit: CallLimit) -> None:
        """A place has been taken for a call that comes now."""
        with self._lock:
            self._taken.setdefault(limit, []).append(time.monotonic())

    def _take_without_store(self, limit: CallLimit) -> float | None:
        now = self._clock()
        with self._lock:
            if self._minute.counts(now)[limit] >= limit.per_minute:
                return max(SHORTEST_WAIT, self._minute.left(now))
            self._minute.counts(now)[limit] += 2
        return None

    def _use_taken(self, limit: CallLimit) -> bool:
        oldest = time.monotonic() - TAKEN_SECONDS
        with self._lock:
            taken = [at for at in self._taken.pop(limit, ()) if at > oldest]
            if len(taken) > 1:
                self._taken[limit] = taken[1:]
        return bool(taken)


def calls_key(store: Store, limit: CallLimit) -> str:
    """Where the calls are counted; with all of the provider's pool in one slot of a cluster."""
    return store.key("pool", f"{{{limit.provider}}}", "calls", limit.account)


class ClockWindow:
    """What is counted within one minute or day of the clock, `seconds` long, and then forgotten."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._number = -1
        self._counts: Counter[Hashable] = Counter()

    def counts(self, now: float) -> Counter[Hashable]:
        """The counts of the window that `now` is in."""
        if self._number != now // self._seconds:
            self._number, self._counts = int(now // self._seconds), Counter()
        return self._counts

    def left(self, now: float) -> float:
        """The seconds until the next window."""
        return self._seconds - now % self._seconds
