"""What the tests of the backend-api provider share: the provider before an emulator, and questions.

Everything is real but the upstream: sockets, a Valkey server, the queue of background tasks.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from emulators.backend_api import BackendApi as Upstream
from services import transport
from services.accounts.call_limiter import CallLimiter
from services.config import Settings
from services.core.errors import GatewayError
from services.core.events import (
    CodeBlock,
    Conversation,
    Event,
    ExecutionOutput,
    Finish,
    Reasoning,
    Text,
    WireEvent,
)
from services.core.models import Credential, Secret
from services.core.requests import ChatRequest, Message, Part
from services.pipeline.profiles import Profile
from services.pipeline.render import render
from services.providers.backend_api import BackendApi, BackendApiSettings, build
from services.providers.base import ProviderContext
from services.server.jobs import BackgroundQueue
from services.store import Store, StoreCache

PATIENCE = 10.0
UNHURRIED = BackendApiSettings(calls_per_minute=0)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
"""One transparent pixel."""


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Stage:
    """The provider, its upstream, and the account `alice` that asks."""

    def __init__(self, upstream: Upstream, store: Store, wires: transport.Transport) -> None:
        self.upstream = upstream
        self.cache = StoreCache(store)
        self.background = BackgroundQueue(workers=1)
        self._call_limiter = CallLimiter(store)
        self._wires = wires

    def provider(
        self,
        own: BackendApiSettings = UNHURRIED,
        *,
        options: dict[str, Any] | None = None,
        wires: transport.Transport | None = None,
        **top: Any,
    ) -> BackendApi:
        """A provider with the settings `top` at the top level."""
        top.setdefault("upstream_base_url", self.upstream.url)
        settings = Settings(providers={"backend_api": own}, **top)
        context = ProviderContext(
            settings, wires or self._wires, self.cache, self.background, self._call_limiter
        )
        built = build(context, **(options or {}))
        assert built is not None
        return built

    def credential(self, owner: str = "alice", **fields: Any) -> Credential:
        token = self.upstream.accounts[owner].access_token
        return Credential(Secret(token), **{"from_caller": True, **fields})

    def says(self, *events: Any, end: str = "data: [DONE]\n\n") -> None:
        """Script the next answer: events as JSON, or as text as they are."""
        texts = [e if isinstance(e, str) else json.dumps(e) for e in events]
        body = "".join(f"data: {text}\n\n" for text in texts) + end
        entry = {"endpoint": "conversation", "status": 200, "body": body}
        self.upstream.script({**entry, "content_type": "text/event-stream"})

    def ask(
        self,
        said: str | Sequence[Part] | Sequence[Message],
        *,
        provider: BackendApi | None = None,
        credential: Credential | None = None,
        model: str = "gpt-4-s",
        **fields: Any,
    ) -> list[list[Event]]:
        """The batches of one answer."""
        provider = provider or self.provider()
        source = {key: msgspec.Raw(msgspec.json.encode(v)) for key, v in fields.items()}
        request = ChatRequest(model, _messages(said), stream=True, source=source)
        route = provider.route(model) or provider.catch_all(model)
        assert route is not None
        credential = route.credential or credential or self.credential()
        return list(provider.stream(request, route, credential))

    def events(self, said: Any, **options: Any) -> list[Event]:
        """The answer without its conversations, pieces of a kind joined."""
        told = [e for batch in self.ask(said, **options) for e in batch]
        return joined(e for e in told if not isinstance(e, Conversation))

    def failure(self, said: Any, **options: Any) -> tuple[list[Event], GatewayError]:
        """What came before the failure, and the failure."""
        provider = options.pop("provider", None) or self.provider()
        model = options.pop("model", "gpt-4-s")
        route = provider.route(model)
        assert route is not None
        credential = route.credential or options.pop("credential", None) or self.credential()
        request = ChatRequest(model, _messages(said), **options)
        told: list[Event] = []
        try:
            for batch in provider.stream(request, route, credential):
                told += batch
        except GatewayError as exc:
            return joined(e for e in told if not isinstance(e, Conversation)), exc
        raise AssertionError(f"no failure, but {told}")

    def rendered(self, said: Any, profile: Profile, **options: Any) -> str:
        """The text that a client reads."""
        wire: list[WireEvent] = [
            e for batch in render(iter(self.ask(said, **options)), profile) for e in batch
        ]
        return "".join(e.text for e in wire if isinstance(e, Text))

    def bodies(self) -> list[Any]:
        """The conversation requests so far."""
        return [call.json for call in self.upstream.calls("conversation")]


def _messages(said: Any) -> tuple[Message, ...]:
    if isinstance(said, str):
        return (Message("user", said),)
    if said and isinstance(said[0], Message):
        return tuple(said)
    return (Message("user", tuple(said)),)


def joined(events: Any) -> list[Event]:
    """Neighbouring pieces of one text as one event."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if (
            isinstance(event, Text | Reasoning | CodeBlock | ExecutionOutput)
            and isinstance(last, Text | Reasoning | CodeBlock | ExecutionOutput)
            and type(event) is type(last)
            and not getattr(event, "first", False)
        ):
            out[-1] = msgspec.structs.replace(last, text=last.text + event.text)
        else:
            out.append(event)
    return out


def message(
    text: Any, *, role: str = "assistant", kind: str = "text", **fields: Any
) -> dict[str, Any]:
    """An event of one message with the whole of its text so far."""
    parts = text if isinstance(text, list) else [text]
    return {
        "message": {
            "id": "m1",
            "author": {"role": role, "name": fields.pop("name", None)},
            "content": {"content_type": kind, "parts": parts},
            "status": "in_progress",
            "metadata": {},
            "recipient": "all",
            **fields,
        },
        "conversation_id": "c1",
        "error": None,
    }


def text_of(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Text))


STOP = Finish("stop")
