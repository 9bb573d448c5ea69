"""OpenAI-compatible upstreams keep the provider contract."""

from __future__ import annotations

import pytest

from emulators.openai_compat import OpenAICompat
from services.core.errors import (
    GatewayError,
    ProtocolError,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
)
from services.core.requests import ChatRequest, Message
from services.providers.base import Provider
from services.providers.custom import Custom, Upstream
from services.transport import Transport

from .provider_contract import CANARY, ProviderContract


class TestCustom(ProviderContract):
    scenarios = {
        "plain": "hello",
        "other": "#echo quite another text",
        "unicode": "#emoji #burst",
        "bytes": "#emoji #bytes",
        "long": "#tps:20 #long:200",
        "silent": "#silent:3",
        "unanswered": "#slow-headers:5",
        "cut": "#cut",
    }
    refusals = {
        "#400": (UpstreamRefused, 400),
        "#401": (UpstreamRefused, 503),
        "#403": (UpstreamRefused, 503),
        "#404": (UpstreamRefused, 404),
        "#429": (RateLimited, 429),
        "#quota": (RateLimited, 429),
        "#500": (UpstreamRefused, 502),
        "#502": (UpstreamRefused, 502),
        "#503": (UpstreamRefused, 503),
        "#529": (UpstreamRefused, 503),
        "#html502": (UpstreamRefused, 502),
        "#html200": (ProtocolError, 502),
        "#error-200": (UpstreamError, 502),
        "#error-string": (UpstreamRefused, 400),
    }
    own_refusals = {"#400": 400, "#401": 401, "#403": 403, "#429": 429, "#500": 502}

    def make_provider(self, url: str, wires: Transport) -> Provider:
        return Custom([Upstream("up", f"{url}/v1")], wires)

    def request(self, said: str, stream: bool) -> ChatRequest:
        return ChatRequest("up/emu-small", (Message("user", said),), stream=stream)

    def asked(self, upstream: OpenAICompat) -> int:
        return len(upstream.calls)

    def answering(self, upstream: OpenAICompat) -> int:
        return sum(call.active for call in upstream.calls)

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
    def test_upstream_that_repeats_the_token_is_not_quoted(
        self, provider: Provider, upstream: OpenAICompat, status: int, stream: bool
    ) -> None:
        body = {"error": {"message": f"{'x' * 980} {CANARY} is wrong", "type": "t", "code": "c"}}
        upstream.script({"status": status, "body": body})
        with pytest.raises(GatewayError) as caught:
            list(self.ask(provider, upstream, "hello", stream))
        assert "canary" not in repr(vars(caught.value))

    def test_token_repeated_in_mid_stream_is_not_quoted(
        self, provider: Provider, upstream: OpenAICompat
    ) -> None:
        upstream.script({"steps": [{"send": f'data: {{"error":{{"message":"{CANARY}"}}}}\n\n'}]})
        with pytest.raises(UpstreamError) as caught:
            list(self.ask(provider, upstream, "hello"))
        assert "canary" not in repr(vars(caught.value))
