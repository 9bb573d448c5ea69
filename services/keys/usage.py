"""What keys have used, by day, key and model: one hash a day in the store, kept for 90 days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import msgspec

from services.core.errors import InvalidRequest, Unavailable
from services.store import Store, StoreAway, StoreScript

KEPT_DAYS = 90
_SEPARATOR = "\x1f"

Grouping = Literal["day", "month", "key", "model"]


class Counts(msgspec.Struct, kw_only=True):
    """Sums. `errors` and `cancelled` are among `requests`."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    errors: int = 0
    cancelled: int = 0

    def add(self, name: str, number: int) -> None:
        setattr(self, name, getattr(self, name) + number)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class UsageRow(Counts, kw_only=True, omit_defaults=False):
    """One group's sums; what it is not grouped by is null. `key` is a key's id."""

    day: str | None = None
    key: str | None = None
    model: str | None = None


class UsageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The days asked for, both included; by default the last 30. `by` lists groupings."""

    start: date | None = None
    end: date | None = None
    by: tuple[Grouping, ...] = ("day",)
    key: str | None = None
    model: str | None = None


Bucket = tuple[str, str, str]
"""Key id, model, and the name of a count."""


_COUNT = StoreScript.beside(__file__, "count.lua")


class UsageBook:
    """Writes and reads the counts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def count(self, batch: str, day: date, counts: Mapping[Bucket, int]) -> None:
        """Add to a day's counts, once for each `batch`. Raises `StoreAway`."""
        names = [self._name(day), f"{self._name(day)}:batch:{batch}"]
        values: list[Any] = [(KEPT_DAYS + 1) * 86_400]
        for bucket, number in counts.items():
            values += [_SEPARATOR.join(bucket), number]
        self._store.run_script(_COUNT, names, values)

    def rows(self, query: UsageQuery) -> list[UsageRow]:
        """Sums for each group that has any, in order. Raises `InvalidRequest`, `Unavailable`."""
        groups: dict[tuple[str | None, ...], UsageRow] = {}
        for day, (key, model, name), number in self._matching(query):
            where = _group(query.by, day, key, model)
            row = groups.get(where)
            if row is None:
                row = groups[where] = UsageRow(day=where[0], key=where[1], model=where[2])
            row.add(name, number)
        return sorted(groups.values(), key=lambda r: (r.day or "", r.key or "", r.model or ""))

    def _matching(self, query: UsageQuery) -> Iterator[tuple[date, Bucket, int]]:
        for day, fields in self._days(*_span(query)):
            for field, number in fields.items():
                key, model, name = field.decode().split(_SEPARATOR)
                if query.key in (None, key) and query.model in (None, model):
                    yield day, (key, model, name), int(number)

    def _days(self, start: date, end: date) -> list[tuple[date, dict[bytes, bytes]]]:
        days = [start + timedelta(n) for n in range((end - start).days + 1)]
        try:
            found = self._store.pipeline(lambda p: [p.hgetall(self._name(day)) for day in days])
        except StoreAway as exc:
            raise Unavailable("the store is away: usage cannot be read", retry_after=5) from exc
        return list(zip(days, found, strict=True))

    def _name(self, day: date) -> str:
        return self._store.key("usage", f"{{{day.isoformat()}}}")


def today() -> date:
    """The day that counts now: days are those of UTC."""
    return datetime.now(UTC).date()


def _span(query: UsageQuery) -> tuple[date, date]:
    """First and last day to read; what is older than 90 days is no more."""
    now = today()
    end = min(query.end or now, now)
    start = query.start or end - timedelta(29)
    if query.start and query.end and query.start > query.end:
        raise InvalidRequest("start is after end", param="start")
    return max(start, now - timedelta(KEPT_DAYS)), end


def _group(
    by: tuple[Grouping, ...], day: date, key: str, model: str
) -> tuple[str | None, str | None, str | None]:
    when = day.isoformat() if "day" in by else day.isoformat()[:7] if "month" in by else None
    return when, key if "key" in by else None, model if "model" in by else None
