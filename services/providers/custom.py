"""Any number of OpenAI-compatible upstreams, from `providers.custom` in the settings.

A model is reached as `<prefix>/<model>`, or by its bare name where `models` lists it; `"*"` in
`models` takes every name that nobody else claims. Without `api_key` the caller's own bearer is
passed on, and callers who bring none get a key of `accounts`. The request goes out as it came in,
with the upstream's model name; fields we do not know pass through both ways.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from services.config.account_setting import AccountSetting
from services.core.errors import GatewayError
from services.core.events import Event, Events
from services.core.models import Credential, ModelCard, Secret
from services.core.requests import ChatRequest
from services.providers.base import (
    MAX_REPLY_BODY,
    Provider,
    ProviderContext,
    Route,
    read_answer,
    refusal_body,
)
from services.providers.openai_compat import ChatStream, completion_events
from services.providers.openai_messages import message_objects
from services.providers.refusals import not_an_answer, refusal
from services.transport import Exchange, Transport, UpstreamRequest

_EVERYTHING = "*"


class Upstream(msgspec.Struct, frozen=True):
    """One entry of `providers.custom`.

    `stream_usage` asks a stream for its usage, which a few old servers refuse.
    """

    prefix: str
    base_url: str
    api_key: Secret | None = None
    models: tuple[str, ...] = ()
    proxy: str | None = None
    stream_usage: bool = True
    accounts: tuple[AccountSetting, ...] = ()
    accounts_file: str = ""


SETTINGS = list[Upstream]


def build(context: ProviderContext) -> Provider | None:
    upstreams = context.settings.providers.get("custom")
    return Custom(upstreams, context.transport) if upstreams else None


class Custom(Provider):
    name = "custom"

    def __init__(self, upstreams: Iterable[Upstream], transport: Transport) -> None:
        self._upstreams = {upstream.prefix: upstream for upstream in upstreams}
        self._transport = transport
        self._created = int(time.time())

    @property
    def pools(self) -> Sequence[str]:
        return tuple(_pool(upstream) for upstream in self._upstreams.values())

    def models(self) -> Iterable[ModelCard]:
        for upstream in self._upstreams.values():
            for model in upstream.models:
                if model != _EVERYTHING:
                    yield ModelCard(model, upstream.prefix, self._created)

    def route(self, model: str) -> Route | None:
        for upstream in self._upstreams.values():
            if model in upstream.models and model != _EVERYTHING:
                return _route(upstream, model)
        prefix, slash, rest = model.partition("/")
        named = self._upstreams.get(prefix) if slash and rest else None
        return _route(named, rest) if named else None

    def catch_all(self, model: str) -> Route | None:
        for upstream in self._upstreams.values():
            if _EVERYTHING in upstream.models:
                return _route(upstream, model)
        return None

    def stream(self, request: ChatRequest, route: Route, credential: Credential) -> Events:
        upstream = self._upstreams[route.key]
        exchange = self._transport.open(
            UpstreamRequest(
                "POST",
                upstream.base_url.rstrip("/") + "/chat/completions",
                _headers(request, credential),
                _body(request, route.upstream_model, upstream.stream_usage),
            ),
            proxy=upstream.proxy,
        )
        answer = _StreamAnswer(credential) if request.stream else _WholeAnswer(credential)

        def check(exchange: Exchange) -> GatewayError | None:
            if exchange.status >= 400:
                body = refusal_body(exchange)
                return refusal(exchange.status, exchange.headers, body, credential)
            return answer.check(exchange.headers.get("content-type", "").lower())

        yield from read_answer(exchange, check, answer.feed, answer.end, answer.is_done)


class _WholeAnswer:
    """An answer that is one JSON object."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._body = bytearray()

    def check(self, content_type: str) -> GatewayError | None:
        return not_an_answer(content_type) if content_type.startswith("text/html") else None

    def feed(self, data: bytes) -> list[Event]:
        self._body += data
        if len(self._body) > MAX_REPLY_BODY:
            raise not_an_answer(f"more than {MAX_REPLY_BODY} bytes")
        return []

    def end(self) -> list[Event]:
        return completion_events(bytes(self._body), self._credential)

    def is_done(self) -> bool:
        return False


class _StreamAnswer:
    """A streamed answer; some servers answer a stream request with one JSON object all the same."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._reader: ChatStream | _WholeAnswer = ChatStream(credential)

    def check(self, content_type: str) -> GatewayError | None:
        if content_type.startswith("application/json"):
            self._reader = _WholeAnswer(self._credential)
            return None
        return not_an_answer(content_type) if content_type.startswith("text/html") else None

    def feed(self, data: bytes) -> Iterable[Event]:
        return self._reader.feed(data)

    def end(self) -> Iterable[Event]:
        return self._reader.end()

    def is_done(self) -> bool:
        """Whether the end mark has come; some servers leave the connection open after it."""
        return self._reader.is_done()


def _route(upstream: Upstream, model: str) -> Route:
    credential = Credential(upstream.api_key) if upstream.api_key else None
    return Route(model, credential, upstream.prefix, _pool(upstream))


def _pool(upstream: Upstream) -> str:
    return f"custom/{upstream.prefix}"


def _headers(request: ChatRequest, credential: Credential) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if request.stream else "application/json",
    }
    if credential.token is not None:
        headers["Authorization"] = f"Bearer {credential.token.reveal()}"
    return headers


def _body(request: ChatRequest, model: str, stream_usage: bool) -> bytes:
    """The caller's body with the upstream's model name, and usage asked for."""
    fields: dict[str, object] = dict(request.source)
    fields["model"] = model
    if "messages" not in fields:
        fields["messages"] = message_objects(request.messages)
    if request.stream:
        fields["stream"] = True
    if request.stream and stream_usage and not request.include_usage:
        fields["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(fields)
