"""What each limit lets through, what a refusal says, and what one request costs the store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from services.core.errors import RateLimited
from services.keys import Limits
from services.keys.limiter import LimitUsage, duration, headers, key_name
from services.keys.records import KeyChanges, LimitChanges, digest_of
from services.pipeline.finish import finish
from services.store import Store

from .support import CHAT, Desk, answer, away_from_midnight, client

BANNED_WORDS = ("credit", "balance", "quota", "permission denied", "disabled", "insufficient")
"""What makes a relay drop an account for good."""


def use(desk: Desk, key: str, tokens: int) -> None:
    """One request from beginning to end."""
    with desk.admit(key) as admission:
        admission.permit(CHAT.model)
        for _ in finish(answer(tokens), CHAT, admission):
            pass


def refusal(desk: Desk, key: str) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        desk.admit(key)
    return caught.value


class Commands:
    """The commands that reached the store, one entry for each round trip."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.count = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        before = self._calls()
        yield
        self.count = self._calls() - before - 1  # INFO itself

    def _calls(self) -> int:
        about: Any = client(self._store).info("stats")
        return int(about["total_commands_processed"])


def test_requests_of_a_minute_and_no_more(desk: Desk) -> None:
    key, _ = desk.key(requests_per_minute=5)
    admissions = [desk.admit(key) for _ in range(5)]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in admissions] == list("43210")
    error = refusal(desk, key)
    assert error.status == 429
    assert 0 < (error.retry_after or 0) <= 60
    assert error.headers["x-ratelimit-limit-requests"] == "5"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert not any(word in error.message for word in BANNED_WORDS)


def test_minute_is_a_moving_window_and_refused_requests_do_not_lengthen_it(
    desk: Desk, store: Store
) -> None:
    key, _ = desk.key(requests_per_minute=3)
    times = key_name(store, digest_of(key), "requests")
    now = int(time.time() * 1000)
    seconds_ago = (59.5, 30.0, 10.0)
    client(store).rpush(times, *[now - int(ago * 1000) for ago in seconds_ago])
    error = refusal(desk, key)
    assert 0 < (error.retry_after or 0) <= 0.5
    time.sleep(error.retry_after or 0)
    desk.admit(key)
    assert 25 < (refusal(desk, key).retry_after or 0) <= 30


def test_lowered_limit_counts_what_was_used_before(desk: Desk, store: Store) -> None:
    key, record = desk.key(requests_per_minute=10)
    for _ in range(6):
        desk.admit(key)
    changes = KeyChanges(limits=LimitChanges(requests_per_minute=2, tokens_per_day=5))
    desk.editor.change(record.id, changes)
    assert 50 < (refusal(desk, key).retry_after or 0) <= 60
    desk.editor.change(record.id, KeyChanges(limits=LimitChanges(requests_per_minute=None)))
    use(desk, key, 5)
    assert "5 tokens a day" in refusal(desk, key).message


def test_tokens_count_once_the_answer_is_over(desk: Desk) -> None:
    key, _ = desk.key(tokens_per_minute=100)
    use(desk, key, 60)
    use(desk, key, 60)  # 60 of 100 were used when it came
    error = refusal(desk, key)
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert error.headers["x-ratelimit-limit-tokens"] == "100"
    assert 0 < (error.retry_after or 0) <= 60


def test_tokens_of_a_minute_leave_the_window_one_by_one(desk: Desk, store: Store) -> None:
    key, _ = desk.key(tokens_per_minute=100)
    digest, now = digest_of(key), int(time.time() * 1000)
    entries = [f"{now - 90_000}:500", f"{now - 59_600}:70", f"{now - 20_000}:60"]
    client(store).rpush(key_name(store, digest, "tokens"), *entries)
    client(store).hset(key_name(store, digest, "state"), "recent_tokens", 630)
    error = refusal(desk, key)
    assert 0 < (error.retry_after or 0) <= 0.4
    time.sleep(error.retry_after or 0)
    admission = desk.admit(key)
    assert admission.headers["x-ratelimit-remaining-tokens"] == "40"


