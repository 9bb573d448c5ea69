"""The provider: which names it serves, and a turn for each request."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping

import msgspec

from services.core.errors import InvalidRequest, Unavailable
from services.core.events import Events
from services.core.models import CallLimit, Credential, ModelCard
from services.core.requests import ChatRequest
from services.providers.backend_api.attachments import Opener
from services.providers.backend_api.calls import Calls, call_limit
from services.providers.backend_api.conversations import Conversations, text_field
from services.providers.backend_api.event_socket import SocketDialler
from services.providers.backend_api.gizmos import GptsToken, operator_credential
from services.providers.backend_api.gpts_file import GptsFile
from services.providers.backend_api.model_names import (
    GIZMO,
    GIZMO_PREFIX,
    Family,
    ModelNames,
    gizmo_id,
)
from services.providers.backend_api.owner import owner_of
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.backend_api.turn import Order, Tools, Turn
from services.providers.base import Provider, ProviderContext, Route

OWNER = "openai"
_GIZMO_KEY = "gizmo:"


class BackendApi(Provider):
    """A ChatGPT-web style `/backend-api` upstream.

    Ignores the tuning knobs of a request (temperature, max_tokens, stop, …): the upstream has none.
    """

    name = "backend_api"
    makes_files = True
    takes_uploads = True
    refreshes = True

    def __init__(
        self,
        context: ProviderContext,
        own: BackendApiSettings,
        *,
        open_attachment: Opener,
        gpts: GptsFile,
        gpts_token: GptsToken,
        dialler: SocketDialler,
    ) -> None:
        settings = context.settings
        self._context = context
        self._own = own
        self._names = ModelNames(settings, own)
        self._gpts = gpts
        self._gpts_token = gpts_token
        conversations = Conversations(context.cache)
        self._tools = Tools(context, own, open_attachment, conversations, dialler)
        prefixes = [f"/{prefix}" for prefix in settings.upstream_api_prefix if prefix] or [""]
        base = settings.upstream_base_url.rstrip("/")
        self._bases = [base + prefix for prefix in prefixes]
        self._turns = itertools.count()
        self._created = int(time.time())

    def models(self) -> Iterable[ModelCard]:
        for name in dict.fromkeys([*self._names.names, *self._gpts.ids()]):
            yield ModelCard(name, OWNER, self._created)

    def route(self, model: str) -> Route | None:
        key = self._names.names.get(model)
        if key is not None:
            return self._route(self._names.family(key), key)
        identity = self._gpts.ids().get(model)
        if identity is None and model.startswith(GIZMO_PREFIX):
            identity = gizmo_id(model)
        return self._route(GIZMO, _GIZMO_KEY + identity) if identity else None

    def catch_all(self, model: str) -> Route | None:
        """A bare `g-…`, which could also be another provider's model."""
        identity = gizmo_id(model)
        return self._route(GIZMO, _GIZMO_KEY + identity) if identity else None

    def call_limit(self, credential: Credential) -> CallLimit | None:
        if credential.token is None and not credential.owner:
            return None
        return call_limit(self._own, owner_of(credential))

    def stream(self, request: ChatRequest, route: Route, credential: Credential) -> Events:
        events = Turn(self._order(request, route, credential), self._tools).events()
        nap = self._context.settings.refresh_ToAccess.stream_sleep_time
        if nap and request.stream:
            events = _slowly(events, nap)
        yield from events

    def _route(self, family: Family, key: str) -> Route:
        own = self._own
        token = own.access_token
        credential = Credential(token, own.account_id or None) if token is not None else None
        return Route(family.slug, credential, key, draws=family.draws)

    def _order(self, request: ChatRequest, route: Route, credential: Credential) -> Order:
        if credential.token is None or not credential.token.reveal():
            raise Unavailable(
                "no account serves this model here: the operator can add one, and callers can send"
                " an access token of the upstream as X-Upstream-Authorization"
            )
        if request.n > 1:
            raise InvalidRequest("this model gives one answer at a time", param="n")
        identity = _gizmo_asked_for(request.source)
        if identity is None and route.key.startswith(_GIZMO_KEY):
            identity = route.key.removeprefix(_GIZMO_KEY)
        family = GIZMO if identity else self._names.family(route.key)
        base = self._bases[next(self._turns) % len(self._bases)]
        lookup = operator_credential(self._gpts_token) if identity else None
        return Order(
            request,
            family,
            identity,
            Calls(self._context, self._own, base, credential),
            Calls(self._context, self._own, base, lookup) if lookup else None,
        )


def _gizmo_asked_for(source: Mapping[str, msgspec.Raw]) -> str | None:
    """The GPT in the body's `gizmo_id`. Raises `InvalidRequest`."""
    text = text_field(source, "gizmo_id")
    if not text:
        return None
    identity = gizmo_id(text)
    if identity is None:
        raise InvalidRequest("gizmo_id must look like g-XXXX", param="gizmo_id")
    return identity


def _slowly(events: Events, seconds: float) -> Events:
    """One event at a time, with a pause after each, as `stream_sleep_time` wants."""
    for batch in events:
        if not batch:
            yield batch
        for event in batch:
            yield [event]
            time.sleep(seconds)
