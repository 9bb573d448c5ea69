"""The one place that decides with whose credential a request goes upstream.

A model's own credential first, then what the caller brought, then an account of the provider's
pool. A provider with `refreshes = True` takes access tokens that can be had for refresh tokens;
for it a caller's `token,account-id` names a workspace too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from services.accounts.attempts import GivenAttempt, PooledAttempt
from services.accounts.entry import INSIDE, Entry, enter
from services.accounts.failover import Attempt, with_failover
from services.accounts.failures import TokenFailure
from services.accounts.pool import Lease, Pool
from services.accounts.pools import Pools
from services.accounts.refreshers import refresher_of
from services.accounts.renewal import Renewal
from services.accounts.shelf import TokenShelf
from services.accounts.tokens import TokenManager
from services.accounts.vault import Vault
from services.config import Settings
from services.core.events import Events
from services.core.models import Caller, CallLimit, Credential, Secret
from services.core.requests import ChatRequest
from services.providers.base import Background, Provider, Route
from services.rate_gate import StoreRateGate
from services.schedule import Schedule
from services.store import Store, StoreAway
from services.transport import Transport

MOST_ATTEMPTS = 6
"""Accounts that one request may try: a caller does not wait for a hundred refusals."""
RENEW_EVERY = 60.0
TELL_EVERY = 20.0
LOOK_EVERY = 5.0
"""Seconds between two runs of the scheduled jobs."""


class Credentials:
    """Credentials for requests. One per worker."""

    def __init__(
        self,
        pools: Pools,
        tokens: TokenManager,
        background: Background,
        store: Store,
        gpts_key: Secret | None = None,
    ) -> None:
        self.pools = pools
        self.tokens = tokens
        self.gate = StoreRateGate(store)
        self._store = store
        self._background = background
        self._gpts_key = gpts_key

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        store: Store,
        vault: Vault,
        transport: Transport,
        background: Background,
        schedule: Schedule,
        on_exchange: Callable[[bool], None] = lambda ok: None,
    ) -> Credentials:
        """What the settings describe, its jobs added to `schedule`. Raises `AccountsError`.

        `on_exchange` is told of each exchange of a refresh token whether it went well.
        """
        shelf = TokenShelf(store, vault)
        refresher = refresher_of(settings.refresh_ToAccess, transport)
        tokens = TokenManager(shelf, refresher, on_exchange=on_exchange)
        pools = Pools.from_settings(settings, store, vault)
        with contextlib.suppress(StoreAway):  # else the job does it
            pools.refresh()
        schedule.every(RENEW_EVERY, "renew-tokens", Renewal(tokens, shelf).run)
        schedule.every(LOOK_EVERY, "load-accounts", pools.refresh, everywhere=True)
        schedule.every(TELL_EVERY, "save-tokens", tokens.save_missed, everywhere=True)
        schedule.every(TELL_EVERY, "extend-leases", pools.extend_open, everywhere=True)
        return cls(pools, tokens, background, store, settings.key_for_gpts_info)

    def carry_on(self, before: Credentials) -> None:
        """Take over what `before`, made for other settings, knows by itself: while the store is
        away a rotated token, a fault and an added account are in memory only.
        """
        self.tokens.carry_on(before.tokens)
        self.pools.carry_on(before.pools)

    def stream(
        self,
        provider: Provider,
        request: ChatRequest,
        route: Route,
        caller: Caller,
        entry: Entry = INSIDE,
    ) -> Events:
        """The provider's events, with a renewed token or another account where one is refused
        before the first event. Nothing is asked or sent before the first `next`, which lets the
        request in by `entry`; what that raises comes from there.
        """
        attempts = self.for_request(provider, caller, route, _conversation(request), entry)
        return with_failover(
            lambda credential: provider.stream(request, route, credential), attempts
        )

    def for_request(
        self,
        provider: Provider,
        caller: Caller,
        route: Route,
        conversation: str = "",
        entry: Entry = INSIDE,
    ) -> Iterator[Attempt]:
        """The credentials to try, one after the other, each taken when its turn comes.

        Raises `RateLimited` or `Unavailable` when the pool has no account left.
        """
        tokens = self.tokens if provider.refreshes else None
        given = route.credential or caller.credential
        pool = self.pools.of(route.pool or provider.name) if given is None else None
        if pool is None:
            credential = msgspec.structs.replace(given or Credential(), holder=caller.key_id)
            return self._given(GivenAttempt(credential, tokens), provider, entry)
        pool.limit_calls(lambda a: provider.call_limit(Credential(None, a.workspace, owner=a.id)))
        leases = self._leases(pool, conversation, entry)
        background, holder = self._background, caller.key_id
        return (PooledAttempt(pool, lease, tokens, background, holder) for lease in leases)

    def gpts_token(self) -> Secret | None:
        """The access token for looking up GPTs, from `key_for_gpts_info` in either form; None if
        there is none now.
        """
        if self._gpts_key is None:
            return None
        try:
            return self.tokens.access(self._gpts_key)
        except TokenFailure:
            return None

    def _given(self, attempt: GivenAttempt, provider: Provider, entry: Entry) -> Iterator[Attempt]:
        """The one attempt; the first call's place is taken along if the store is asked anyway."""
        if entry.calls():
            limit = _limit_of(attempt, provider)
            further = [self.gate.call(limit, entry.refusal)] if limit is not None else []
            answers = enter(self._store, entry, further)
            if limit is not None and answers == [0]:
                self.gate.pay(limit)
        yield attempt

    def _leases(self, pool: Pool, conversation: str, entry: Entry) -> Iterator[Lease]:
        tried: list[str] = []
        while len(tried) < MOST_ATTEMPTS:
            lease = pool.lease(conversation, tried, entry)
            tried.append(lease.account.id)
            if lease.paid is not None:
                self.gate.pay(lease.paid)
            yield lease
        raise pool.exhausted()


def _limit_of(attempt: GivenAttempt, provider: Provider) -> CallLimit | None:
    """The limit of the account's calls, if there is one and its token is to be had."""
    try:
        return provider.call_limit(attempt.credential())
    except TokenFailure:
        return None  # which is told when it is asked for again


def _conversation(request: ChatRequest) -> str:
    """The upstream conversation that the request continues, if it names one."""
    raw = request.source.get("conversation_id")
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return ""
