"""One admitted request: what its key allows, and what is told when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from services.core.errors import GatewayError, PermissionDenied
from services.core.events import Events, Image, Reasoning, Text, Usage, WireEvents
from services.core.models import Credential
from services.core.requests import ChatRequest
from services.keys.ledger import NOBODY, Outcome, Turn
from services.keys.records import KeyRecord
from services.store import ScriptCall, StoreAway

if TYPE_CHECKING:
    from services.keys.gatekeeper import Gatekeeper

R = TypeVar("R")

_CLIENT_GONE = 499
_BYTES_PER_TOKEN = 4


class Served(msgspec.Struct, frozen=True, gc=False):
    """Who answers a request: a provider, with a model that may stand in for the one asked for."""

    provider: str
    model: str
    stands_in: bool = False


class Admission:
    """Holds the request's place under the limits of its key until `done`, which comes by itself:
    at the end of the events it watches, and at the end of a `with` whose answer nobody watches.

    `record` is None for a caller who holds none of our keys. `headers` are for the answer. `served`
    is who was asked last, and `settled` that nobody else will answer. It is an
    `Entry`: one whose key is not `counted` yet asks the store on the way upstream.
    """

    __slots__ = (
        "_gatekeeper", "_images", "_over", "_started", "_watched",
        "alone", "counted", "digest", "headers", "lease", "model", "record", "served", "settled",
        "usage",
    )  # fmt: skip

    def __init__(
        self,
        gatekeeper: Gatekeeper,
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
        self._gatekeeper = gatekeeper
        self._started = time.monotonic()
        self.model = ""
        self.served: Served | None = None
        self.settled = False
        self._images = 0
        self.usage: Usage | None = None
        self._watched = False
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
        return "" if self.counted else self._gatekeeper.refusal(self)

    def calls(self) -> Sequence[ScriptCall]:
        """What to ask the store before the request goes upstream, if anything."""
        return () if self.counted else (self._gatekeeper.admitting(self),)

    def answered(self, answers: Sequence[Any]) -> None:
        """Raises as `Gatekeeper.admit`, and `PermissionDenied` if the key has lost the model."""
        if not self.counted:
            [answer] = answers
            self._enter(lambda: self._gatekeeper.judge(self, answer))

    def unanswered(self, away: StoreAway) -> None:
        """Raises as `answered`."""
        if not self.counted:
            self._enter(lambda: self._gatekeeper.judge_alone(self, away))

    def _enter(self, judge: Callable[[], None]) -> None:
        """A request that is refused is none: it counts under no limit and in no usage."""
        try:
            judge()
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
        return self._gatekeeper.credential(self.record, provider)

    def note(self, usage: Usage | None = None, images: int = 0) -> None:
        """What an answer that is not watched has used."""
        self.usage = usage
        self._images = images

    def watch(self, events: WireEvents, chat: ChatRequest) -> WireEvents:
        """Pass the events of the answer on; their end, whatever it is, is the request's."""
        self._watched = True
        return self._watch(events, chat)

    def _watch(self, events: WireEvents, chat: ChatRequest) -> WireEvents:
        pieces = said = 0
        first: float | None = None
        outcome: Outcome = "error"
        try:
            for batch in events:
                for event in batch:
                    kind = type(event)
                    if kind is Text or kind is Reasoning:
                        pieces += 1
                        said += len(event.text)  # type: ignore[union-attr]  # `kind` says so
                    elif kind is Usage:
                        self.usage = event  # type: ignore[assignment]  # the same
                if first is None and batch:
                    first = time.monotonic() - self._started
                    self.settled = True
                yield batch
            outcome = "ok"
        except GeneratorExit:
            outcome = "cancelled"
            raise
        finally:
            _close(events)
            self._finish(outcome, first, chat, max(pieces, said // _BYTES_PER_TOKEN))

    def _finish(self, outcome: Outcome, first: float | None, chat: ChatRequest, said: int) -> None:
        if self.usage is None and (said or outcome == "cancelled"):
            self.usage = _estimate(chat, said)
        self.done(outcome, first)

    def during(self, work: Generator[None, None, R]) -> Generator[None, None, R]:
        """Do `work`; its end is the request's."""
        self._watched = True
        return self._during(work)

    def _during(self, work: Generator[None, None, R]) -> Generator[None, None, R]:
        outcome: Outcome = "error"
        try:
            result = yield from work
            outcome = "ok"
            return result
        except GeneratorExit:
            outcome = "cancelled"
            raise
        finally:
            self.done(outcome)

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

    def done(self, outcome: Outcome, first_token: float | None = None) -> None:
        """Give the place back and account for the request. Only the first call counts."""
        if self._over:
            return
        self._over = self.settled = True
        used = self.usage or Usage(0, 0, 0)
        self._gatekeeper.settle(self, used.prompt_tokens + used.completion_tokens)
        if not self.model:  # it never came to a question
            return
        self._gatekeeper.account(
            Turn(
                key=self.record.id if self.record else NOBODY,
                model=self.model,
                provider=self.served.provider if self.served else "",
                outcome=outcome,
                prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens,
                images=self._images,
                first_token=first_token,
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
        if error is not None:
            gone = isinstance(error, GatewayError) and error.status == _CLIENT_GONE
            self.done("cancelled" if gone else "error")
        elif not self._watched:
            self.done("ok")


def _estimate(chat: ChatRequest, completion: int) -> Usage:
    """Rough counts for an answer that was cut off before its own: nobody gets round a limit by
    leaving early. Cheap, since a tokenizer's vocabulary is not loaded for it.
    """
    sent = sum(len(message.text.encode("utf-8", "replace")) for message in chat.messages)
    prompt = -(-sent // _BYTES_PER_TOKEN)
    return Usage(prompt, completion, prompt + completion, estimated=True)


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
