"""How an account stands: ready, or resting for a reason and until a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from services.accounts.account_list import Account
from services.core.models import CallLimit

Fault = Literal["cooling", "expired", "banned"]
"""A limit or something unclear; a token that the upstream does not take; an account it refuses."""
State = Literal["ready", "busy", "cooling", "expired", "banned", "disabled"]

LADDER = (120.0, 600.0, 3600.0, 86400.0)
"""Seconds of rest after the first fault, the second in a row, and so on, where the upstream names
no time of its own. No fault is for ever: an operator disables.
"""
FIRST_RUNG: dict[Fault, int] = {"cooling": 1, "expired": 2, "banned": 2}


class Standing(msgspec.Struct, frozen=True):
    """What the store keeps of an account that is not simply ready; times are epoch seconds.

    `strikes` are faults in a row, `since` is when the last was noted.
    """

    state: State
    free_at: float = 0.0
    strikes: int = 0
    since: float = 0.0


class Choice(msgspec.Struct, frozen=True):
    """The account to use; `id` is empty where none is free. `strikes` are those it had.

    `paid`: the first place among the calls of its minute is taken.
    """

    id: str
    strikes: int = 0
    paid: bool = False


class Wish(msgspec.Struct, frozen=True):
    """One of `accounts` for a request that `lease` names, the one that has `conversation` if it
    can be. `limits` are how many calls each may get, by account; all or none. `now` is epoch
    seconds.
    """

    accounts: Sequence[Account]
    lease: str
    conversation: str
    now: float
    limits: Mapping[str, CallLimit] = {}


class Strike(msgspec.Struct, frozen=True):
    """A fault of an account: when its request `began`, and the upstream's own `wait`, in seconds,
    if it told one.
    """

    id: str
    fault: Fault
    began: float
    wait: float | None = None


class Board(Protocol):
    """Keeps the standings of one pool, and chooses. `now` is epoch seconds, `lease` a request."""

    def strike(self, strike: Strike, now: float) -> None: ...

    def put(self, account: str, standing: Standing | None) -> None: ...

    def stick(self, conversation: str, account: str) -> None: ...

    def extend(self, lease: str, account: str, now: float) -> None: ...

    def release(self, lease: str, account: str) -> None: ...

    def standings(self, accounts: Sequence[Account], now: float) -> dict[str, Standing]: ...


def standing(known: Standing | None, account: Account, is_open: int, now: float) -> Standing:
    """How an account stands, from what is kept of it and how many of its answers are open."""
    if known is not None and (known.state == "disabled" or known.free_at > now):
        return known
    strikes = known.strikes if known is not None else 0
    if account.concurrent and is_open >= account.concurrent:
        return Standing("busy", now + 1, strikes)
    return Standing("ready", 0.0, strikes)
