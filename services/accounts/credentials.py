"""With whose credential a request goes upstream, and what follows when the upstream refuses it.

What the caller brought first, then the operator's credential for the model, then an account of the
provider's pool: so a caller who brings one spends nothing of the operator's. A provider with
`refreshes = True` takes access tokens that can be had for refresh tokens; for it a caller's
`token,account-id` names a workspace too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import msgspec

from services.accounts.call_limiter import CallLimiter
from services.accounts.pool import Admission, Fault, Lease, Pool, ask_store, split_account
from services.accounts.pools import Pools
from services.accounts.token_endpoint import TokenFailure, refresher_of
from services.accounts.token_store import TokenFiles, TokenStore
from services.accounts.tokens import Renewal, TokenManager
from services.accounts.vault import Vault
from services.config import Settings
from services.core.errors import GatewayError, RateLimited, Unavailable
from services.core.events import Conversation, Events
from services.core.models import Caller, CallLimit, Credential, Secret
from services.core.requests import ChatRequest
from services.providers.base import Background, Provider, Route
from services.server.jobs import Schedule
from services.store import Store, StoreAway
from services.transport import Transport

MOST_ATTEMPTS = 6
"""Accounts that one request may try: a caller does not wait for a hundred refusals."""
RENEW_EVERY = 60.0
TELL_EVERY = 20.0
LOOK_EVERY = 5.0
"""Seconds between two runs of the scheduled jobs."""

T = TypeVar("T")
Batches = Iterator[list[T]]
Note = Callable[[GatewayError | None], None]
"""Is told how an answer ended: with an error, or well."""

Refusal = Literal["expired", "refused", "limited", "unclear"]

_REFUSALS: dict[int, Refusal] = {401: "expired", 402: "refused", 403: "refused", 429: "limited"}
_FAULTS: dict[Refusal, Fault] = {
    "expired": "expired",
    "refused": "banned",
    "limited": "cooling",
    "unclear": "cooling",
}


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
        self.call_limiter = CallLimiter(store)
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
        token_store = TokenStore(store, vault)
        refresher = refresher_of(settings.refresh_ToAccess, transport)
        tokens = TokenManager(
            token_store,
            refresher,
            TokenFiles(settings.server.folder / "data" / "tokens", vault),
            on_exchange=on_exchange,
        )
        pools = Pools.from_settings(settings, store, vault)
        with contextlib.suppress(StoreAway):  # else the job does it
            pools.refresh()
        schedule.every(RENEW_EVERY, "renew-tokens", Renewal(tokens, token_store).run)
        schedule.every(LOOK_EVERY, "load-accounts", pools.refresh, everywhere=True)
        schedule.every(TELL_EVERY, "save-tokens", tokens.save_missed, everywhere=True)
        schedule.every(TELL_EVERY, "extend-leases", pools.extend_open, everywhere=True)
        return cls(pools, tokens, background, store, settings.key_for_gpts_info)

    def stream(
        self,
        provider: Provider,
        request: ChatRequest,
        route: Route,
        caller: Caller,
        admission: Admission | None = None,
        note: Note = lambda error: None,
    ) -> Events:
        """The provider's events, with a renewed token or another account where one is refused
        before the first event. Nothing is asked or sent before the first `next`, which also asks
        for the limits of `admission`; what that raises comes from there. `note` is told how it
        ended.
        """
        attempts = self.attempts(provider, caller, route, _conversation(request), admission)
        return with_failover(lambda own: provider.stream(request, route, own), attempts, note)

    def attempts(
        self,
        provider: Provider,
        caller: Caller,
        route: Route,
        conversation: str = "",
        admission: Admission | None = None,
    ) -> Iterator[Attempt]:
        """The credentials to try, one after the other, each taken when its turn comes.

        Raises `RateLimited` or `Unavailable` when the pool has no account left.
        """
        tokens = self.tokens if provider.refreshes else None
        given = caller.credential or route.credential
        pool = self.pools.of(route.pool or provider.name) if given is None else None
        if pool is None:
            attempt = Attempt(given or Credential(), tokens, caller.key_id)
            if admission is not None:
                self._admit(attempt, provider, admission)
            yield attempt
            return
        pool.limit_calls(lambda a: provider.call_limit(Credential(None, a.workspace, owner=a.id)))
        tried: list[str] = []
        while len(tried) < MOST_ATTEMPTS:
            lease = pool.lease(conversation, tried, admission)
            tried.append(lease.account.id)
            if lease.paid is not None:
                self.call_limiter.note_taken(lease.paid)
            yield PooledAttempt(pool, lease, tokens, self._background, caller.key_id)
        raise pool.exhausted()

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

    def _admit(self, attempt: Attempt, provider: Provider, admission: Admission) -> None:
        """Ask the store, if it has to be asked, and for a place for the first call too."""
        if not admission.calls():
            return
        limit: CallLimit | None = None
        with contextlib.suppress(TokenFailure):  # which is told when it is asked for again
            limit = provider.call_limit(attempt.credential())
        further = [self.call_limiter.taking(limit, admission.refusal)] if limit is not None else []
        if ask_store(self._store, admission, further) == [0] and limit is not None:
            self.call_limiter.note_taken(limit)


class Attempt:
    """One credential to ask with: the caller's own, or the operator's for this model.

    `tokens` exchanges refresh tokens, where the provider takes what comes of them. `holder` is the
    gateway key that asks.
    """

    def __init__(self, given: Credential, tokens: TokenManager | None, holder: str = "") -> None:
        self._given = given
        self._tokens = tokens if given.token is not None else None
        self._token = self._access = given.token
        self._account, self._holder = given.account, holder
        if self._tokens is not None and given.token is not None:
            text, named = split_account(given.token.reveal())
            self._token = Secret(text)
            self._account = given.account or named

    def credential(self) -> Credential:
        """What to ask with. Raises `TokenFailure`."""
        if self._tokens is not None and self._token is not None:
            self._access = self._tokens.access(self._token)
        return self._with_access()

    def renewed(self) -> Credential | None:
        """Another one for the same account, after the upstream refused the first; or None."""
        if self._tokens is None or self._token is None:
            return None
        refused = self._access
        try:
            self._access = self._tokens.access(self._token, not_this=refused)
        except TokenFailure:
            return None
        return self._with_access() if self._access != refused else None

    def watch(self, batches: Batches[T]) -> Batches[T]:
        """The batches as they are, looked at in passing; closing it closes them."""
        return batches

    def failed(self, fault: GatewayError | TokenFailure) -> GatewayError | None:
        """Note a fault of the account. What to raise, or None where the next one may be asked."""
        if isinstance(fault, TokenFailure):
            return fault.as_error(self._given.from_caller)
        return self.told(fault)

    def told(self, error: GatewayError) -> GatewayError:
        """What to raise for `error`, after which nobody else is asked. The caller's own credential
        is the caller's business.
        """
        own = self._given.from_caller or self._given.token is None
        return error if own else neutral(error)

    def succeeded(self) -> None:
        """The answer is complete."""

    def close(self) -> None:
        """It is over, however it went."""

    def _with_access(self) -> Credential:
        return Credential(
            self._access,
            self._account,
            self._given.from_caller,
            self._given.owner,
            self._holder,
        )


class PooledAttempt(Attempt):
    """With an account of the operator's. What is noted after the answer waits for nobody."""

    def __init__(
        self,
        pool: Pool,
        lease: Lease,
        tokens: TokenManager | None,
        background: Background,
        holder: str = "",
    ) -> None:
        account = lease.account
        super().__init__(
            Credential(account.token, account.workspace, owner=account.id), tokens, holder
        )
        self._pool = pool
        self._lease = lease
        self._background = background

    def watch(self, batches: Batches[T]) -> Batches[T]:
        """A conversation that begins in this account goes on in it."""
        known = ""
        try:
            for batch in batches:
                for event in batch:
                    if isinstance(event, Conversation) and event.id != known:
                        known = event.id
                        self._background.submit("pool-stick", self._stick(known))
                yield batch
        finally:
            _close(batches)

    def failed(self, fault: GatewayError | TokenFailure) -> GatewayError | None:
        if not isinstance(fault, TokenFailure):
            self._note(fault)
        elif fault.is_the_tokens:
            self._pool.strike(self._lease, "expired")
        else:
            self._pool.strike(self._lease, "cooling", fault.retry_after)
        return None

    def told(self, error: GatewayError) -> GatewayError:
        self._note(error)
        return neutral(error)

    def succeeded(self) -> None:
        if self._lease.strikes:
            self._background.submit("pool-success", lambda: self._pool.succeeded(self._lease))

    def close(self) -> None:
        if self._lease.account.concurrent:
            self._background.submit("pool-release", lambda: self._pool.release(self._lease))

    def _note(self, error: GatewayError) -> None:
        refusal = refusal_of(error)
        if refusal is not None:
            self._pool.strike(self._lease, _FAULTS[refusal], error.retry_after)

    def _stick(self, conversation: str) -> Callable[[], None]:
        return lambda: self._pool.stick(self._lease, conversation)


