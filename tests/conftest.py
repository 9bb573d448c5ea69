"""Fixtures shared by all tests: fake upstreams, and a gateway in front of them.

And the lookout: no test may let a canary show (see tests/canaries.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

import pytest

from emulators.openai_compat import OpenAICompat
from services.server import embedded_store
from tests.canaries import found, masked
from tests.canary_watch import Planting, StoreMonitor, watch_requests
from tests.gateway import SERVERS, GatewayProcess, RedisServer, custom

NO_SKIPS = "CAUSEWAY_NO_SKIPS"
"""Set where everything can be installed: a skipped test fails there."""

_planting = Planting()


def pytest_configure() -> None:
    _planting.begin()
    watch_requests()
    _look_at_exceptions()


def _look_at_exceptions() -> None:
    """At those that `pytest.raises` catches."""
    leave = pytest.RaisesExc.__exit__

    def look_and_leave(
        self: Any,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        __tracebackhide__ = True
        if kind is not None and kind.__module__.startswith(("services", "openai")):
            found.look_at_exception("an exception", raised)
        return leave(self, kind, raised, trace)

    pytest.RaisesExc.__exit__ = look_and_leave  # type: ignore[method-assign]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The emulators' own tests know their tokens."""
    _planting.on = not item.nodeid.startswith("tests/emulators/")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a phase in which a canary showed, and at the end one whose captured output has it."""
    report = yield
    if call.excinfo is not None and call.excinfo.type.__module__.startswith("services"):
        found.look_at_exception("an exception", call.excinfo.value)
    if call.when == "teardown":
        for name, text in report.sections:
            found.look(name.lower(), text)
    leaks = found.take()
    if report.skipped and os.environ.get(NO_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
    if leaks:
        report.sections = [(name, masked(text)) for name, text in report.sections]
        report.sections.append(("Canaries", "\n".join(leaks)))
        if report.outcome != "failed":
            report.outcome = "failed"
            report.longrepr = "\n".join(leaks)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What nobody was there to be blamed for."""
    leaks = found.take()
    if leaks:
        sys.stderr.write("\n".join(leaks) + "\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", params=SERVERS)
def program(request: pytest.FixtureRequest) -> str:
    """Each program that can be a store, for `RedisServer`."""
    return str(request.param)


@pytest.fixture(scope="session", params=["embedded", *list(SERVERS)[1:]])
def store_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A store for the whole run: the embedded one, and again each other program on PATH."""
    folder = tmp_path_factory.mktemp("store")
    with contextlib.ExitStack() as running:
        if request.param == "embedded":
            embedded = embedded_store.start(folder)
            running.callback(embedded.stop)
            url = embedded.url
        else:
            url = running.enter_context(RedisServer(folder, program=request.param)).url
        running.enter_context(StoreMonitor(url))
        yield url


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
