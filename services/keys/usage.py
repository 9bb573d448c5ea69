"""What keys have used, by day, key and model: one hash a day in the store, kept for 90 days.

Requests that are over are gathered in memory and counted in the store about once a second. A worker
that is killed takes up to a second of them along; while the store is away they are kept, summed up,
until it is back.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import msgspec

from services.core.errors import InvalidRequest, Unavailable
from services.store import Store, StoreAway, StoreScript

KEPT_DAYS = 90
_SEPARATOR = "\x1f"

Outcome = Literal["ok", "error", "cancelled"]

NOBODY = "passthrough"
"""The key id of those who bring their own credential."""

OTHER = "other"
"""Stands for the names of models that are not listed: a caller can think up any number."""


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


class RequestUsage(msgspec.Struct, frozen=True, gc=False):
    """One answered request. `first_token` is in seconds since it came, None if nothing was said."""

    key: str
    model: str
    provider: str
    outcome: Outcome
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    first_token: float | None = None


class UsageStore:
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


class _Batch(msgspec.Struct, frozen=True):
    """Counts of a day as they were sent first, so that they can be sent again unchanged."""

    id: str
    day: date
    counts: dict[Bucket, int]


class UsageRecorder:
    """`listed` are the names of the models on offer; `observe` sees every request, once."""

    def __init__(
        self,
        usage: UsageStore,
        listed: Collection[str],
        observe: Callable[[Sequence[RequestUsage]], None] = lambda requests: None,
    ) -> None:
        self._usage = usage
        self._listed = listed
        self._observe = observe
        self._over: deque[RequestUsage] = deque()
        self._sums: dict[date, Counter[Bucket]] = {}
        self._unsent: deque[_Batch] = deque()
        self._flushing = threading.Lock()

    def add(self, request: RequestUsage) -> None:
        """Note a request that is over: a tenth of a microsecond."""
        self._over.append(request)

    def flush(self) -> None:
        """Count what has been noted; keep what the store does not take now."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        requests = [self._known(self._over.popleft()) for _ in range(len(self._over))]
        if requests:
            self._observe(requests)
            self._sum_up(requests)
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

    def _known(self, request: RequestUsage) -> RequestUsage:
        if request.model in self._listed:
            return request
        return msgspec.structs.replace(request, model=OTHER)

    def _sum_up(self, requests: Sequence[RequestUsage]) -> None:
        sums = self._sums.setdefault(today(), Counter())
        for request in requests:
            for name, number in _counts(request):
                if number:
                    sums[request.key, request.model, name] += number

    def _seal(self) -> None:
        for day, sums in self._sums.items():
            self._unsent.append(_Batch(secrets.token_hex(8), day, dict(sums)))
        self._sums.clear()


def _counts(request: RequestUsage) -> tuple[tuple[str, int], ...]:
    return (
        ("requests", 1),
        ("prompt_tokens", request.prompt_tokens),
        ("completion_tokens", request.completion_tokens),
        ("images", request.images),
        ("errors", int(request.outcome == "error")),
        ("cancelled", int(request.outcome == "cancelled")),
    )


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