def with_failover(
    open_stream: Callable[[Credential], Batches[T]],
    attempts: Iterable[Attempt],
    note: Note = lambda error: None,
) -> Batches[T]:
    """The answer of the first attempt that gets one. `open_stream` asks with a credential.

    Before the first event an attempt that the upstream refuses for its account's sake is made
    once more with a renewed token, then followed by the next; never once an answer has begun.
    Raises as the attempts say; what `attempts` raises when there is none left is what the caller
    is told.
    """
    fault: GatewayError | TokenFailure
    try:
        for attempt in attempts:
            try:
                credential: Credential | None = attempt.credential()
                may_renew = True
                while credential is not None:
                    begun = False
                    batches: Batches[T] | None = None
                    try:
                        batches = attempt.watch(open_stream(credential))
                        for batch in batches:
                            if batch:
                                begun = True
                            yield batch
                        attempt.succeeded()
                        note(None)
                        return
                    except GatewayError as error:
                        refusal = None if begun else refusal_of(error)
                        if refusal is None:
                            told = attempt.told(error)
                            if told is error:
                                raise
                            raise told from error
                        fault = error
                    finally:
                        _close(batches)
                    renew = may_renew and refusal in ("expired", "unclear")
                    credential = attempt.renewed() if renew else None
                    may_renew = False
                told_of = attempt.failed(fault)
            except TokenFailure as failure:
                fault = failure
                told_of = attempt.failed(failure)
            finally:
                attempt.close()
            if told_of is fault:
                raise told_of
            if told_of is not None:
                raise told_of from fault
    except GatewayError as error:
        note(error)
        raise


def refusal_of(error: GatewayError) -> Refusal | None:
    """What an upstream's error says about the account; None if it is about something else.

    An upstream's 401 comes with its status where the provider keeps it, else as a plain
    `Unavailable`.
    """
    status = getattr(error, "upstream_status", None)
    if status is not None:
        return _REFUSALS.get(status)
    if isinstance(error, RateLimited):
        return "limited"
    return "unclear" if isinstance(error, Unavailable) else None


def neutral(error: GatewayError) -> GatewayError:
    """The same, unless it would look like the caller's fault: relays drop a channel on 401."""
    if error.status not in (401, 402, 403):
        return error
    return Unavailable("this model's upstream account cannot serve requests now")


def _close(batches: object) -> None:
    closing = getattr(batches, "close", None)
    if closing is not None:
        closing()


def _conversation(request: ChatRequest) -> str:
    """The upstream conversation that the request continues, if it names one."""
    raw = request.source.get("conversation_id")
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return ""
