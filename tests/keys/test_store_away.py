"""While the store is away: known keys go on, each process counts for itself, and nothing
is lost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.core.errors import RateLimited, Unavailable
from services.keys import UsageQuery
from services.keys.limiter import LimiterWithoutStore, headers
from services.keys.records import PREFIX, KeyRecord, Limits
from services.pipeline.finish import finish
from services.server import embedded_store
from services.store import Store
from tests.gateway import wait_for

from .support import CHAT, Desk, answer, away_from_the_minutes_end


class Outage:
    """A store that can go away and come back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = embedded_store.start(folder)
        self.store = Store(self._server.url, timeout=0.5)

    def begin(self) -> None:
        self._server.stop()

    def end(self) -> None:
        self._server = embedded_store.start(self._folder)
        wait_for(lambda: self.store.probe().state == "ok")

    def close(self) -> None:
        self.store.close()
        self._server.stop()


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Outage]:
    with contextlib.closing(Outage(tmp_path)) as outage:
        yield outage


def test_outage(outage: Outage) -> None:
    desk, fresh = Desk(outage.store), Desk(outage.store)
    free, _ = desk.key("free")
    limited, _ = desk.key("limited", requests_per_minute=3, concurrent_streams=2)
    for key in (free, limited):
        desk.admit(key).done("ok")
    still_open = desk.admit(limited)
    away_from_the_minutes_end()
    outage.begin()

    # known keys are served; limits begin anew in each process, and all things count double
    for _ in range(5):
        with desk.admit(free) as admission:
            admission.permit(CHAT.model)
            list(finish(answer(10), CHAT, admission))
    for _ in range(2):
        desk.admit(limited).done("ok")
    with pytest.raises(RateLimited):
        desk.admit(limited)
    still_open.done("ok")

    # unknown ones are not called wrong: a relay would drop us for a 401
    for key in (limited, PREFIX + "never-seen"):
        with pytest.raises(Unavailable) as caught:
            fresh.admit(key)
        assert caught.value.status == 503
        with pytest.raises(Unavailable):
            fresh.book.recognise(key)
    with pytest.raises(Unavailable):
        desk.editor.records()
    desk.recorder.flush()
    desk.recorder.flush()

    outage.end()
    desk.recorder.flush()
    [row] = desk.usage.rows(UsageQuery(by=()))
    assert (row.requests, row.prompt_tokens + row.completion_tokens) == (5, 50)
    remaining = desk.admit(limited).headers["x-ratelimit-remaining-requests"]
    assert remaining == "0"  # the store's own count goes on where it stood


class Clock:
    """Stands at 20 s past a minute."""

    def __init__(self) -> None:
        self.now = float(int(time.time() // 86_400) * 86_400 + 39_980)

    def __call__(self) -> float:
        return self.now


class TestWithoutStore:
    """All things count double, in minutes and days of the clock."""

    def limiter(self, **limits: int) -> tuple[LimiterWithoutStore, KeyRecord, Clock]:
        clock = Clock()
        record = KeyRecord("key_1", "n", "h", 0.0, limits=Limits(**limits))
        return LimiterWithoutStore(clock), record, clock

    def test_requests_of_a_minute(self) -> None:
        limiter, record, clock = self.limiter(requests_per_minute=4)
        assert [limiter.admit(record).refused for _ in range(2)] == ["", ""]
        decision = limiter.admit(record)
        assert (decision.refused, decision.retry_after) == ("requests_per_minute", 40)
        assert headers(record.limits, decision.usage)["x-ratelimit-remaining-requests"] == "0"
        clock.now += 40
        assert [limiter.admit(record).refused for _ in range(2)] == ["", ""]

    def test_limit_of_one_lets_one_through(self) -> None:
        limiter, record, _ = self.limiter(requests_per_minute=1, concurrent_streams=1)
        assert limiter.admit(record).refused == ""
        assert limiter.admit(record).refused == "requests_per_minute"

    def test_tokens_and_days(self) -> None:
        limiter, record, clock = self.limiter(tokens_per_minute=10, tokens_per_day=25)
        limiter.admit(record)
        limiter.settle(record, 6)
        assert limiter.admit(record).refused == "tokens_per_minute"
        clock.now += 40
        decision = limiter.admit(record)
        assert (decision.refused, decision.usage.day_tokens) == ("", 12)
        limiter.settle(record, 7)
        assert limiter.admit(record).refused == "tokens_per_day"
        clock.now += 86_400
        assert limiter.admit(record).refused == ""

    def test_places(self) -> None:
        limiter, record, _ = self.limiter(concurrent_streams=3, requests_per_day=6)
        assert [limiter.admit(record).refused for _ in range(3)] == ["", "", "concurrent_streams"]
        limiter.settle(record, 0)
        assert [limiter.admit(record).refused for _ in range(2)] == ["", "requests_per_day"]
