"""When one exchange has waited long enough."""

from __future__ import annotations

from time import monotonic

from services.core.errors import UpstreamTimeout
from services.transport.base import Timeouts

# Seconds. A connection that the upstream had given up shows it within a round trip. One that
# breaks later broke over this request, which may have had its effect and is not sent twice.
STALE_WINDOW = 10.0


class Clock:
    """The deadlines of one exchange, counted from its making; times in seconds.

    Silence counts only while somebody is reading: a client that is slow to take what it got
    must not make its upstream look idle.
    """

    __slots__ = (
        "_first_byte_at",
        "_limits",
        "_quiet_until",
        "_total_at",
        "asked_at",
        "sent_at",
    )

    def __init__(self, limits: Timeouts) -> None:
        self._limits = limits
        self.asked_at = self.sent_at = monotonic()
        self._total_at = self.asked_at + limits.total
        self._first_byte_at = self._total_at
        self._quiet_until = 0.0

    def sent(self) -> None:
        """The request is out: the wait for the answer begins."""
        self.sent_at = monotonic()
        self._first_byte_at = self.sent_at + self._limits.first_byte

    def heard(self) -> None:
        """Body arrived: silence begins anew at the next read."""
        self._quiet_until = 0.0

    def until_headers(self, tick: float) -> float:
        """Return how long to wait now: `tick`, or less where a deadline is nearer.

        UpstreamTimeout once one has passed.
        """
        self.asked_at = now = monotonic()
        left = min(self._first_byte_at, self._total_at) - now
        if left > 0:
            return tick if tick < left else left
        self._check_total(now)
        raise UpstreamTimeout(f"no answer from the upstream within {self._limits.first_byte:g} s")

    def until_body(self, tick: float) -> float:
        """Like `until_headers`, for more of the body."""
        self.asked_at = now = monotonic()
        if not self._quiet_until:
            self._quiet_until = min(now + self._limits.idle, self._total_at)
        left = self._quiet_until - now
        if left > 0:
            return tick if tick < left else left
        self._check_total(now)
        raise UpstreamTimeout(
            f"the upstream went silent for {self._limits.idle:g} s within its answer"
        )

    def _check_total(self, now: float) -> None:
        if now >= self._total_at:
            raise total_timeout(self._limits)


def connect_timeout(limits: Timeouts) -> UpstreamTimeout:
    return UpstreamTimeout(f"could not connect to the upstream within {limits.connect:g} s")


def send_timeout(limits: Timeouts) -> UpstreamTimeout:
    seconds = min(limits.first_byte, limits.total)
    return UpstreamTimeout(f"the upstream did not take the request within {seconds:g} s")


def total_timeout(limits: Timeouts) -> UpstreamTimeout:
    return UpstreamTimeout(f"the upstream's answer took longer than {limits.total:g} s")
