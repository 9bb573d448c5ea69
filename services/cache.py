"""Small facts shared by all workers for a while, with a short memory of our own in front of the
store.

A fact that the store cannot give is a fact unknown, never an error.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from services.store import Store, StoreAway

LOCAL_SECONDS = 5.0
LOCAL_ENTRIES = 2048


class StoreCache:
    """Bytes by key. While the store is away, what this process knows is kept for its full time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local: OrderedDict[str, tuple[float, float, bytes]] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """The value, or None when nobody knows it."""
        now = time.monotonic()
        fresh_until, known_until, value = self._local.get(key, (0.0, 0.0, b""))
        if now < fresh_until:
            return value
        try:
            stored: Any = self._store.run(lambda c: c.get(self._store.key("cache", key)))
        except StoreAway:
            return value if now < known_until else None
        if stored is None:
            self._local.pop(key, None)
            return None
        self._remember(key, stored, max(LOCAL_SECONDS, known_until - now))
        return bytes(stored)

    def set(self, key: str, value: bytes, seconds: float) -> None:
        """Keep `value` for `seconds`."""
        self._remember(key, value, seconds)
        try:
            self._store.run(
                lambda c: c.set(
                    self._store.key("cache", key), value, px=max(1, int(seconds * 1000))
                )
            )
        except StoreAway:
            return

    def _remember(self, key: str, value: bytes, seconds: float) -> None:
        now = time.monotonic()
        self._local.pop(key, None)  # to the end; moving it could find it gone, by another thread
        self._local[key] = (now + min(seconds, LOCAL_SECONDS), now + seconds, value)
        while len(self._local) > LOCAL_ENTRIES:
            self._local.popitem(last=False)
