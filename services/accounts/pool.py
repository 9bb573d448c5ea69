"""Pools of accounts: which one serves a request, and what its faults do to it.

The least recently used account comes next, one of twice the weight twice as often; a conversation
stays with its account. All of this is decided in the store (lease.lua, strike.lua), for all
workers at once. While the store is away a simpler and stricter rule holds: see `_WithoutStore`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from redis.client import Pipeline

from services.accounts.call_limiter import calls_key
from services.accounts.vault import hashed
from services.config.settings import AccountSetting
from services.core.errors import GatewayError, RateLimited, Unavailable
from services.core.models import CallLimit, Secret
from services.store import ScriptCall, Store, StoreAway, StoreScript

log = logging.getLogger(__name__)

Fault = Literal["cooling", "expired", "banned"]
"""A limit or something unclear; a token that the upstream does not take; an account it refuses."""
State = Literal["ready", "busy", "cooling", "expired", "banned", "disabled"]

LADDER = (120.0, 600.0, 3600.0, 86400.0)
"""Seconds of rest after the first fault, the second in a row, and so on, where the upstream names
no time of its own. No fault is for ever: an operator disables.
"""
FIRST_RUNG: dict[Fault, int] = {"cooling": 1, "expired": 2, "banned": 2}
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 86400.0
"""Bounds of the seconds that an upstream may name."""
LEASE_SECONDS = 90.0
"""How long an open answer counts if its worker dies; extended while that lives."""
STICKY_SECONDS = 7 * 86400

_STRIKE = StoreScript.beside(__file__, "strike.lua")
_LEASE = StoreScript.beside(__file__, "lease.lua")
_UNLIMITED = CallLimit("-", "-", 1)
_LIMITED: frozenset[State] = frozenset({"cooling", "busy"})
_REASONS: dict[State, str] = {
    "ready": "",
    "busy": "all the answers it may give at once are under way",
    "cooling": "the upstream limits it, or could not serve it",
    "expired": "the upstream does not take its token any more",
    "banned": "the upstream refuses it",
    "disabled": "disabled by hand",
}


class Account(msgspec.Struct, frozen=True):
    """An account of a pool. `id` stays the same as long as its token does, and shows nothing.

    `workspace` is the upstream's name of the part of the account that pays. `source` is where the
    account comes from: the settings, or the store, where the admin API puts them.
    """

    id: str
    name: str
    token: Secret
    workspace: str | None
    weight: int
    concurrent: int
    source: Literal["settings", "store"] = "settings"


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


class AccountState(msgspec.Struct, frozen=True):
    """What the store keeps of an account that is not simply ready; times are epoch seconds.

    `strikes` are faults in a row, `since` is when the last was noted.
    """

    state: State
    free_at: float = 0.0
    strikes: int = 0
    since: float = 0.0


class Lease(msgspec.Struct, frozen=True):
    """An account for one request, from `began` on. `strikes` are the faults it had in a row.

    `paid`: the limit under which the place of its first call is taken.
    """

    id: str
    account: Account
    began: float
    strikes: int
    paid: CallLimit | None = None


class Admission(Protocol):
    """A request whose key's limits may still have to be asked for, along with an account."""

    @property
    def refusal(self) -> str:
        """A key that is in the store, for a moment, if `calls` refuse the request."""
        ...

    def calls(self) -> Sequence[ScriptCall]:
        """What to ask the store; nothing for a request that is admitted already."""
        ...

    def answered(self, answers: Sequence[Any]) -> None:
        """Raises `GatewayError` if the request is refused."""
        ...

    def unanswered(self, away: StoreAway) -> None:
        """The store is away. Raises as `answered`."""
        ...


def ask_store(
    store: Store, admission: Admission | None, further: Sequence[ScriptCall] = ()
) -> list[Any] | None:
    """The answers to `further`, or None while the store is away; asked together with what
    `admission` needs, in one round trip.

    Raises `GatewayError` if the request is refused. What stands in `further` looks at
    `admission.refusal`, so that a refused request takes nothing.
    """
    asked = admission.calls() if admission is not None else ()
    try:
        answers = store.run_scripts([*asked, *further])
    except StoreAway as away:
        if admission is not None:
            admission.unanswered(away)
        return None
    if admission is not None:
        admission.answered(answers[: len(asked)])
    return answers[len(asked) :]


def account_of(pool: str, setting: AccountSetting, name: str) -> Account:
    """The account of `setting`, under `name`, in a pool."""
    token, workspace = split_account(setting.token.reveal())
    return Account(
        hashed("account", pool, token, setting.account or workspace or "")[:16],
        name,
        Secret(token),
        setting.account or workspace,
        setting.weight,
        setting.concurrent,
    )


