"""The requests that are over: gathered in memory, counted in the store about once a second.

Adding one costs a request a tenth of a microsecond. A worker that is killed takes up to a second
of them along; while the store is away they are kept, summed up, until it is back.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from datetime import date
from typing import Literal

import msgspec

from services.keys.usage import Bucket, UsageBook, today
from services.store import StoreAway

Outcome = Literal["ok", "error", "cancelled"]

NOBODY = "passthrough"
"""The key id of those who bring their own credential."""

OTHER = "other"
"""Stands for the names of models that are not listed: a caller can think up any number."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One answered request. `first_token` is in seconds since it came, None if nothing was said."""

    key: str
    model: str
    provider: str
    outcome: Outcome
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    first_token: float | None = None


class _Batch(msgspec.Struct, frozen=True):
    """Counts of a day as they were sent first, so that they can be sent again unchanged."""

    id: str
    day: date
    counts: dict[Bucket, int]


class Ledger:
    """`listed` are the names of the models on offer; `observe` sees every turn, once."""

    def __init__(
        self,
        usage: UsageBook,
        listed: Collection[str],
        observe: Callable[[Sequence[Turn]], None] = lambda turns: None,
    ) -> None:
        self._usage = usage
        self._listed = listed
        self._observe = observe
        self._turns: deque[Turn] = deque()
        self._sums: dict[date, Counter[Bucket]] = {}
        self._unsent: deque[_Batch] = deque()
        self._flushing = threading.Lock()

    def add(self, turn: Turn) -> None:
        """Note a turn."""
        self._turns.append(turn)

    def flush(self) -> None:
        """Count what has been noted; keep what the store does not take now."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        turns = [self._known(self._turns.popleft()) for _ in range(len(self._turns))]
        if turns:
            self._observe(turns)
            self._sum_up(turns)
        if not self._unsent:  # else days and hours of an outage stay one batch
            self._seal()
        while self._unsent:
            batch = self._unsent[0]
            try:
                self._usage.count(batch.id, batch.day, batch.counts)
            except StoreAway:
                return
            self._unsent.popleft()
            if not self._unsent:
                self._seal()

    def _known(self, turn: Turn) -> Turn:
        if turn.model in self._listed:
            return turn
        return msgspec.structs.replace(turn, model=OTHER)

    def _sum_up(self, turns: Sequence[Turn]) -> None:
        sums = self._sums.setdefault(today(), Counter())
        for turn in turns:
            for name, number in _counts(turn):
                if number:
                    sums[turn.key, turn.model, name] += number

    def _seal(self) -> None:
        for day, sums in self._sums.items():
            self._unsent.append(_Batch(secrets.token_hex(8), day, dict(sums)))
        self._sums.clear()


def _counts(turn: Turn) -> tuple[tuple[str, int], ...]:
    return (
        ("requests", 1),
        ("prompt_tokens", turn.prompt_tokens),
        ("completion_tokens", turn.completion_tokens),
        ("images", turn.images),
        ("errors", int(turn.outcome == "error")),
        ("cancelled", int(turn.outcome == "cancelled")),
    )
