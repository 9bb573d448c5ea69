"""One turn, from a typed request to wire events: who serves it, with which credential, through
which stages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec

from services.accounts import Credentials
from services.core.errors import (
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.core.events import Events, WireEvents
from services.core.models import Caller, ModelCard
from services.core.requests import ChatRequest
from services.dialects.images import ImageRequest
from services.files.adopt import FAILED as NOT_FETCHED
from services.files.adopt import Adopter, adopt_files
from services.files.uploads import OwnFiles, fill_in_own_files
from services.keys import Admission, Served
from services.pipeline.fallback import Source, first_to_answer
from services.pipeline.finish import finish
from services.pipeline.profiles import Profile
from services.pipeline.render import render
from services.providers.base import Route
from services.providers.registry import Registry, Target
from services.server.metrics import kind_of

log = logging.getLogger(__name__)

_SERVER_ERROR = 500
FAILURE_SHOWN = 60.0
"""Seconds for which an upstream's last failure counts in the health report, unless it answers
before."""


class Failure(msgspec.Struct, frozen=True):
    """An upstream's last failure. `kind` is a word of ours, `reason` what the upstream said, `at`
    is `time.monotonic()`.
    """

    upstream: str
    kind: str
    reason: str
    at: float


class ProviderHealth(msgspec.Struct, frozen=True):
    """A provider, its upstreams by their pools' names, and the failures that are the last word of
    some of them.
    """

    name: str
    upstreams: tuple[str, ...]
    failures: tuple[Failure, ...]


class Context(msgspec.Struct, frozen=True):
    """What of an HTTP request matters for its answer. `public_base` gives our address as the
    caller knows it, and is asked only when a file has to be linked.
    """

    caller: Caller
    profile: Profile
    public_base: Callable[[], str]
    admission: Admission


class Fallbacks(msgspec.Struct, frozen=True):
    """Which models stand in for which, in order; "*" for those without an entry. `after` is how
    many seconds one may take to begin, 0 for as long as its upstream may.
    """

    by_model: Mapping[str, Sequence[str]]
    after: float = 0.0

    def others(self, model: str) -> tuple[str, ...]:
        named = self.by_model.get(model, self.by_model.get("*", ()))
        return tuple(name for name in dict.fromkeys(named) if name != model)


MakeAdopter = Callable[[Callable[[], str]], Adopter]
"""An adopter of upstream files, given where our public address comes from."""


class Gateway:
    """Answers requests. One per worker."""

    def __init__(
        self,
        registry: Registry,
        credentials: Credentials,
        adopter: MakeAdopter,
        own_files: OwnFiles,
        *,
        extra_model_fields: Mapping[str, Mapping[str, Any]],
        keep_upstream_urls: bool = False,
        fallbacks: Fallbacks | None = None,
        on_failure: Callable[[str, UpstreamError], None] = lambda provider, error: None,
    ) -> None:
        self._on_failure = on_failure
        self._registry = registry
        self._credentials = credentials
        self._adopter = adopter
        self._own_files = own_files
        self._extra = extra_model_fields
        self._keep_upstream_urls = keep_upstream_urls
        self._fallbacks = fallbacks or Fallbacks({})
        self._failures: dict[str, Failure] = {}

    def answer(self, request: ChatRequest, context: Context) -> WireEvents:
        """The answer's events, accounted for at their end.

        Raises `ModelNotFound` at once; upstream failures come from the iterator.
        """
        targets = self._targets(request.model, context)
        events = self._events(targets, request, context, NOT_FETCHED)
        if context.profile.plain_text or any(t.provider.makes_files for _, t in targets):
            wire = render(events, context.profile)
        else:
            wire = cast(WireEvents, events)  # such providers make no rich events
        return finish(wire, request, context.admission)

    def pictures(self, image: ImageRequest, chat: ChatRequest, context: Context) -> Events:
        """One turn of a model that draws, its pictures at addresses of ours, nothing rendered.

        Raises at once `ModelNotFound`, and `InvalidRequest` for a model known to make no pictures.
        """
        targets = self._targets(chat.model, context)
        if targets[0][1].route.draws is False:
            raise self._draws_nothing(chat.model, context)
        drawing = [target for target in targets if target[1].route.draws is not False]
        return context.admission.tap(self._events(drawing, chat, context, None))

    def _draws_nothing(self, model: str, context: Context) -> InvalidRequest:
        names = (name for name in self._registry.drawing() if context.admission.allows(name))
        other = next(names, None)
        instead = f"{other} does" if other else "no model known to do so is configured"
        return InvalidRequest(f"the model {model} makes no pictures; {instead}", param="model")

    def _targets(self, model: str, context: Context) -> list[tuple[str, Target]]:
        """Who serves `model`, and those that stand in for it, by the models' names."""
        targets = [(model, self._registry.resolve(model))]
        if not context.caller.credential:
            targets += self._served(self._fallbacks.others(model))
        return targets

    def _events(
        self,
        targets: Sequence[tuple[str, Target]],
        request: ChatRequest,
        context: Context,
        not_fetched: str | None,
    ) -> Events:
        """Of the first of `targets` that begins an answer."""
        (_, asked), *others = targets
        if not others:
            return self._from(asked, request, context, not_fetched, settled=True)
        sources = [
            Source(
                name,
                partial(
                    self._from, target, request, context, not_fetched, stands_in=target is not asked
                ),
            )
            for name, target in targets
        ]
        return first_to_answer(sources, self._fallbacks.after)

    def _served(self, names: Iterable[str]) -> Iterator[tuple[str, Target]]:
        """Who answers for each of these models, as far as there is somebody."""
        for name in names:
            try:
                yield name, self._registry.resolve(name)
            except ModelNotFound:
                log.warning("fallback unknown model=%s", name)

    def _from(
        self,
        target: Target,
        request: ChatRequest,
        context: Context,
        not_fetched: str | None,
        *,
        stands_in: bool = False,
        settled: bool = False,
    ) -> Events:
        """Of one provider, its files made ours; `settled`: nobody else will be asked."""
        provider, route = target.provider, target.route
        served = Served(provider.name, target.model, stands_in)
        own = context.admission.choose(served, settled=settled)
        pool = self._credentials.pools.of(route.pool or provider.name)
        has_account = route.credential is not None or pool is not None
        operators = has_account and own is None and context.caller.credential is None
        if own is not None:
            route = msgspec.structs.replace(route, credential=own)
        if provider.takes_uploads:
            request = fill_in_own_files(
                request, self._own_files, context.caller, context.public_base
            )
        note = partial(self._note, provider.name, route, context.admission, operators)
        events = self._credentials.stream(
            provider, request, route, context.caller, context.admission, note
        )
        if not provider.makes_files:
            return events
        return adopt_files(
            events,
            self._adopter(context.public_base),
            failed=not_fetched,
            keep_upstream_urls=self._keep_upstream_urls,
        )

    def _note(
        self,
        provider: str,
        route: Route,
        admission: Admission,
        operators: bool,
        error: GatewayError | None,
    ) -> None:
        """How a call went, for the log, metrics and the health report. `operators`: it was
        made with a credential of the operator's.
        """
        upstream = route.pool or provider
        if error is None:
            self._failures.pop(upstream, None)
            return
        if isinstance(error, UpstreamError):
            log.warning(
                "upstream failed provider=%s upstream=%s reason=%s",
                provider,
                route.key or "-",
                error.message,
            )
            self._on_failure(provider, error)
        if admission.counted and shows_a_fault(error, operators):
            self._failures[upstream] = Failure(
                upstream, kind_of(error), error.message, time.monotonic()
            )

    def models(self) -> list[ModelCard]:
        """The models to list, with the operator's extra fields."""
        return [
            msgspec.structs.replace(card, extra=self._extra[card.id])
            if card.id in self._extra
            else card
            for card in self._registry.models()
        ]

    def find_model(self, name: str) -> ModelCard:
        """One model, listed or merely served. Raises `ModelNotFound`."""
        for card in self.models():
            if card.id == name:
                return card
        target = self._registry.resolve(name)
        return ModelCard(name, target.provider.name, 0, self._extra.get(name))

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the pools of accounts that providers draw on."""
        return self._registry.pools

    def health(self) -> tuple[ProviderHealth, ...]:
        """Each provider, with the recent failures of its upstreams."""
        recent = time.monotonic() - FAILURE_SHOWN
        now = {name: failure for name, failure in self._failures.items() if failure.at > recent}
        return tuple(
            ProviderHealth(name, pools, tuple(now[pool] for pool in pools if pool in now))
            for name, pools in self._registry.upstreams
        )


def shows_a_fault(error: GatewayError, operators: bool) -> bool:
    """Whether a failed call says something about the upstream, or about the operator's account
    there if it was made with that (`operators`), and not about the request or the caller's token.

    An error that the upstream puts into an answer of status 200 is mostly about the request.
    """
    match error:
        case UpstreamRefused():
            return (error.status if operators else error.upstream_status) >= _SERVER_ERROR
        case UpstreamUnreachable() | UpstreamTimeout() | ProtocolError():
            return True
        case Unavailable():
            return operators
        case _:
            return False