def split_account(text: str) -> tuple[str, str | None]:
    """`token,account-id` as its two parts; the second names a workspace of the upstream."""
    token, _, account = text.partition(",")
    return token.strip(), account.strip() or None


class Pool:
    """The accounts of one provider. Never raises `StoreAway`. `clock` gives epoch seconds."""

    def __init__(
        self,
        provider: str,
        accounts: Sequence[Account],
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._store = store
        self._clock = clock
        self._alone = _WithoutStore()
        self._open: dict[str, str] = {}
        self.use(accounts)

    def use(self, accounts: Sequence[Account]) -> None:
        """Choose among these from now on; requests under way keep theirs."""
        self._accounts = {account.id: account for account in accounts}
        self._limits: dict[str, CallLimit] | None = None

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
        self,
        conversation: str = "",
        without: Collection[str] = (),
        admission: Admission | None = None,
    ) -> Lease:
        """The account to use, none of `without`, the one that has `conversation` if it can be.

        Raises `RateLimited` or `Unavailable`, with the seconds until one is free again, and what
        the admission raises.
        """
        offered = [a for a in self._accounts.values() if a.id not in without]
        if not offered:
            raise self.exhausted()
        lease, now, limits = secrets.token_hex(8), self._clock(), self._limits or {}
        refusal = admission.refusal if admission is not None else ""
        call = self._choosing(offered, lease, now, conversation, limits, refusal)
        answers = ask_store(self._store, admission, [call])
        if answers is None:
            chosen, strikes, paid = self._alone.choose(offered, now), 0, 0
        else:
            chosen, strikes, paid = answers[0][0].decode(), int(answers[0][1]), answers[0][2]
        if not chosen:
            raise self.exhausted()
        account = self._accounts[chosen]
        if account.concurrent:
            self._open[lease] = account.id
            self._alone.open[account.id] += 1
        return Lease(lease, account, now, strikes, limits[account.id] if paid else None)

    def strike(self, lease: Lease, fault: Fault, wait: float | None = None) -> None:
        """Let the account rest; `wait` is the upstream's own word for how many seconds."""
        name = lease.account.id
        rest = None if wait is None else min(max(wait, SHORTEST_WAIT), LONGEST_WAIT)
        log.warning("account rests provider=%s account=%s fault=%s", self._provider, name, fault)
        now = self._clock()
        self._alone.strike(name, fault, now + (LADDER[1] if rest is None else rest))
        told = "" if rest is None else rest
        arguments = (name, fault, now, lease.began, told, FIRST_RUNG[fault], *LADDER)
        self._told(lambda: self._store.run_script(_STRIKE, [self._name("states")], arguments))

    def succeeded(self, lease: Lease) -> None:
        """The account has answered: nothing is held against it any more."""
        if lease.strikes:
            self.reset(lease.account.id)

    def stick(self, lease: Lease, conversation: str) -> None:
        """This conversation lives in the lease's account."""
        name, account = self._sticky(conversation), lease.account.id
        self._told(lambda: self._store.run(lambda c: c.set(name, account, ex=STICKY_SECONDS)))

    def release(self, lease: Lease) -> None:
        """The request is over."""
        account = self._open.pop(lease.id, None)
        if account is not None:
            self._alone.open[account] -= 1
            name = self._name("open", account)
            self._told(lambda: self._store.run(lambda c: c.zrem(name, lease.id)))

    def extend_open(self) -> None:
        """Tell the store which requests are still under way. Raises `StoreAway`."""
        ends = self._clock() + LEASE_SECONDS
        is_open = tuple(self._open.items())

        def fill(pipe: Pipeline) -> None:
            for lease, account in is_open:
                pipe.zadd(self._name("open", account), {lease: ends}, xx=True)
                pipe.expire(self._name("open", account), int(LEASE_SECONDS))

        if is_open:
            self._store.pipeline(fill)

    def reset(self, account: str) -> bool:
        """Make an account ready again, enabled too; whether the other workers heard of it."""
        self._alone.states.pop(account, None)
        return self._told(lambda: self._store.run(lambda c: c.hdel(self._name("states"), account)))

    def disable(self, account: str) -> bool:
        """Take an account out until it is reset; whether the other workers heard of it."""
        state = AccountState("disabled", since=self._clock())
        self._alone.states[account] = state
        text = msgspec.json.encode(state).decode()
        return self._told(
            lambda: self._store.run(lambda c: c.hset(self._name("states"), account, text))
        )

    def view(self) -> list[AccountView]:
        """All accounts as they stand; while the store is away, as far as this process knows."""
        states = self._states()
        return [
            AccountView(
                account.id,
                self._provider,
                account.name,
                states[account.id].state,
                _REASONS[states[account.id].state],
                states[account.id].free_at or None,
                states[account.id].strikes,
                account.weight,
                account.source,
            )
            for account in self._accounts.values()
        ]

    def exhausted(self) -> GatewayError:
        """What a caller is told when no account is left: never 401, and no word of any account."""
        states, now = self._states().values(), self._clock()
        times = [s.free_at - now for s in states if s.state not in ("disabled", "ready")]
        after = max(min(times), SHORTEST_WAIT) if times else None
        if any(state.state in _LIMITED for state in states):
            words = "this model is in too much demand, retry later"
            return RateLimited(words, retry_after=after)
        return Unavailable("this model cannot be served now", retry_after=after)

    def _choosing(
        self,
        offered: Sequence[Account],
        lease: str,
        now: float,
        conversation: str,
        limits: Mapping[str, CallLimit],
        refusal: str,
    ) -> ScriptCall:
        """lease.lua for these accounts; all keys of a pool lie in one slot of a cluster."""
        names = [self._name("states"), self._name("passes"), self._sticky(conversation)]
        names.append(refusal or self._name("refused", "-"))
        arguments: list[str | float] = [now, lease, LEASE_SECONDS]
        arguments.append(STICKY_SECONDS if conversation else 0)
        arguments.append(next((limit.per_minute for limit in limits.values()), 0))
        for account in offered:
            calls = calls_key(self._store, limits.get(account.id, _UNLIMITED))
            names += [self._name("open", account.id), calls]
            arguments += [account.id, account.weight, account.concurrent]
        return ScriptCall(_LEASE, names, arguments)

    def _states(self) -> dict[str, AccountState]:
        """How each account stands now."""
        accounts, now = tuple(self._accounts.values()), self._clock()
        bound = [account for account in accounts if account.concurrent]

        def fill(pipe: Pipeline) -> None:
            pipe.hgetall(self._name("states"))
            for account in bound:
                pipe.zcount(self._name("open", account.id), now, "+inf")

        try:
            stored, *counts = self._store.pipeline(fill)
        except StoreAway:
            return self._alone.now(accounts, now)
        known = {k.decode(): msgspec.json.decode(s, type=AccountState) for k, s in stored.items()}
        is_open = {account.id: count for account, count in zip(bound, counts, strict=True)}
        return {
            a.id: _state(known.get(a.id), a.concurrent, is_open.get(a.id, 0), now) for a in accounts
        }

    def _name(self, *parts: str) -> str:
        return self._store.key("pool", f"{{{self._provider}}}", *parts)

    def _sticky(self, conversation: str) -> str:
        return self._name("sticky", hashed(conversation) if conversation else "-")

    def _told(self, tell: Callable[[], object]) -> bool:
        """Whether the store could be told."""
        try:
            tell()
        except StoreAway:
            return False
        return True


