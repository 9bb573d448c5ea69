"""The standings of a pool in the store: one for all workers. Every method raises `StoreAway`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.client import Pipeline

from services.accounts.account_list import Account
from services.accounts.standings import (
    FIRST_RUNG,
    LADDER,
    Choice,
    Standing,
    Strike,
    Wish,
    standing,
)
from services.accounts.vault import hashed
from services.core.models import CallLimit
from services.rate_gate import calls_key
from services.scripts import Call, StoreScript
from services.store import Store

_STRIKE = StoreScript.beside(__file__, "strike.lua")
_LEASE = StoreScript.beside(__file__, "lease.lua")
_UNLIMITED = CallLimit("-", "-", 1)

LEASE_SECONDS = 90.0
"""How long an open answer counts if its worker dies; extended while that lives."""
STICKY_SECONDS = 7 * 86400


class StoreBoard:
    """See `Board`. All keys of a pool lie in one slot of a cluster."""

    def __init__(self, store: Store, pool: str) -> None:
        self._store = store
        self._pool = pool

    def choosing(self, wish: Wish, refusal: str = "") -> Call:
        """The script that chooses the free account that comes next, or the one this conversation
        had, unless the key `refusal` is there; `chosen` reads its answer.
        """
        names = [self._name("states"), self._name("passes"), self._sticky(wish.conversation)]
        names.append(refusal or self._name("refused", "-"))
        for account in wish.accounts:
            limit = wish.limits.get(account.id, _UNLIMITED)
            names += [self._name("open", account.id), calls_key(self._store, limit)]
        arguments: list[str | float] = [wish.now, wish.lease, LEASE_SECONDS]
        arguments.append(STICKY_SECONDS if wish.conversation else 0)
        arguments.append(next((limit.per_minute for limit in wish.limits.values()), 0))
        for account in wish.accounts:
            arguments += [account.id, account.weight, account.concurrent]
        return Call(_LEASE, names, arguments)

    @staticmethod
    def chosen(answer: Any) -> Choice:
        """What the script of `choosing` answered."""
        name, strikes, paid = answer
        return Choice(name.decode(), int(strikes), bool(paid))

    def strike(self, strike: Strike, now: float) -> None:
        """Let an account rest for its fault."""
        wait = "" if strike.wait is None else strike.wait
        first = FIRST_RUNG[strike.fault]
        arguments = (strike.id, strike.fault, now, strike.began, wait, first, *LADDER)
        _STRIKE.run(self._store, [self._name("states")], arguments)

    def put(self, account: str, standing: Standing | None) -> None:
        """Set how it stands; None: ready, and nothing held against it."""
        name = self._name("states")
        if standing is None:
            self._store.run(lambda c: c.hdel(name, account))
        else:
            text = msgspec.json.encode(standing).decode()
            self._store.run(lambda c: c.hset(name, account, text))

    def stick(self, conversation: str, account: str) -> None:
        """Send this conversation to `account` from now on."""
        name = self._sticky(conversation)
        self._store.run(lambda c: c.set(name, account, ex=STICKY_SECONDS))

    def extend(self, lease: str, account: str, now: float) -> None:
        """The answer is still under way."""
        name, ends = self._name("open", account), now + LEASE_SECONDS

        def fill(pipe: Pipeline) -> None:
            pipe.zadd(name, {lease: ends}, xx=True)
            pipe.expire(name, int(LEASE_SECONDS))

        self._store.pipeline(fill)

    def release(self, lease: str, account: str) -> None:
        """The answer is over."""
        self._store.run(lambda c: c.zrem(self._name("open", account), lease))

    def standings(self, accounts: Sequence[Account], now: float) -> dict[str, Standing]:
        """How each account stands now."""
        bound = [account for account in accounts if account.concurrent]

        def fill(pipe: Pipeline) -> None:
            pipe.hgetall(self._name("states"))
            for account in bound:
                pipe.zcount(self._name("open", account.id), now, "+inf")

        stored, *counts = self._store.pipeline(fill)
        known = {key.decode(): msgspec.json.decode(s, type=Standing) for key, s in stored.items()}
        is_open = {account.id: count for account, count in zip(bound, counts, strict=True)}
        return {a.id: standing(known.get(a.id), a, is_open.get(a.id, 0), now) for a in accounts}

    def _name(self, *parts: str) -> str:
        return self._store.key("pool", f"{{{self._pool}}}", *parts)

    def _sticky(self, conversation: str) -> str:
        return self._name("sticky", hashed(conversation) if conversation else "-")
