"""Lets requests in: which key, and whether its limits have room, in one look into the store."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Any

from services.core.errors import Unauthorized, Unavailable
from services.core.models import Credential, Secret
from services.keys.admission import Admission
from services.keys.book import KeyBook
from services.keys.ledger import Ledger, Turn
from services.keys.limiter import (
    LEASE_SECONDS,
    Decision,
    KeyLimiter,
    LimiterWithoutStore,
    headers,
    too_many,
)
from services.keys.records import PREFIX, KeyRecord, Vault, digest_of
from services.store import ScriptCall, Store, StoreAway


class Gatekeeper:
    """Admits requests. One per worker. `renew_leases` is to be called several times in
    `lease_seconds`.
    """

    def __init__(
        self,
        store: Store,
        book: KeyBook,
        ledger: Ledger,
        vault: Vault,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.book = book
        self._ledger = ledger
        self._vault = vault
        self._store = store
        self._limiter = KeyLimiter(store, lease_seconds)
        self._alone = LimiterWithoutStore()
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._leases: dict[str, bytes] = {}
        self._open: dict[Admission, None] = {}

    @property
    def under_way(self) -> int:
        """Requests of this process that are admitted and not over."""
        return len(self._open)

    def admit(self, presented: str) -> Admission:
        """A place for a request that presents this credential. A key that is known here is
        counted when the request goes upstream, together with what else the store is asked then;
        any other at once.

        Raises `RateLimited`; `Unauthorized` for a key made here that is none (any more), since
        such a one is for no upstream; `Unavailable` if the store is away and the key unknown.
        """
        digest = digest_of(presented)
        if not presented.startswith(PREFIX):
            return self._let_in(Admission(self, self.book.find_in_settings(digest)))
        known = self.book.recall(digest)
        now = time.monotonic()
        fresh = known is not None and now < known.fresh_until
        if known is not None and fresh and known.record is None:
            raise _no_key()
        if known is None or known.record is None or now > known.known_until:
            return self._let_in(self._count(digest))
        if fresh and not known.record.limits.any:
            return self._let_in(Admission(self, known.record, digest))
        return self._let_in(Admission(self, known.record, digest, self._new_lease(), counted=False))

    def admitting(self, admission: Admission) -> ScriptCall:
        """The question whether a request that is not counted yet has its place."""
        return self._limiter.admitting(admission.digest, admission.lease)

    def refusal(self, admission: Admission) -> str:
        """Where the store notes for a moment that it has none."""
        return self._limiter.refusal(admission.digest, admission.lease)

    def judge(self, admission: Admission, answer: Any) -> None:
        """What the store answered. Raises as `admit`."""
        decision = self._limiter.decision(answer)
        record = self.book.learn(admission.digest, decision.record if decision else None)
        if record is None or decision is None:
            raise _no_key()
        self._apply(admission, record, decision)

    def judge_alone(self, admission: Admission, away: StoreAway) -> None:
        """The store is away: this process decides. Raises as `admit`."""
        record = self.book.last_known(admission.digest, away)
        if record is None:
            raise _no_key()
        self._apply(admission, record, self._alone.admit(record), alone=True)

    def credential(self, record: KeyRecord, provider: str) -> Credential:
        """The key's own credential for a provider. Raises `Unavailable`."""
        try:
            text = self._vault.decrypt(record.provider_keys[provider])
        except ValueError as exc:
            raise Unavailable(
                f"this key's own credential for {provider} cannot be read: set it again"
            ) from exc
        return Credential(Secret(text))

    def settle(self, admission: Admission, tokens: int) -> None:
        """Give a place back and count its tokens: at once, so that the next request finds room
        when this answer ends.
        """
        self._open.pop(admission, None)
        if not admission.lease or not admission.counted:
            return
        self._leases.pop(admission.lease, None)
        record = admission.record
        if record is None or not record.limits.after:
            return
        if admission.alone:
            self._alone.settle(record, tokens)
            return
        try:
            self._limiter.settle(admission.digest, admission.lease, tokens, record.limits)
        except StoreAway:
            return  # the lease lapses by itself

    def account(self, turn: Turn) -> None:
        """Note a turn that is over."""
        self._ledger.add(turn)

    def renew_leases(self) -> None:
        """Keep the places of requests that are under way. Raises `StoreAway`."""
        self._limiter.renew(dict(self._leases))

    def _let_in(self, admission: Admission) -> Admission:
        self._open[admission] = None
        return admission

    def _new_lease(self) -> str:
        return f"{self._process}-{next(self._numbers)}"

    def _count(self, digest: bytes) -> Admission:
        admission = Admission(self, None, digest, self._new_lease(), counted=False)
        try:
            [answer] = self._store.run_scripts([self.admitting(admission)])
        except StoreAway as exc:
            self.judge_alone(admission, exc)
        else:
            self.judge(admission, answer)
        return admission

    def _apply(
        self, admission: Admission, record: KeyRecord, decision: Decision, alone: bool = False
    ) -> None:
        if decision.refused:
            raise too_many(decision, record.limits)
        admission.record, admission.counted, admission.alone = record, True, alone
        if not record.limits.any:
            admission.lease = ""
            return
        admission.headers = headers(record.limits, decision.usage)
        if record.limits.concurrent_streams is not None and not alone:
            self._leases[admission.lease] = admission.digest


def _no_key() -> Unauthorized:
    return Unauthorized("incorrect API key provided")