class _WithoutStore:
    """The rule while the store is away: the account this process used least recently, of those it
    knows no fault of; of one whose answers are bounded, one answer at a time. A fault that the
    upstream names no time for rests an account for ten minutes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}
        self.open: Counter[str] = Counter()
        self.states: dict[str, AccountState] = {}

    def choose(self, accounts: Sequence[Account], now: float) -> str:
        """The id of an account, or nothing where none is free."""
        with self._lock:
            states = self.now(accounts, now)
            free = [a.id for a in accounts if states[a.id].state == "ready"]
            if not free:
                return ""
            chosen = min(free, key=lambda name: self._used.get(name, 0))
            self._used[chosen] = max(self._used.values(), default=0) + 1
            return chosen

    def strike(self, account: str, fault: Fault, until: float) -> None:
        known = self.states.get(account)
        if known is None or known.state != "disabled":
            self.states[account] = AccountState(fault, until, 1)

    def now(self, accounts: Sequence[Account], now: float) -> dict[str, AccountState]:
        return {
            a.id: _state(self.states.get(a.id), int(bool(a.concurrent)), self.open[a.id], now)
            for a in accounts
        }


def _state(known: AccountState | None, bound: int, is_open: int, now: float) -> AccountState:
    """How an account stands, from what is kept of it and how many of its answers are open."""
    if known is not None and (known.state == "disabled" or known.free_at > now):
        return known
    strikes = known.strikes if known is not None else 0
    if bound and is_open >= bound:
        return AccountState("busy", now + 1, strikes)
    return AccountState("ready", 0.0, strikes)
