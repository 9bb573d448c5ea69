"""Find the providers by their files, build those switched on, and resolve model names."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import msgspec

import services.providers
from services.core.errors import ModelNotFound
from services.core.models import ModelCard
from services.providers.base import Provider, ProviderContext, Route

log = logging.getLogger(__name__)

PICTURE_MODELS = ("dall-e-3", "dall-e-2", "gpt-image-1")
"""What apps call the model that makes pictures, whoever does it."""
_PICTURE_PREFIXES = ("dall-e-", "gpt-image-")


def provider_modules() -> dict[str, ModuleType]:
    """Every module of this package that has a `build` function, by its name."""
    modules = {
        info.name: importlib.import_module(f"{services.providers.__name__}.{info.name}")
        for info in pkgutil.iter_modules(services.providers.__path__)
    }
    return {name: module for name, module in modules.items() if hasattr(module, "build")}


def provider_types() -> dict[str, Any]:
    """The types of `providers.<name>` in the settings, by provider."""
    modules = provider_modules()
    return {name: m.SETTINGS for name, m in modules.items() if hasattr(m, "SETTINGS")}


class Target(msgspec.Struct, frozen=True):
    """Who answers for a model, and its name without aliases."""

    provider: Provider
    route: Route
    model: str


class Registry:
    """The providers of this process, and which of them serves which model."""

    def __init__(self, providers: Iterable[Provider], aliases: Mapping[str, str]) -> None:
        self._providers = tuple(providers)
        self._aliases = dict(aliases)
        self._unlisted: set[str] = set()

    @classmethod
    def from_settings(cls, context: ProviderContext) -> Registry:
        built = [module.build(context) for module in provider_modules().values()]
        providers = [provider for provider in built if provider is not None]
        return cls(providers, context.settings.models.aliases)

    @property
    def upstreams(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each provider's name, and its upstreams by the names of their pools."""
        return tuple((provider.name, tuple(provider.pools)) for provider in self._providers)

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of all pools of accounts that there may be."""
        return tuple(pool for provider in self._providers for pool in provider.pools)

    def models(self) -> list[ModelCard]:
        """All models to list, each name once, without those of a provider that cannot list its own
        now; the `PICTURE_MODELS` too where a model is known to draw, since relays take the names
        they may send from this list.
        """
        cards = {card.id: card for provider in self._providers for card in self._listed(provider)}
        for alias, name in self._aliases.items():
            known = cards.get(name)
            owner = known.owned_by if known else "causeway"
            cards[alias] = ModelCard(alias, owner, known.created if known else 0)
        for drawing, _ in self._drawing():
            for name in PICTURE_MODELS:
                cards.setdefault(name, ModelCard(name, drawing.owned_by, drawing.created))
            break
        return list(cards.values())

    def _listed(self, provider: Provider) -> list[ModelCard]:
        try:
            cards = list(provider.models())
        except Exception:  # whatever goes wrong there is no reason to leave out the others
            if provider.name not in self._unlisted:
                self._unlisted.add(provider.name)
                log.exception("models not listed provider=%s", provider.name)
            return []
        self._unlisted.discard(provider.name)
        return cards

    def drawing(self) -> list[str]:
        """Names of models that are known to make pictures, the upstreams' own first."""
        own = [card.id for card, _ in self._drawing()]
        return (
            [*own, *(name for name in PICTURE_MODELS if name not in self._aliases)] if own else []
        )

    def _drawing(self) -> Iterator[tuple[ModelCard, Target]]:
        for provider in self._providers:
            for card in self._listed(provider):
                route = provider.route(card.id)
                if route is not None and route.draws and card.id not in self._aliases:
                    yield card, Target(provider, route, card.id)

    def resolve(self, model: str) -> Target:
        """Who serves `model`: an alias first, then a provider that knows the name, then one that
        takes any, and for the usual names of picture models the first model known to draw.

        Raises `ModelNotFound`.
        """
        name = self._aliases.get(model, model)
        for provider in self._providers:
            route = provider.route(name)
            if route is not None:
                return Target(provider, route, name)
        for provider in self._providers:
            route = provider.catch_all(name)
            if route is not None:
                return Target(provider, route, name)
        if name.startswith(_PICTURE_PREFIXES):
            for _, target in self._drawing():
                return target
        raise ModelNotFound(
            f"the model {model} does not exist here; GET /v1/models lists the ones that do",
            param="model",
        )
