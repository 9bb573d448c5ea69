"""Fixtures shared by all tests: fake upstreams, and a gateway in front of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulators.openai_compat import OpenAICompat
from tests.gateway import GatewayProcess, custom


@pytest.fixture(scope="session")
def openai_upstream() -> Iterator[OpenAICompat]:
    """One scripted OpenAI-compatible upstream for the whole run."""
    with OpenAICompat() as upstream:
        yield upstream


@pytest.fixture
def upstream(openai_upstream: OpenAICompat) -> OpenAICompat:
    """That upstream with an empty log."""
    openai_upstream.reset()
    return openai_upstream


@pytest.fixture(scope="session")
def gateway_process(
    openai_upstream: OpenAICompat, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One gateway before that upstream: two gevent workers."""
    settings = custom(openai_upstream.base_url, models=["emu-small"])
    settings |= {
        "process_workers": 2,
        "server": {"commit_window": 2, "keepalive_interval": 1, "first_byte_timeout": 20},
    }
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), settings) as process:
        yield process


@pytest.fixture
def gateway(gateway_process: GatewayProcess, upstream: OpenAICompat) -> GatewayProcess:
    """That gateway, its upstream's log empty."""
    return gateway_process
