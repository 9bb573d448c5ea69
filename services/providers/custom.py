"""Any number of OpenAI-compatible upstreams, from `providers.custom` in the settings.

A model is reached as `<prefix>/<model>`, or by its bare name where `models` lists it; `"*"` in
`models` takes every name that nobody else claims. What a caller brings for the upstream is
passed on; the others' requests go with `api_key` or a key of `accounts`. The request goes out as it
came in, with the upstream's model name; fields we do not know pass through both ways.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from services.config.settings import AccountSetting
from services.core.errors import InvalidRequest
from services.core.events import Events
from services.core.models import Credential, ModelCard, Secret
from services.core.requests import ChatRequest, Message
from services.providers.base import (
    Provider,
    ProviderContext,
    Reader,
    Route,
    read_answer,
    refusal_body,
)
from services.providers.openai_compat import ChatStream, WholeAnswer
from services.providers.refusals import not_an_answer, refusal
from services.transport import Transport, UpstreamRequest, UpstreamResponse

_EVERYTHING = "*"


class Upstream(msgspec.Struct, frozen=True):
    """One entry of `providers.custom`.

    `stream_usage` asks a stream for its usage, which a few old servers refuse. `draws` names those
    models that make pictures in a chat; None: not known.
    """

    prefix: str
    base_url: str
    api_key: Secret | None = None
    models: tuple[str, ...] = ()
    proxy: str | None = None
    stream_usage: bool = True
    accounts: tuple[AccountSetting, ...] = ()
    accounts_file: str = ""
    draws: tuple[str, ...] | None = None


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
        asked = UpstreamRequest(
            "POST",
            upstream.base_url.rstrip("/") + "/chat/completions",
            _headers(request, credential),
            _body(request, route.upstream_model, upstream.stream_usage),
        )

        def begin(response: UpstreamResponse) -> Reader:
            if response.status >= 400:
                body = refusal_body(response)
                raise refusal(response.status, response.headers, body, credential)
            kind = response.headers.get("content-type", "").lower()
            if kind.startswith("text/html"):
                raise not_an_answer(kind)
            # some servers answer a stream request with one JSON object all the same
            if request.stream and not kind.startswith("application/json"):
                return ChatStream(credential)
            return WholeAnswer(credential)

        return read_answer(lambda: self._transport.open(asked, proxy=upstream.proxy), begin)


def _route(upstream: Upstream, model: str) -> Route:
    credential = Credential(upstream.api_key) if upstream.api_key else None
    draws = None if upstream.draws is None else model in upstream.draws
    return Route(model, credential, upstream.prefix, _pool(upstream), draws)


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
        fields["messages"] = _encodable(request.messages)
    if request.stream:
        fields["stream"] = True
    if request.stream and stream_usage and not request.include_usage:
        fields["stream_options"] = _with_usage(request.source.get("stream_options"))
    return msgspec.json.encode(fields)


def _with_usage(options: msgspec.Raw | None) -> dict[str, object]:
    """The caller's stream options, with usage asked for."""
    given = msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None) if options else None
    return {**(given or {}), "include_usage": True}


def _encodable(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, if nothing of them would be lost. Raises `InvalidRequest`."""
    for message in messages:
        for part in message.parts:
            if part.kind == "other":
                raise InvalidRequest("a message part of an unknown type cannot be changed here")
    return messages
