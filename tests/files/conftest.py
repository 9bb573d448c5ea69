"""A real store for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.store import Store

from .stores import running_store


@pytest.fixture(scope="session")
def running() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(running: Store) -> Store:
    running.run(lambda c: c.flushdb())
    return running
