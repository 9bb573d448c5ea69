"""How many calls a minute an account may get, over all workers and machines.

A minute is any 60 seconds. Who asks the store for other things as well can take the first place
of a request along with them, in the same round trip, and leave it here for the call.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from services.core.models import CallLimit
from services.store import ScriptCall, Store, StoreAway, StoreScript

MINUTE = 60.0
SHORTEST_WAIT = 0.05
MOST_ACCOUNTS = 4096
PAID_SECONDS = 5.0
"""How long a place that was taken ahead of its call is kept for it."""

_NOBODY = CallLimit("-", "-", 1)
_PLACE = StoreScript.beside(__file__, "place.lua")


class StoreRateGate:
    """Counts in the store; while that is away, each process counts for itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._alone = LocalMinutes()
        self._paid: dict[CallLimit, deque[float]] = {}

    def take(self, limit: CallLimit) -> float | None:
        """Take a place; else the seconds until there may be one."""
        if self._use_paid(limit):
            return None
        try:
            [wait] = self._store.run_scripts([self.call(limit)])
        except StoreAway:
            return self._alone.take(limit)
        return max(SHORTEST_WAIT, wait / 1000) if wait else None

    def call(self, limit: CallLimit, refusal: str = "") -> ScriptCall:
        """The script that takes a place, unless the key `refusal` is there; answers 0, or the
        milliseconds until there is one.
        """
        names = [calls_key(self._store, limit), refusal or calls_key(self._store, _NOBODY)]
        return ScriptCall(_PLACE, names, [limit.per_minute])

    def pay(self, limit: CallLimit) -> None:
        """A place has been taken for a call that comes now."""
        self._paid.setdefault(limit, deque()).append(time.monotonic())

    def _use_paid(self, limit: CallLimit) -> bool:
        paid = self._paid.get(limit)
        oldest = time.monotonic() - PAID_SECONDS
        while paid:
            try:
                at = paid.popleft()
            except IndexError:  # another thread took it
                return False
            if not paid:
                self._paid.pop(limit, None)
            if at > oldest:
                return True
        return False


def calls_key(store: Store, limit: CallLimit) -> str:
    """Where the calls are counted; with all of the provider's pool in one slot of a cluster."""
    return store.key("pool", f"{{{limit.provider}}}", "calls", limit.account)


class LocalMinutes:
    """The same limits in this process alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[CallLimit, deque[float]] = {}

    def take(self, limit: CallLimit) -> float | None:
        """Take a place; else the seconds until there is one."""
        now = time.monotonic()
        with self._lock:
            if len(self._calls) > MOST_ACCOUNTS:
                self._forget_idle(now)
            calls = self._calls.setdefault(limit, deque())
            while calls and calls[0] <= now - MINUTE:
                calls.popleft()
            if len(calls) >= limit.per_minute:
                return max(SHORTEST_WAIT, calls[-limit.per_minute] + MINUTE - now)
            calls.append(now)
            return None

    def _forget_idle(self, now: float) -> None:
        busy = {limit: c for limit, c in self._calls.items() if c and c[-1] > now - MINUTE}
        self._calls = busy
