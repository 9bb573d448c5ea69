"""The names of the models on offer, looked up now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

REFRESH_SECONDS = 60.0


class ListedModels:
    """A collection of names that `names` is asked for again when it is older than a minute; a name
    that has been in it stays, so that its usage is counted while its provider cannot list it.
    """

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        self._known: frozenset[str] = frozenset()
        self._stale_at = 0.0

    def __contains__(self, name: object) -> bool:
        return name in self._current()

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def _current(self) -> frozenset[str]:
        if time.monotonic() >= self._stale_at:
            self._stale_at = time.monotonic() + REFRESH_SECONDS
            self._known |= frozenset(self._names())
        return self._known
