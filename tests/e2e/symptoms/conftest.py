"""One upstream and one gateway before it for each file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulators.backend_api import BackendApi
from tests.gateway import GatewayProcess

from .support import settings_for


@pytest.fixture(scope="module")
def upstream_of_file() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def bridge(
    upstream_of_file: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("bridge")
    with GatewayProcess(folder, settings_for(upstream_of_file)) as process:
        yield process


@pytest.fixture
def web(upstream_of_file: BackendApi) -> Iterator[BackendApi]:
    """The upstream with an empty log; whatever it was asked must have been in order."""
    with upstream_of_file.state.lock:
        upstream_of_file.state.calls.clear()
        upstream_of_file.state.counters.clear()
        upstream_of_file.state.scripts.clear()
    yield upstream_of_file
    assert upstream_of_file.problems == []
    assert upstream_of_file.errors == []
