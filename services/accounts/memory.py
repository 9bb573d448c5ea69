"""What this process knows of tokens by itself: a hot request needs no round trip, and an outage of
the store stops nobody whose token is known.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypeVar

import msgspec

from services.accounts.failures import TokenFailure
from services.accounts.records import TokenRecord

T = TypeVar("T")

MOST_REMEMBERED = 20_000


class _Held(msgspec.Struct, frozen=True):
    """`fresh_until`: when to ask the store again, which may know something newer."""

    record: TokenRecord
    fresh_until: float


class TokenMemory:
    """Records and failures by digest. All times are epoch seconds by the caller's clock."""

    def __init__(self, fresh_seconds: float) -> None:
        self._fresh = fresh_seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._failed: OrderedDict[str, tuple[TokenFailure, float]] = OrderedDict()
        self._roots: OrderedDict[str, str] = OrderedDict()
        self._unsaved: dict[str, TokenRecord] = {}
        self._used: dict[str, float] = {}

    def fresh(self, digest: str, now: float) -> TokenRecord | None:
        """The record, if it was read or made a short while ago."""
        held = self._held.get(digest)
        return held.record if held is not None and now < held.fresh_until else None

    def any(self, digest: str) -> TokenRecord | None:
        """The record, however old."""
        held = self._held.get(digest)
        return held.record if held is not None else None

    def hold(self, digest: str, record: TokenRecord, now: float) -> None:
        """Remember `record`; a failure before it is over."""
        with self._lock:
            self._failed.pop(digest, None)
            _put(self._held, digest, _Held(record, now + self._fresh))

    def root(self, digest: str) -> str:
        """The name under which this token's line is kept: its own, or that of its first."""
        return self._roots.get(digest, digest)

    def learn_root(self, digest: str, root: str) -> None:
        with self._lock:
            _put(self._roots, digest, root)

    def failure(self, digest: str, now: float) -> TokenFailure | None:
        """The failure within the last seconds, as a new exception."""
        failure, until = self._failed.get(digest, (None, 0.0))
        if failure is None or now >= until:
            return None
        return TokenFailure(failure.reason, until - now)

    def note_failure(self, digest: str, failure: TokenFailure, now: float) -> None:
        with self._lock:
            _put(self._failed, digest, (failure, now + failure.retry_after))

    def note_unsaved(self, digest: str, record: TokenRecord) -> None:
        """The store was away when this came: it must get it as soon as it is back."""
        with self._lock:
            self._unsaved[digest] = record

    def take_unsaved(self) -> dict[str, TokenRecord]:
        """What the store has missed, once."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        return unsaved

    def note_used(self, digest: str, now: float) -> None:
        self._used[digest] = now

    def take_used(self) -> dict[str, float]:
        """Which tokens were used since the last time, and when."""
        with self._lock:
            used, self._used = self._used, {}
        return used


def _put(memory: OrderedDict[str, T], name: str, value: T) -> None:
    memory[name] = value
    memory.move_to_end(name)
    while len(memory) > MOST_REMEMBERED:
        memory.popitem(last=False)
