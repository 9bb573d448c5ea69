"""The standings of a pool in this process alone: what counts while the store is away.

It hears of every fault that this process notes, so that it knows them when it is needed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence

from services.accounts.account_list import Account
from services.accounts.standings import FIRST_RUNG, LADDER, Choice, Standing, Strike, Wish, standing

MOST_CONVERSATIONS = 10_000


class LocalBoard:
    """See `Board`; the same rules as lease.lua and strike.lua, in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Standing] = {}
        self._passes: dict[str, float] = {}
        self._floor = 0.0
        self._open: defaultdict[str, set[str]] = defaultdict(set)
        self._sticky: OrderedDict[str, str] = OrderedDict()

    def choose(self, wish: Wish) -> Choice:
        """The free account that comes next, or the one the conversation had."""
        with self._lock:
            free = [a for a in wish.accounts if self._standing(a, wish.now).state == "ready"]
            if not free:
                return Choice("")
            kept = self._sticky.get(wish.conversation) if wish.conversation else None
            chosen = min(free, key=lambda a: -1.0 if a.id == kept else self._pass(a))
            place = self._pass(chosen)
            self._floor = place
            self._passes[chosen.id] = place + 1 / chosen.weight
            if chosen.concurrent:
                self._open[chosen.id].add(wish.lease)
            self._stick(wish.conversation, chosen.id)
            known = self._known.get(chosen.id)
            return Choice(chosen.id, known.strikes if known else 0)

    def strike(self, strike: Strike, now: float) -> None:
        with self._lock:
            known = self._known.get(strike.id, Standing("ready"))
            if known.state == "disabled" or (known.strikes and strike.began <= known.since):
                return
            rung = min(FIRST_RUNG[strike.fault] + known.strikes, len(LADDER))
            rest = LADDER[rung - 1] if strike.wait is None else strike.wait
            self._known[strike.id] = Standing(strike.fault, now + rest, known.strikes + 1, now)

    def put(self, account: str, standing: Standing | None) -> None:
        with self._lock:
            if standing is None:
                self._known.pop(account, None)
            else:
                self._known[account] = standing

    def stick(self, conversation: str, account: str) -> None:
        with self._lock:
            self._stick(conversation, account)

    def extend(self, lease: str, account: str, now: float) -> None:
        """Nothing: who holds a lease here lives as long as this process."""

    def release(self, lease: str, account: str) -> None:
        with self._lock:
            self._open[account].discard(lease)

    def standings(self, accounts: Sequence[Account], now: float) -> dict[str, Standing]:
        with self._lock:
            return {account.id: self._standing(account, now) for account in accounts}

    def _standing(self, account: Account, now: float) -> Standing:
        known = self._known.get(account.id)
        return standing(known, account, len(self._open[account.id]), now)

    def _pass(self, account: Account) -> float:
        return max(self._passes.get(account.id, self._floor), self._floor)

    def _stick(self, conversation: str, account: str) -> None:
        if conversation:
            self._sticky[conversation] = account
            self._sticky.move_to_end(conversation)
            if len(self._sticky) > MOST_CONVERSATIONS:
                self._sticky.popitem(last=False)
