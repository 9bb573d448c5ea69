"""Admission control: which key a request comes with, whether its limits have room, and what is told
when the request is over.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from services.core.errors import GatewayError, PermissionDenied, Unauthorized, Unavailable
from services.core.events import Events, Image, Usage
from services.core.models import Credential, Secret
from services.keys.limiter import (
    LEASE_SECONDS,
    Decision,
    KeyLimiter,
    LimiterWithoutStore,
    headers,
    too_many,
)
from services.keys.lookup import KeyLookup
from services.keys.records import PREFIX, KeyRecord, Vault, digest_of
from services.keys.usage import NOBODY, Outcome, RequestUsage, UsageRecorder
from services.store import ScriptCall, Store, StoreAway

R = TypeVar("R")

_CLIENT_GONE = 499


class Served(msgspec.Struct, frozen=True, gc=False):
    """Who answers a request: a provider, with a model that may stand in for the one asked for."""

    provider: str
    model: str
    stands_in: bool = False


class Admission:
    """Holds the request's place under the limits of its key until `done`.

    `record` is None for a caller who holds none of our keys. `headers` are for the answer. `served`
    is who was asked last, and `settled` that nobody else will answer. One whose key is not
    `counted` yet asks the store on the way upstream, together with what else is asked then.
    """

    __slots__ = (
        "_control", "_first_event", "_images", "_over", "_started", "alone", "counted", "digest",
        "headers", "lease", "model", "record", "served", "settled", "usage",
    )  # fmt: skip

    def __init__(
        self,
        control: AdmissionControl,
        record: KeyRecord | None = None,
        digest: bytes = b"",
        lease: str = "",
        *,
        counted: bool = True,
    ) -> None:
        self.record = record
        self.digest = digest
        self.lease = lease
        self.counted = counted
        self.alone = False
        self.headers: Mapping[str, str] = {}
        self.model = ""
        self.served: Served | None = None
        self.settled = False
        self.usage: Usage | None = None
        self._control = control
        self._started = time.monotonic()
        self._first_event: float | None = None
        self._images = 0
        self._over = False

    @property
    def profile(self) -> str:
        """The output profile of the key, empty for the service's own."""
        return self.record.profile if self.record is not None else ""

    @property
    def always_usage(self) -> bool:
        """Whether a stream is to end with token counts though nobody asked."""
        return self.record is not None and self.record.always_usage

    def allows(self, model: str) -> bool:
        """Whether the key may use `model`."""
        return self.record is None or self.record.allows(model)

    def permit(self, model: str) -> None:
        """Note the model asked for. Raises `PermissionDenied` if the key may not use it."""
        if not self.allows(model):
            raise PermissionDenied(
                "this key may not use this model", param="model", code="model_not_allowed"
            )
        self.model = model

    @property
    def refusal(self) -> str:
        """The key that tells later scripts of the same round trip that this request is refused."""
        return "" if self.counted else self._control.limiter.refusal(self.digest, self.lease)

    def calls(self) -> Sequence[ScriptCall]:
        """What to ask the store before the request goes upstream, if anything."""
        if self.counted:
            return ()
        return (self._control.limiter.admitting(self.digest, self.lease),)

    def answered(self, answers: Sequence[Any]) -> None:
        """Raises as `AdmissionControl.admit`, and `PermissionDenied` if the key has lost the
        model. A request that is refused counts under no limit and in no usage.
        """
        if not self.counted:
            self._enter(lambda: self._control.decide(self, answers[0]))

    def unanswered(self, away: StoreAway) -> None:
        """The store is away. Raises as `answered`."""
        if not self.counted:
            self._enter(lambda: self._control.decide_alone(self, away))

    def _enter(self, decide: Callable[[], None]) -> None:
        try:
            decide()
            self.permit(self.model)
        except GatewayError:
            self.model = ""
            raise

    def choose(self, served: Served, *, settled: bool = False) -> Credential | None:
        """Note who is asked now; the key's own credential for that provider, if any.

        Raises `Unavailable` if it cannot be decrypted.
        """
        self.served, self.settled = served, settled
        provider = served.provider
        if self.record is None or provider not in self.record.provider_keys:
            return None
        return self._control.credential(self.record, provider)

    def begun(self) -> None:
        """The first event of the answer has come."""
        self._first_event = time.monotonic() - self._started
        self.settled = True

    def during(self, work: Generator[None, None, R]) -> Generator[None, None, R]:
        """Do `work`; its end is the request's."""
        outcome: Outcome = "error"
        try:
            result = yield from work
            outcome = "ok"
            return result
        except GeneratorExit:
            outcome = "cancelled"
            raise
        finally:
            self.done(outcome, self.usage)

    def tap(self, events: Events) -> Events:
        """Pass the events of one turn of several on, noting what they use."""
        usage = Usage(0, 0, 0)
        try:
            for batch in events:
                for event in batch:
                    if isinstance(event, Image):
                        self._images += 1
                    elif isinstance(event, Usage):
                        usage = event
                yield batch
        finally:
            _close(events)
            self.usage = _sum(self.usage, usage)

    def done(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """Give the place back and account for the request. Only the first call counts."""
        if self._over:
            return
        self._over = self.settled = True
        self.usage = usage
        prompt = usage.prompt_tokens if usage is not None else 0
        completion = usage.completion_tokens if usage is not None else 0
        self._control.release(self, prompt + completion)
        if not self.model:  # it never came to a question
            return
        self._control.recorder.add(
            RequestUsage(
                self.record.id if self.record is not None else NOBODY,
                self.model,
                self.served.provider if self.served is not None else "",
                outcome,
                prompt,
                completion,
                self._images,
                self._first_event,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A request that fails before its answer is made is over."""
        if error is not None:
            gone = isinstance(error, GatewayError) and error.status == _CLIENT_GONE
            self.done("cancelled" if gone else "error", self.usage)


class AdmissionControl:
    """Admits requests. One per worker. `renew_leases` is to be called several times in
    `lease_seconds`.
    """

    def __init__(
        self,
        store: Store,
        keys: KeyLookup,
        recorder: UsageRecorder,
        vault: Vault,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.keys = keys
        self.recorder = recorder
        self.limiter = KeyLimiter(store, lease_seconds)
        self._vault = vault
        self._store = store
        self._alone = LimiterWithoutStore()
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._leases: dict[str, bytes] = {}
        self._open: set[Admission] = set()

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
            return self._let_in(Admission(self, self.keys.find_in_settings(digest)))
        known = self.keys.recall(digest)
        now = time.monotonic()
        fresh = known is not None and now < known.fresh_until
        if known is not None and fresh and known.record is None:
            raise _no_key()
        if known is None or known.record is None or now > known.known_until:
            return self._let_in(self._count(digest))
        if fresh and not known.record.limits.any:
            return self._let_in(Admission(self, known.record, digest))
        return self._let_in(Admission(self, known.record, digest, self._new_lease(), counted=False))

    def decide(self, admission: Admission, answer: Any) -> None:
        """Admit or refuse, by what the store answered. Raises as `admit`."""
        decision = self.limiter.decision(answer)
        record = self.keys.learn(admission.digest, decision.record if decision else None)
        if record is None or decision is None:
            raise _no_key()
        self._apply(admission, record, decision)

    def decide_alone(self, admission: Admission, away: StoreAway) -> None:
        """The store is away: this process decides. Raises as `admit`."""
        record = self.keys.last_known(admission.digest, away)
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

    def release(self, admission: Admission, tokens: int) -> None:
        """Give a place back and count its tokens: at once, so that the next request finds room
        when this answer ends.
        """
        self._open.discard(admission)
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
            self.limiter.settle(admission.digest, admission.lease, tokens, record.limits)
        except StoreAway:
            return  # the lease lapses by itself

    def renew_leases(self) -> None:
        """Keep the places of requests that are under way. Raises `StoreAway`."""
        self.limiter.renew(dict(self._leases))

    def _let_in(self, admission: Admission) -> Admission:
        self._open.add(admission)
        return admission

    def _new_lease(self) -> str:
        return f"{self._process}-{next(self._numbers)}"

    def _count(self, digest: bytes) -> Admission:
        admission = Admission(self, None, digest, self._new_lease(), counted=False)
        try:
            [answer] = self._store.run_scripts([self.limiter.admitting(digest, admission.lease)])
        except StoreAway as exc:
            self.decide_alone(admission, exc)
        else:
            self.decide(admission, answer)
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


def _sum(first: Usage | None, second: Usage) -> Usage:
    if first is None:
        return second
    return Usage(
        first.prompt_tokens + second.prompt_tokens,
        first.completion_tokens + second.completion_tokens,
        first.total_tokens + second.total_tokens,
    )


def _close(events: object) -> None:
    closing = getattr(events, "close", None)
    if closing is not None:
        closing()