def test_day_ends_at_midnight_of_utc(desk: Desk, store: Store) -> None:
    away_from_midnight()
    key, _ = desk.key(requests_per_day=2, tokens_per_day=1000)
    use(desk, key, 600)
    use(desk, key, 10)
    error = refusal(desk, key)
    left = 86_400 - time.time() % 86_400
    assert abs((error.retry_after or 0) - left) < 5
    state = key_name(store, digest_of(key), "state")
    assert client(store).hmget(state, "requests", "tokens") == [b"2", b"610"]
    client(store).hincrby(state, "day", -1)  # as if all that had been yesterday
    admission = desk.admit(key)
    assert admission.headers["x-ratelimit-remaining-requests"] == "1"
    assert admission.headers["x-ratelimit-remaining-tokens"] == "1000"


def test_place_is_free_again_before_the_answer_ends(desk: Desk) -> None:
    key, _ = desk.key(concurrent_streams=1)
    for _ in range(20):
        with desk.admit(key) as admission:
            refused = refusal(desk, key)
            assert "1 answers at a time" in refused.message
            for _ in finish(answer(), CHAT, admission):
                pass


def test_refused_request_counts_under_no_limit(desk: Desk, store: Store) -> None:
    away_from_midnight()
    key, _ = desk.key(requests_per_minute=50, requests_per_day=50, concurrent_streams=1)
    kept = desk.admit(key)
    for _ in range(5):
        refusal(desk, key)
    kept.done("ok")
    admission = desk.admit(key)
    assert admission.headers["x-ratelimit-remaining-requests"] == "48"


def test_keys_do_not_share_limits(desk: Desk) -> None:
    first, _ = desk.key("first", requests_per_minute=1)
    second, _ = desk.key("second", requests_per_minute=1)
    desk.admit(first)
    desk.admit(second)
    refusal(desk, first)
    refusal(desk, second)


def test_nothing_of_a_key_stays_behind_for_ever_but_its_record(desk: Desk, store: Store) -> None:
    key, _ = desk.key(
        requests_per_minute=9, tokens_per_minute=900, requests_per_day=9, concurrent_streams=9
    )
    use(desk, key, 10)
    kept = desk.admit(key)
    digest = digest_of(key)
    for part in ("state", "requests", "tokens", "leases"):
        name = key_name(store, digest, part)
        assert 0 < client(store).pttl(name) <= 86_460_000, part
    kept.done("ok")


class TestRoundTrips:
    """What the store sees of a request."""

    def test_limited_request_is_one_script_before_the_upstream(
        self, desk: Desk, store: Store
    ) -> None:
        key, _ = desk.key(requests_per_minute=99, tokens_per_day=9999, concurrent_streams=9)
        desk.admit(key).done("ok")  # the scripts are known now
        fresh = Desk(store)
        calls: list[str] = []
        with client(store).monitor() as monitor:
            admission = fresh.admit(key)
            store.client.echo("over")
            for entry in monitor.listen():
                if "ECHO" in entry["command"]:
                    break
                command = entry["command"].split()[0]
                if entry["client_type"] != "lua" and command != "CLIENT":  # a new connection's
                    calls.append(command)
        assert calls == ["EVALSHA"]
        admission.done("ok")

    def test_unlimited_key_costs_nothing_while_it_is_remembered(
        self, desk: Desk, store: Store
    ) -> None:
        key, _ = desk.key()
        desk.admit(key).done("ok")
        commands = Commands(store)
        with commands.counted():
            for _ in range(10):
                use(desk, key, 5)
        assert commands.count == 0

    def test_credential_of_a_caller_is_never_looked_up(self, desk: Desk, store: Store) -> None:
        commands = Commands(store)
        with commands.counted():
            admission = desk.admit("sk-somebody-elses-canary7f3e")
            assert desk.book.recognise("sk-somebody-elses-canary7f3e") is None
        assert admission.record is None
        assert commands.count == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (10_805, "3h0m5s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_show_the_limit_with_less_left() -> None:
    limits = Limits(requests_per_minute=10, requests_per_day=100, tokens_per_day=50)
    usage = LimitUsage(minute_requests=1, day_requests=98, day_tokens=60, day_left=360.0)
    assert headers(limits, usage) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-limit-tokens": "50",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert headers(Limits(concurrent_streams=3), LimitUsage()) == {}
