"""One turn, from a typed request to wire events: who serves it, with which credential, through
which stages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from services.accounts import Credentials
from services.core.errors import ModelNotFound, UpstreamError
from services.core.events import Events, WireEvents
from services.core.models import Caller, ModelCard
from services.core.requests import ChatRequest
from services.files import Adopter, Sources, fill_in_uploads
from services.keys import Admission
from services.pipeline.fallback import Source, first_to_answer
from services.pipeline.files import FAILED as NOT_FETCHED
from services.pipeline.files import adopt_files
from services.pipeline.profiles import Profile
from services.pipeline.run import run
from services.providers.registry import Registry, Target
from services.wire.image_request import ImageRequest

log = logging.getLogger(__name__)

FAILURE_SHOWN = 60.0
"""Seconds for which an upstream's last failure counts in the health report, unless it answers
before."""


class Failure(msgspec.Struct, frozen=True):
    """An upstream's last failure; `at` is `time.monotonic()`."""

    reason: str
    at: float


class Setting(msgspec.Struct, frozen=True):
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
        uploads: Sources,
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
        self._uploads = uploads
        self._extra = extra_model_fields
        self._keep_upstream_urls = keep_upstream_urls
        self._fallbacks = fallbacks or Fallbacks({})
        self._failures: dict[str, Failure] = {}

    def answer(self, request: ChatRequest, setting: Setting) -> WireEvents:
        """The answer's events.

        Raises `ModelNotFound` at once; upstream failures come from the iterator.
        """
        events = self._rich(request, setting, NOT_FETCHED)
        return run(events, request, setting.profile)

    def pictures(self, image: ImageRequest, chat: ChatRequest, setting: Setting) -> Events:
        """One turn of a model that draws, its pictures at addresses of ours, nothing rendered."""
        return setting.admission.tap(self._rich(chat, setting, None))

    def _rich(self, request: ChatRequest, setting: Setting, not_fetched: str | None) -> Events:
        target = self._registry.resolve(request.model)
        others = () if setting.caller.credential else self._fallbacks.others(request.model)
        if not others:
            return self._from(target, request, setting, not_fetched)
        sources = [
            Source(name, partial(self._from, other, request, setting, not_fetched))
            for name, other in ((request.model, target), *self._served(others))
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
        self, target: Target, request: ChatRequest, setting: Setting, not_fetched: str | None
    ) -> Events:
        """The answer of one provider, its files made ours."""
        own = setting.admission.choose(target.provider.name)
        if own is not None:
            route = msgspec.structs.replace(target.route, credential=own)
            target = Target(target.provider, route)
        if target.provider.takes_uploads:
            request = fill_in_uploads(request, self._uploads, setting.caller)
        events = self._watched(target, request, setting)
        if not target.provider.makes_files:
            return events
        return adopt_files(
            events,
            self._adopter(setting.public_base),
            failed=not_fetched,
            keep_upstream_urls=self._keep_upstream_urls,
        )

    def _watched(self, target: Target, request: ChatRequest, setting: Setting) -> Events:
        """The provider's events; how it went is remembered for the health report."""
        name, key = target.provider.name, target.route.key
        try:
            yield from self._credentials.stream(
                target.provider, request, target.route, setting.caller, setting.admission
            )
        except UpstreamError as exc:
            log.warning(
                "upstream failed provider=%s upstream=%s reason=%s", name, key or "-", exc.message
            )
            self._failures[name] = Failure(exc.message, time.monotonic())
            self._on_failure(name, exc)
            raise
        self._failures.pop(name, None)

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

    def providers(self) -> dict[str, Failure | None]:
        """Each provider with its recent failure, if that is its last word."""
        recent = time.monotonic() - FAILURE_SHOWN
        current = {name: self._failures.get(name) for name in self._registry.names}
        return {name: f if f and f.at > recent else None for name, f in current.items()}
