"""The store, empty for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from services.store import Store

from .support import Desk


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with contextlib.closing(Store(store_url)) as store:
        store.run(lambda c: c.flushdb())
        yield store


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)
