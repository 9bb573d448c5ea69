"""Renewing ahead of time: a simulated week of a thousand tokens, and what is left alone."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulators.http_server import HttpServer, Reply, Request
from services.accounts.token_endpoint import TokenFailure
from services.accounts.token_store import TokenStore
from services.accounts.tokens import Renewal, TokenManager
from services.accounts.vault import open_vault
from services.core.models import Secret
from services.store import Store
from tests.accounts.support import Clock, jwt, manager, official

DAY = 86400.0
LIFETIME = 3 * DAY


class SteeredEndpoint:
    """A token endpoint whose tokens live by a steered clock and whose refresh tokens rotate."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.exchanges: Counter[str] = Counter()
        self.status = 200
        self._current: dict[str, str] = {}
        self._lock = threading.Lock()
        self.server = HttpServer(self._answer)

    def _answer(self, request: Request, reply: Reply) -> None:
        sent = str(request.json()["refresh_token"])
        name = sent.partition("/")[0]
        with self._lock:
            known = self._current.setdefault(name, name)
            self.exchanges[name] += 1
            number = self.exchanges[name]
            if self.status == 200 and sent == known:
                self._current[name] = f"{name}/{number}"
        if self.status != 200 or sent != known:
            reply.json(self.status if self.status != 200 else 400, {"error": "invalid_grant"})
            return
        access = jwt(self.clock() + LIFETIME, f"{name}/{number}")
        reply.json(200, {"access_token": access, "refresh_token": self._current[name]})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(clock: Clock) -> Iterator[SteeredEndpoint]:
    steered = SteeredEndpoint(clock)
    with steered.server:
        yield steered


@pytest.fixture
def tokens(store: Store, tmp_path: Path, endpoint: SteeredEndpoint, clock: Clock) -> TokenManager:
    return manager(store, tmp_path, official(endpoint.server.url), clock=clock)


@pytest.fixture
def renewal(store: Store, tmp_path: Path, tokens: TokenManager, clock: Clock) -> Renewal:
    return Renewal(tokens, TokenStore(store, open_vault(tmp_path)), clock)


def test_a_thousand_tokens_are_renewed_through_a_week(
    tokens: TokenManager, renewal: Renewal, endpoint: SteeredEndpoint, clock: Clock
) -> None:
    names = [f"rt-{number:04}" for number in range(1000)]
    for name in names:
        tokens.access(Secret(name))
    renewed: list[int] = []
    for _ in range(7 * 8):
        clock.now += DAY / 8
        renewed.append(renewal.run())
    asked = endpoint.exchanges.total()
    assert all(tokens.access(Secret(name)).reveal().startswith("eyJ") for name in names)
    assert endpoint.exchanges.total() == asked  # nobody had to wait for an exchange
    assert set(endpoint.exchanges.values()) == {3}  # the first, and after 2.4 to 2.85 days each
    assert sum(renewed) == 2000
    assert max(renewed) < 600  # spread over many runs


def test_token_nobody_uses_is_left_to_end(
    tokens: TokenManager, renewal: Renewal, endpoint: SteeredEndpoint, clock: Clock
) -> None:
    tokens.access(Secret("rt-idle"))
    tokens.access(Secret("rt-used"))
    for _ in range(20):
        clock.now += 2 * DAY
        tokens.access(Secret("rt-used"))
        tokens.save_missed()
        clock.now += DAY * 0.8
        renewal.run()
    idle = endpoint.exchanges["rt-idle"]
    assert 8 <= idle <= 12
    clock.now += 3 * DAY
    renewal.run()
    assert endpoint.exchanges["rt-idle"] == idle
    assert endpoint.exchanges["rt-used"] > 15


def test_failing_endpoint_is_tried_again_later_and_the_token_serves_on(
    tokens: TokenManager, renewal: Renewal, endpoint: SteeredEndpoint, clock: Clock
) -> None:
    access = tokens.access(Secret("rt-1"))
    clock.now += 2.86 * DAY
    endpoint.status = 500
    assert renewal.run() == 0
    assert renewal.run() == 0
    assert endpoint.exchanges["rt-1"] == 2
    assert tokens.access(Secret("rt-1")) == access
    endpoint.status = 200
    clock.now += 451
    assert renewal.run() == 1
    assert tokens.access(Secret("rt-1")) != access


def test_refused_token_is_not_renewed_again(
    tokens: TokenManager, renewal: Renewal, endpoint: SteeredEndpoint, clock: Clock
) -> None:
    tokens.access(Secret("rt-1"))
    clock.now += 2.86 * DAY
    endpoint.status = 401
    for _ in range(5):
        renewal.run()
        clock.now += 600
    assert endpoint.exchanges["rt-1"] == 2
    clock.now += DAY
    with pytest.raises(TokenFailure, match="refuses"):
        tokens.access(Secret("rt-1"))


def test_due_token_that_somebody_is_at_is_left_to_them(
    store: Store,
    tmp_path: Path,
    tokens: TokenManager,
    renewal: Renewal,
    endpoint: SteeredEndpoint,
    clock: Clock,
) -> None:
    tokens.access(Secret("rt-1"))
    clock.now += 2.86 * DAY
    shelf = TokenStore(store, open_vault(tmp_path))
    [digest] = shelf.due(clock(), 10)
    owner = shelf.find_and_lock(digest, 20).owner
    assert owner is not None
    renewal.run()
    assert endpoint.exchanges["rt-1"] == 1
    shelf.release(digest, owner)
    assert renewal.run() == 1
