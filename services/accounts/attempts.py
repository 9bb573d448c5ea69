"""The two kinds of attempt: with an account of a pool, or with a credential that is given."""

from __future__ import annotations

import msgspec

from services.accounts.failover import Batches, T, fault_of, neutral
from services.accounts.failures import TokenFailure
from services.accounts.pool import Lease, Pool
from services.accounts.records import split_account
from services.accounts.standings import Fault
from services.accounts.tokens import TokenManager
from services.core.errors import GatewayError
from services.core.events import Conversation
from services.core.models import Credential, Secret
from services.providers.base import Background


class _Tokens:
    """The access token in use, from a refresh token if the provider takes such (`tokens` given)."""

    def __init__(self, token: Secret, tokens: TokenManager | None) -> None:
        self._token = token
        self._tokens = tokens
        self._access = token

    def access(self) -> Secret:
        """Raises `TokenFailure`."""
        if self._tokens is not None:
            self._access = self._tokens.access(self._token)
        return self._access

    def renewed(self) -> Secret | None:
        """Another, where one can be had."""
        if self._tokens is None:
            return None
        try:
            renewed = self._tokens.access(self._token, not_this=self._access)
        except TokenFailure:
            return None
        return renewed if renewed != self._access else None


class GivenAttempt:
    """With the caller's own credential, or the operator's for this model. There is no other."""

    def __init__(self, credential: Credential, tokens: TokenManager | None) -> None:
        self._given = credential
        self._tokens: _Tokens | None = None
        if credential.token is not None:
            token, account = credential.token, credential.account
            if tokens is not None:
                text, named = split_account(token.reveal())
                token, account = Secret(text), account or named
            self._given = msgspec.structs.replace(credential, token=token, account=account)
            self._tokens = _Tokens(token, tokens)

    def credential(self) -> Credential:
        if self._tokens is None:
            return self._given
        return self._with(self._tokens.access())

    def renewed(self) -> Credential | None:
        renewed = self._tokens.renewed() if self._tokens is not None else None
        return self._with(renewed) if renewed is not None else None

    def watch(self, batches: Batches[T]) -> Batches[T]:
        return batches

    def failed(self, fault: GatewayError | TokenFailure) -> GatewayError:
        if isinstance(fault, TokenFailure):
            return fault.as_error(self._given.from_caller)
        return self.told(fault)

    def told(self, error: GatewayError) -> GatewayError:
        """The caller's own credential is the caller's business."""
        return error if self._given.from_caller or self._given.token is None else neutral(error)

    def succeeded(self) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to give back."""

    def _with(self, access: Secret) -> Credential:
        return msgspec.structs.replace(self._given, token=access)


class PooledAttempt:
    """With an account of the operator's. What is noted after the answer waits for nobody."""

    def __init__(
        self,
        pool: Pool,
        lease: Lease,
        tokens: TokenManager | None,
        background: Background,
        holder: str = "",
    ) -> None:
        self._pool = pool
        self._lease = lease
        self._holder = holder
        self._tokens = _Tokens(lease.account.token, tokens)
        self._background = background

    def credential(self) -> Credential:
        return self._with(self._tokens.access())

    def renewed(self) -> Credential | None:
        renewed = self._tokens.renewed()
        return self._with(renewed) if renewed is not None else None

    def watch(self, batches: Batches[T]) -> Batches[T]:
        """A conversation that begins in this account goes on in it."""
        known = ""
        try:
            for batch in batches:
                for event in batch:
                    if isinstance(event, Conversation) and event.id != known:
                        known = event.id
                        self._later("pool-stick", known)
                yield batch
        finally:
            closing = getattr(batches, "close", None)
            if closing is not None:
                closing()

    def failed(self, fault: GatewayError | TokenFailure) -> GatewayError | None:
        if isinstance(fault, TokenFailure):
            if fault.is_the_tokens:
                self._pool.strike(self._lease, "expired")
            else:
                self._pool.strike(self._lease, "cooling", fault.retry_after)
        else:
            self._note(fault)
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

    def _with(self, access: Secret) -> Credential:
        account = self._lease.account
        return Credential(access, account.workspace, owner=account.id, holder=self._holder)

    def _note(self, error: GatewayError) -> None:
        kinds: dict[str, Fault] = {
            "expired": "expired",
            "refused": "banned",
            "limited": "cooling",
            "unclear": "cooling",
        }
        kind = fault_of(error)
        if kind is not None:
            self._pool.strike(self._lease, kinds[kind], error.retry_after)

    def _later(self, name: str, conversation: str) -> None:
        self._background.submit(name, lambda: self._pool.stick(self._lease, conversation))
