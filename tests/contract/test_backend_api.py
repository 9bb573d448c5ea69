"""The backend-api upstream keeps the provider contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emulators.backend_api import BackendApi as Upstream
from services.accounts.call_limiter import CallLimiter
from services.config import Settings
from services.core.errors import ProtocolError, RateLimited, UpstreamRefused
from services.core.requests import ChatRequest, Message
from services.providers.backend_api import BackendApiSettings, build
from services.providers.base import Provider, ProviderContext
from services.server.jobs import BackgroundQueue
from services.store import Store, StoreCache
from services.transport import Transport

from .provider_contract import ProviderContract


class TestBackendApi(ProviderContract):
    scenarios = {
        "plain": "#plain",
        "other": "#two_messages",
        "unicode": "#chinese",
        "bytes": "#chinese[split=bytes]",
        "long": "#long[size=4000,step=1,delay=0.1]",
        "silent": "#silence[seconds=3]",
        "unanswered": "#slow_headers",
        "cut": "#cut_no_done",
    }
    refusals = {
        "#token_expired_401": (UpstreamRefused, 503),
        "#html_403": (UpstreamRefused, 503),
        "#account_deactivated": (UpstreamRefused, 503),
        "#cap_429": (RateLimited, 429),
        "#string_429": (RateLimited, 429),
        "#error_500": (UpstreamRefused, 502),
        "#error_502": (UpstreamRefused, 502),
    }
    own_refusals = {"#token_expired_401": 401, "#html_403": 403, "#cap_429": 429}

    @pytest.fixture
    def upstream(self) -> Iterator[Upstream]:
        with Upstream(seed=1) as running:
            yield running

    def make_provider(self, url: str, wires: Transport) -> Provider:
        store = Store("")  # none: caches and limits stay in this process
        own = BackendApiSettings(calls_per_minute=0)
        settings = Settings(upstream_base_url=url, providers={"backend_api": own})
        made = build(
            ProviderContext(
                settings, wires, StoreCache(store), BackgroundQueue(), CallLimiter(store)
            )
        )
        assert made is not None
        return made

    def request(self, said: str, stream: bool) -> ChatRequest:
        return ChatRequest("gpt-4-s", (Message("user", said),), stream=stream)

    def token(self, upstream: Any) -> str:
        return str(upstream.accounts["alice"].access_token)

    def asked(self, upstream: Upstream) -> int:
        return len(upstream.calls("conversation"))

    def answering(self, upstream: Upstream) -> int:
        return sum(call.exchange.active for call in upstream.calls("conversation"))

    def test_end_without_its_mark_is_a_protocol_error(
        self, provider: Provider, upstream: Upstream
    ) -> None:
        with pytest.raises(ProtocolError):
            list(self.ask_for(provider, upstream, "cut"))
