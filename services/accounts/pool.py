"""Pools of accounts: which one serves a request, and what its faults do to it.

The least recently used comes next, one of twice the weight twice as often; a conversation stays
with its account. While the store is away each process keeps its own books.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from services.accounts.account_list import Account
from services.accounts.entry import INSIDE, Entry, enter
from services.accounts.local_board import LocalBoard
from services.accounts.standings import Fault, Standing, State, Strike, Wish
from services.accounts.store_board import StoreBoard
from services.core.errors import GatewayError, RateLimited, Unavailable
from services.core.models import CallLimit
from services.store import Store, StoreAway

log = logging.getLogger(__name__)

SHORTEST_WAIT = 1.0
LONGEST_WAIT = 86400.0
NO_LIMITS: Mapping[str, CallLimit] = {}
_LIMITED: frozenset[State] = frozenset({"cooling", "busy"})


class Lease(msgspec.Struct, frozen=True):
    """An account for one request, from `began` on. `strikes` are the faults it had in a row.

    `paid`: the limit under which the place of its first call is taken.
    """

    id: str
    account: Account
    began: float
    strikes: int
    paid: CallLimit | None = None


class AccountView(msgspec.Struct, frozen=True):
    """An account as an operator sees it. `until` is when its state ends by itself, in epoch
    seconds.
    """

    id: str
    provider: str
    name: str
    state: State
    reason: str
    until: float | None
    strikes: int
    weight: int
    source: str


_REASONS: dict[State, str] = {
    "ready": "",
    "busy": "all the answers it may give at once are under way",
    "cooling": "the upstream limits it, or could not serve it",
    "expired": "the upstream does not take its token any more",
    "banned": "the upstream refuses it",
    "disabled": "disabled by hand",
}


class Pool:
    """The accounts of one provider. Never raises `StoreAway`."""

    def __init__(
        self,
        provider: str,
        accounts: Sequence[Account],
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._store = store
        self.use(accounts)
        self._shared = StoreBoard(store, provider)
        self._own = LocalBoard()
        self._clock = clock
        self._open: dict[str, str] = {}

    def use(self, accounts: Sequence[Account]) -> None:
        """Choose among these from now on; requests under way keep theirs."""
        self._accounts = {account.id: account for account in accounts}
        self._limits: Mapping[str, CallLimit] | None = None

    def __contains__(self, account_id: str) -> bool:
        return account_id in self._accounts

    def __len__(self) -> int:
        return len(self._accounts)

    def limit_calls(self, limit_of: Callable[[Account], CallLimit | None]) -> None:
        """Look for a place among the calls of an account's minute as well; asks `limit_of` once."""
        if self._limits is None:
            limits = ((account.id, limit_of(account)) for account in self._accounts.values())
            self._limits = {name: limit for name, limit in limits if limit is not None}

    def lease(
        self, conversation: str = "", without: Collection[str] = (), entry: Entry = INSIDE
    ) -> Lease:
        """The account to use, none of `without`, for a request that comes in by `entry`.

        Raises `RateLimited` or `Unavailable`, with the seconds until one is free again, and what
        the entry raises.
        """
        offered = [a for a in self._accounts.values() if a.id not in without]
        if not offered:
            raise self.exhausted()
        wish = Wish(
            offered, secrets.token_hex(8), conversation, self._clock(), self._limits or NO_LIMITS
        )
        answers = enter(self._store, entry, [self._shared.choosing(wish, entry.refusal)])
        choice = self._own.choose(wish) if answers is None else self._shared.chosen(answers[0])
        if not choice.id:
            raise self.exhausted()
        account = next(account for account in offered if account.id == choice.id)
        if account.concurrent:
            self._open[wish.lease] = account.id
        paid = wish.limits[account.id] if choice.paid else None
        return Lease(wish.lease, account, wish.now, choice.strikes, paid)

    def strike(self, lease: Lease, fault: Fault, wait: float | None = None) -> None:
        """Let the account rest; `wait` is the upstream's own word for how many seconds."""
        bounded = None if wait is None else min(max(wait, SHORTEST_WAIT), LONGEST_WAIT)
        log.warning(
            "account rests provider=%s account=%s fault=%s", self._provider, lease.account.id, fault
        )
        strike = Strike(lease.account.id, fault, lease.began, bounded)
        now = self._clock()
        self._own.strike(strike, now)
        self._on_shared(lambda board: board.strike(strike, now))

    def succeeded(self, lease: Lease) -> None:
        """The account has answered: nothing is held against it any more."""
        if lease.strikes:
            self.reset(lease.account.id)

    def stick(self, lease: Lease, conversation: str) -> None:
        """This conversation lives in the lease's account."""
        self._own.stick(conversation, lease.account.id)
        self._on_shared(lambda board: board.stick(conversation, lease.account.id))

    def release(self, lease: Lease) -> None:
        """The request is over."""
        if self._open.pop(lease.id, None) is not None:
            self._own.release(lease.id, lease.account.id)
            self._on_shared(lambda board: board.release(lease.id, lease.account.id))

    def carry_on(self, before: Pool) -> None:
        """Share what `before` knows of faults by itself: it may still have requests."""
        self._own = before._own

    def extend_open(self) -> None:
        """Tell the store which requests are still under way. Raises `StoreAway`."""
        for lease, account in tuple(self._open.items()):
            self._shared.extend(lease, account, self._clock())

    def reset(self, account: str) -> bool:
        """Make an account ready again, enabled too; whether the other workers heard of it."""
        return self._put(account, None)

    def disable(self, account: str) -> bool:
        """Take an account out until it is reset; whether the other workers heard of it."""
        return self._put(account, Standing("disabled", since=self._clock()))

    def view(self) -> list[AccountView]:
        """All accounts as they stand."""
        standings = self._standings()
        return [self._view(a, standings[a.id]) for a in self._accounts.values()]

    def exhausted(self) -> GatewayError:
        """What a caller is told when no account is left: never 401, and no word of any account."""
        standings = self._standings().values()
        now = self._clock()
        times = [s.free_at - now for s in standings if s.state not in ("disabled", "ready")]
        after = max(min(times), SHORTEST_WAIT) if times else None
        if any(standing.state in _LIMITED for standing in standings):
            words = "this model is in too much demand, retry later"
            return RateLimited(words, retry_after=after)
        return Unavailable("this model cannot be served now", retry_after=after)

    def _standings(self) -> Mapping[str, Standing]:
        accounts, now = tuple(self._accounts.values()), self._clock()
        try:
            return self._shared.standings(accounts, now)
        except StoreAway:
            return self._own.standings(accounts, now)

    def _view(self, account: Account, standing: Standing) -> AccountView:
        return AccountView(
            account.id,
            self._provider,
            account.name,
            standing.state,
            _REASONS[standing.state],
            standing.free_at or None,
            standing.strikes,
            account.weight,
            account.source,
        )

    def _put(self, account: str, standing: Standing | None) -> bool:
        self._own.put(account, standing)
        return self._on_shared(lambda board: board.put(account, standing))

    def _on_shared(self, note: Callable[[StoreBoard], None]) -> bool:
        """Whether the store could be told; our own board knows in any case."""
        try:
            note(self._shared)
        except StoreAway:
            return False
        return True
