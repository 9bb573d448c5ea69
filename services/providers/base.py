"""What a provider is, and the one loop that reads an upstream.

A provider knows its upstream and our events, nothing else. `build(context)` of its module returns
it, or None when the settings do not switch it on; `SETTINGS` of its module, if there is one,
types `providers.<name>` of the settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from services.config import Settings
from services.core.errors import GatewayError, UpstreamError
from services.core.events import SILENCE, Event, Events
from services.core.models import CallLimit, Credential, ModelCard, Secret
from services.core.requests import ChatRequest
from services.transport import Transport, UpstreamResponse

TICK = 1.0
"""Seconds of upstream silence after which a stream yields an empty batch."""

MAX_ERROR_BODY = 256 * 1024
MAX_REPLY_BODY = 64 * 1024 * 1024


class Cache(Protocol):
    """Small facts shared by all workers for a while; away or full, it forgets, and never raises."""

    def get(self, key: str) -> bytes | None: ...

    def set(self, key: str, value: bytes, seconds: float) -> None: ...


class Background(Protocol):
    """Runs bounded, retried work after the response. A task that raises is tried again."""

    def submit(self, name: str, task: Callable[[], None]) -> None: ...


class CallLimiter(Protocol):
    """A limit that holds across workers and machines."""

    def take(self, limit: CallLimit) -> float | None:
        """Take a place for a call; else the seconds until there may be one."""
        ...


class ProviderContext(msgspec.Struct, frozen=True):
    """What a provider is built from."""

    settings: Settings
    transport: Transport
    cache: Cache
    background: Background
    call_limiter: CallLimiter
    gpts_token: Callable[[], Secret | None] | None = None
    """The operator's access token for looking up GPTs, renewed where it has to be."""


class Route(msgspec.Struct, frozen=True):
    """Where a model name leads: the upstream's name for it, and the operator's credential for it,
    if any.

    `key` tells the provider which of its own upstreams is meant; `pool` names the accounts that
    serve it, where the provider has several pools. `draws` says whether the model makes pictures
    when it is asked for one; None where that is not known.
    """

    upstream_model: str
    credential: Credential | None = None
    key: str = ""
    pool: str = ""
    draws: bool | None = None


class Provider(ABC):
    """One kind of upstream.

    Shared by all requests of a worker: nothing per request lives on `self`.
    """

    name: str
    makes_files = False
    """Whether its answers may hold more than wire events: `Image` or `File`, which have to be made
    ours, and code or citations, which have to be rendered.
    """
    refreshes = False
    """Whether its access tokens can be had for refresh tokens, which callers may then send."""
    takes_uploads = False
    """Whether a `file_id` in a request means an upload to /v1/files here, to be given as bytes."""

    @property
    def pools(self) -> Sequence[str]:
        """The names of the pools of accounts that may serve it."""
        return (self.name,)

    @abstractmethod
    def models(self) -> Iterable[ModelCard]:
        """The models to list."""

    @abstractmethod
    def route(self, model: str) -> Route | None:
        """Where `model` leads, or None if this provider does not know the name."""

    def catch_all(self, model: str) -> Route | None:
        """Where a name leads that no provider knows, if this provider takes such names."""
        return None

    def call_limit(self, credential: Credential) -> CallLimit | None:
        """How many calls a minute the upstream account of `credential` may get, if that is limited.

        Of a credential with an `owner` nothing else is looked at.
        """
        return None

    @abstractmethod
    def stream(self, request: ChatRequest, route: Route, credential: Credential) -> Events:
        """Ask the upstream and yield its answer in batches.

        Nothing is sent before the first `next`. Closing the iterator closes the upstream
        connection. Raises `UpstreamError` and its kin; `InvalidRequest` for what the upstream
        cannot take.
        """


class Reader(Protocol):
    """Turns the body of one answer into events. `done`: the upstream's own end mark has come."""

    @property
    def done(self) -> bool: ...

    def feed(self, data: bytes, batch: list[Event]) -> None:
        """Add the events that `data` completes to `batch`. Raises `GatewayError`."""
        ...

    def end(self, batch: list[Event]) -> None:
        """The body is complete: add what is left. Raises `GatewayError`."""
        ...


def read_answer(
    open: Callable[[], UpstreamResponse], begin: Callable[[UpstreamResponse], Reader]
) -> Events:
    """Read one response, which `open` asks for: `begin` looks at its status and headers, once, and
    gives the reader of its body, or raises what the caller is told.

    What a reader has added to a batch before it fails is passed on before the failure is. An
    answer that is `done` ends at the first silence, for upstreams that leave the connection open.
    """
    response = open()
    try:
        while not response.wait(TICK):
            yield SILENCE
        reader = begin(response)
        read, feed = response.read, reader.feed
        data: bytes | None = None
        while data != b"":
            data = read(TICK)
            if data is None:
                if not reader.done:
                    yield SILENCE
                    continue
                data = b""
            batch: list[Event] = []
            try:
                if data:
                    feed(data, batch)
                else:
                    reader.end(batch)
            except GatewayError:
                if batch:
                    yield batch
                raise
            yield batch
    finally:
        response.close()


def refusal_body(response: UpstreamResponse) -> bytes:
    """The body of an error answer, or nothing where it cannot be had: the status says enough."""
    try:
        return response.read_all(MAX_ERROR_BODY)
    except UpstreamError:
        return b""
