"""Idle connections, kept for the next request on the same route."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from time import monotonic

from services.transport.connect import Route, Socket

# Seconds. Servers commonly close idle connections after 75; be first.
MAX_IDLE_AGE = 60.0


class Pool:
    """Last in, first out, at most `size` a route; safe for threads and greenlets."""

    def __init__(self, size: int, max_age: float = MAX_IDLE_AGE) -> None:
        self._size = size
        self._max_age = max_age
        self._idle: dict[Route, deque[tuple[Socket, float]]] = {}
        self._lock = threading.Lock()
        self._sweep_at = 0.0
        self._closed = False

    def take(self, route: Route) -> Socket | None:
        """Return a connection that looks alive, or None; the others are closed."""
        while True:
            with self._lock:
                kept = self._idle.get(route)
                if not kept:
                    return None
                sock, since = kept.pop()
            if monotonic() - since < self._max_age and _is_quiet(sock):
                return sock
            sock.close()

    def give(self, route: Route, sock: Socket) -> None:
        """Keep a connection whose last response is complete, at the cost of the oldest."""
        now = monotonic()
        surplus: list[Socket] = []
        with self._lock:
            kept = self._idle.setdefault(route, deque())
            kept.append((sock, now))
            if len(kept) > (0 if self._closed else self._size):
                surplus.append(kept.popleft()[0])
            if now >= self._sweep_at:
                self._sweep_at = now + self._max_age
                surplus += self._take_expired(now)
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Close all idle connections, and from now on every one that comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for kept in idle.values():
            for sock, _ in kept:
                sock.close()

    def __del__(self) -> None:
        self.close()

    def _take_expired(self, now: float) -> list[Socket]:
        """Take out, from every route, what nobody asked for in time; the lock is held."""
        expired: list[Socket] = []
        for route in list(self._idle):
            kept = self._idle[route]
            while kept and now - kept[0][1] >= self._max_age:
                expired.append(kept.popleft()[0])
            if not kept:
                del self._idle[route]
        return expired


def _is_quiet(sock: Socket) -> bool:
    """Whether nothing is there to read: an idle connection with news has been closed."""
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True  # under TLS a late session ticket is swallowed here and is no news
    except OSError:
        return False
    return False
