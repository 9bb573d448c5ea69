"""What was used is counted once, kept by day, and summed up as asked."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from services.core.errors import InvalidRequest
from services.keys import RequestUsage, UsageQuery
from services.keys.usage import OTHER, today
from services.store import Store

from .support import Desk, client


def turn(
    key: str = "key_1", model: str = "small", outcome: Any = "ok", **counts: int
) -> RequestUsage:
    return RequestUsage(key, model, "custom", outcome, **counts)


def test_turns_are_summed_up_in_one_round_trip(desk: Desk, store: Store) -> None:
    for _ in range(100):
        desk.recorder.add(turn(prompt_tokens=3, completion_tokens=2))
    desk.recorder.add(turn(outcome="cancelled"))
    desk.recorder.add(turn("key_2", outcome="error", images=1))
    desk.recorder.flush()
    desk.recorder.flush()  # nothing twice
    rows = desk.usage.rows(UsageQuery(by=("key",)))
    first, second = rows
    assert (first.key, first.requests, first.prompt_tokens, first.completion_tokens) == (
        "key_1",
        101,
        300,
        200,
    )
    assert (first.cancelled, first.errors, first.images) == (1, 0, 0)
    assert (second.requests, second.errors, second.images) == (1, 1, 1)
    assert (first.day, first.model) == (None, None)
    name = store.key("usage", f"{{{today().isoformat()}}}")
    assert 90 * 86_400 < client(store).ttl(name) <= 91 * 86_400


def test_workers_add_up(store: Store) -> None:
    for worker in (Desk(store), Desk(store)):
        worker.recorder.add(turn(prompt_tokens=5))
        worker.recorder.flush()
    [row] = Desk(store).usage.rows(UsageQuery())
    assert (row.requests, row.prompt_tokens, row.day) == (2, 5 * 2, today().isoformat())


def test_names_that_callers_think_up_are_one_name(desk: Desk) -> None:
    for number in range(50):
        desk.recorder.add(turn(model=f"invented\x1f{number}"))
    desk.recorder.flush()
    [row] = desk.usage.rows(UsageQuery(by=("model",)))
    assert (row.model, row.requests) == (OTHER, 50)


def test_batch_that_is_sent_again_counts_once(desk: Desk) -> None:
    counts = {("key_1", "small", "requests"): 3}
    for _ in range(3):
        desk.usage.count("batch-1", today(), counts)
    desk.usage.count("batch-2", today(), counts)
    [row] = desk.usage.rows(UsageQuery(by=()))
    assert row.requests == 6


class TestRanges:
    @pytest.fixture
    def desk(self, store: Store) -> Desk:
        """A hundred days of one request each, by two keys and two models."""
        desk = Desk(store)
        for ago in range(100):
            bucket = (f"key_{ago % 2}", f"model_{ago % 3 % 2}", "requests")
            desk.usage.count(f"b{ago}", today() - timedelta(ago), {bucket: 1})
        return desk

    def total(self, desk: Desk, **query: Any) -> int:
        return sum(row.requests for row in desk.usage.rows(UsageQuery(by=(), **query)))

    def test_last_thirty_days_unless_asked(self, desk: Desk) -> None:
        assert self.total(desk) == 30
        assert len(desk.usage.rows(UsageQuery())) == 30

    def test_days_are_both_included(self, desk: Desk) -> None:
        start = today() - timedelta(9)
        assert self.total(desk, start=start, end=start) == 1
        assert self.total(desk, start=start) == 10
        assert self.total(desk, start=start, end=today() + timedelta(50)) == 10

    def test_older_than_ninety_days_is_not_read(self, desk: Desk) -> None:
        assert self.total(desk, start=date(2001, 1, 1)) == 91
        assert self.total(desk, start=date(2001, 1, 1), end=date(2001, 2, 1)) == 0

    def test_filters_and_groups(self, desk: Desk) -> None:
        assert self.total(desk, key="key_1") == 15
        assert self.total(desk, key="key_1", model="model_1") == 5
        rows = desk.usage.rows(UsageQuery(by=("model", "key")))
        assert [(r.key, r.model) for r in rows] == [
            ("key_0", "model_0"),
            ("key_0", "model_1"),
            ("key_1", "model_0"),
            ("key_1", "model_1"),
        ]
        months = desk.usage.rows(UsageQuery(by=("month",)))
        assert {row.day for row in months} == {
            (today() - timedelta(ago)).isoformat()[:7] for ago in range(30)
        }

    def test_start_after_end_is_refused(self, desk: Desk) -> None:
        with pytest.raises(InvalidRequest):
            desk.usage.rows(UsageQuery(start=today(), end=today() - timedelta(1)))
