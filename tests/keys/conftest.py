"""The embedded store, empty for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from services import embedded_store
from services.embedded_store import EmbeddedStore
from services.store import Store
from tests.canary_watch import StoreMonitor

from .support import Desk


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    running = embedded_store.start(tmp_path_factory.mktemp("store"))
    with StoreMonitor(running.url):
        yield running
    running.stop()


@pytest.fixture
def store(server: EmbeddedStore) -> Iterator[Store]:
    with contextlib.closing(Store(server.url)) as store:
        store.run(lambda c: c.flushdb())
        yield store


@pytest.fixture
def desk(store: Store) -> Iterator[Desk]:
    desk = Desk(store)
    yield desk
    desk.gatekeeper.close()
