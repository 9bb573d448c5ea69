"""Idle connections, kept for the next request on the same route."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from time import monotonic

from services.transport.route import Route
from services.transport.tls import Wire

# Seconds. Servers commonly close idle connections after 75; be first.
MAX_IDLE_AGE = 60.0


class Pool:
    """Last in, first out, at most `size` a route; safe for threads and greenlets."""

    def __init__(self, size: int, max_age: float = MAX_IDLE_AGE) -> None:
        self._size = size
        self._max_age = max_age
        self._idle: dict[Route, deque[tuple[Wire, float]]] = {}
        self._lock = threading.Lock()
        self._sweep_at = 0.0
        self._closed = False

    def take(self, route: Route) -> Wire | None:
        """Return a connection that looks alive, or None; the others are closed."""
        while (entry := self._pop(route)) is not None:
            wire, since = entry
            if monotonic() - since < self._max_age and _is_quiet(wire):
                return wire
            wire.close()
        return None

    def give(self, route: Route, wire: Wire) -> None:
        """Keep a connection whose last answer is complete, at the cost of the oldest."""
        now = monotonic()
        surplus: list[Wire] = []
        with self._lock:
            if self._closed or not self._size:
                surplus.append(wire)
            else:
                kept = self._idle.setdefault(route, deque())
                kept.append((wire, now))
                if len(kept) > self._size:
                    surplus.append(kept.popleft()[0])
            if now >= self._sweep_at:
                self._sweep_at = now + self._max_age
                surplus += self._expired(now)
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Close all idle connections, and from now on every one that comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for kept in idle.values():
            for wire, _ in kept:
                wire.close()

    def _pop(self, route: Route) -> tuple[Wire, float] | None:
        with self._lock:
            kept = self._idle.get(route)
            return kept.pop() if kept else None

    def _expired(self, now: float) -> list[Wire]:
        """Take out, from every route, what nobody asked for in time; the lock is held."""
        expired: list[Wire] = []
        for route in list(self._idle):
            kept = self._idle[route]
            while kept and now - kept[0][1] >= self._max_age:
                expired.append(kept.popleft()[0])
            if not kept:
                del self._idle[route]
        return expired


def _is_quiet(wire: Wire) -> bool:
    """Whether nothing is there to read: an idle connection with news has been closed."""
    wire.settimeout(0)
    try:
        wire.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True  # under TLS a late session ticket is swallowed here and is no news
    except OSError:
        return False
    return False
