"""Name lookups that end in time, even when the system's resolver does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence

from services.fetch.addresses import Address, parse_address
from services.fetch.deadline import Deadline

Resolver = Callable[[str, int], Sequence[str]]
"""From a host name and port to its addresses as text. Raise OSError when there are none."""


def system_resolver(host: str, port: int) -> list[str]:
    """Every address of `host` that the system knows, best first, without repetition."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Lookups:
    """Runs a resolver with a time limit, at most `at_once` at a time.

    getaddrinfo cannot be interrupted. A lookup that is late goes on in its thread, and keeps its
    place until it ends: callers with names of slow servers get into each other's way, and not into
    that of the rest, which shares gevent's ten resolver threads.
    """

    def __init__(self, resolver: Resolver = system_resolver, at_once: int = 4) -> None:
        self._resolver = resolver
        self._places = threading.BoundedSemaphore(at_once)

    def addresses(self, host: str, port: int, deadline: Deadline) -> tuple[Address, ...] | None:
        """All addresses of `host`, or None when there are none or one of them cannot be read.

        Raise TimeoutError when the deadline passes first.
        """
        if not self._places.acquire(timeout=deadline.left()):
            raise TimeoutError("no lookup ended in time")
        answer: list[str] = []
        thread = threading.Thread(
            target=self._run, args=(host, port, answer), name="lookup", daemon=True
        )
        thread.start()
        thread.join(deadline.left())
        if thread.is_alive():
            raise TimeoutError("the lookup did not end in time")
        found = [parse_address(text) for text in answer]
        known = tuple(address for address in found if address is not None)
        return known if known and len(known) == len(found) else None

    def _run(self, host: str, port: int, answer: list[str]) -> None:
        try:
            answer.extend(self._resolver(host, port))
        except (OSError, UnicodeError):
            answer.clear()
        finally:
            self._places.release()
