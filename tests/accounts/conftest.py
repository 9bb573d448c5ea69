"""A store and a token endpoint of its own for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulators.backend_api import BackendApi
from services.server import embedded_store
from services.server.embedded_store import EmbeddedStore
from services.store import Store
from tests.canary_watch import StoreMonitor


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """An embedded server of its own."""
    running = embedded_store.start(tmp_path / "data")
    with StoreMonitor(running.url):
        yield running
    running.stop()


@pytest.fixture
def store(server: EmbeddedStore) -> Iterator[Store]:
    """A client of it."""
    with contextlib.closing(Store(server.url, timeout=0.5)) as client:
        yield client


@pytest.fixture
def endpoint() -> Iterator[BackendApi]:
    """The emulator with its token endpoints."""
    with BackendApi(seed=1) as upstream:
        yield upstream
        assert upstream.errors == []
        assert upstream.problems == []
