"""What a key has used of its limits, and how a caller is told."""

from __future__ import annotations

import math

import msgspec

from services.core.errors import KeyLimitReached
from services.keys.records import Limits

WORDS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "requests_per_day": "requests a day",
    "tokens_per_day": "tokens a day",
    "concurrent_streams": "answers at a time",
}


class Standing(msgspec.Struct, frozen=True):
    """What is used of each limit that there is, this request included.

    Seconds until the minute's requests, the minute's tokens and the day are as if nothing had
    been used.
    """

    minute_requests: int = 0
    day_requests: int = 0
    minute_tokens: int = 0
    day_tokens: int = 0
    requests_reset: float = 0.0
    tokens_reset: float = 0.0
    day_left: float = 0.0


class Verdict(msgspec.Struct, frozen=True):
    """`refused` names the limit that has no room, empty if all have. `record` is as stored."""

    record: bytes
    refused: str
    retry_after: float
    standing: Standing


def too_many(verdict: Verdict, limits: Limits) -> KeyLimitReached:
    """The refusal, in words that no relay takes for a dead account."""
    words, limit = WORDS[verdict.refused], getattr(limits, verdict.refused)
    wait = duration(verdict.retry_after)
    return KeyLimitReached(
        f"this key's limit of {limit} {words} is reached; try again in {wait}",
        retry_after=verdict.retry_after,
        headers=headers(limits, verdict.standing),
    )


def headers(limits: Limits, standing: Standing) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI sends them: of minute and day the one with less left."""
    now = standing
    requests = _tighter(
        (limits.requests_per_minute, now.minute_requests, now.requests_reset),
        (limits.requests_per_day, now.day_requests, now.day_left),
    )
    tokens = _tighter(
        (limits.tokens_per_minute, now.minute_tokens, now.tokens_reset),
        (limits.tokens_per_day, now.day_tokens, now.day_left),
    )
    return {**_lines("requests", requests), **_lines("tokens", tokens)}


Meter = tuple[int | None, int, float]
"""A limit, what is used of it, and the seconds until nothing is."""


def _tighter(minute: Meter, day: Meter) -> Meter:
    left = [meter for meter in (minute, day) if meter[0] is not None]
    return min(left, key=lambda meter: (meter[0] or 0) - meter[1], default=minute)


def _lines(kind: str, meter: Meter) -> dict[str, str]:
    limit, used, reset = meter
    if limit is None:
        return {}
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(0, limit - used)),
        f"x-ratelimit-reset-{kind}": duration(reset),
    }


def duration(seconds: float) -> str:
    """Such as `120ms`, `7s`, `6m0s` or `3h0m5s`, rounded up."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
