"""Refresh tokens become access tokens, once for all, on a real store and real endpoints."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from emulators.backend_api import BackendApi
from services import transport
from services.accounts.pool import split_account
from services.accounts.token_endpoint import Granted, TokenFailure, refresher_of
from services.accounts.token_store import TokenRecord, TokenStore, expiry
from services.accounts.tokens import TokenManager
from services.accounts.vault import hashed, open_vault
from services.config import RefreshToAccess
from services.core.models import Secret
from services.server.embedded_store import EmbeddedStore
from services.store import Store
from tests.accounts.support import (
    Clock,
    Monitor,
    jwt,
    killed,
    manager,
    official,
    results_of,
    start_workers,
    together,
)
from tests.gateway import ROOT, RedisServer, wait_for

ALICE = Secret("rt-alice-canary7f3e")

IN_GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, sys
from pathlib import Path
from services import transport
from services.accounts.token_endpoint import refresher_of
from services.accounts.token_store import TokenFiles, TokenStore
from services.accounts.tokens import TokenManager
from services.accounts.vault import open_vault
from services.config import RefreshToAccess
from services.core.models import Secret
from services.store import Store
folder = Path(sys.argv[2])
vault = open_vault(folder)
store = TokenStore(Store(sys.argv[1]), vault)
group = RefreshToAccess(oauth_token_url=sys.argv[3] + "/oauth/token")
refresher = refresher_of(group, transport.Transport())
tokens = TokenManager(store, refresher, TokenFiles(folder / "tokens", vault))
jobs = [gevent.spawn(tokens.access, Secret("rt-alice-canary7f3e")) for _ in range(20)]
ticks = 0
while not all(job.ready() for job in jobs): gevent.sleep(0.01); ticks += 1
assert ticks > 10, ticks
print(len({job.get() for job in jobs}), len(jobs))
"""
DAY = 86400.0


@pytest.fixture
def tokens(store: Store, tmp_path: Path, endpoint: BackendApi) -> TokenManager:
    return manager(store, tmp_path, official(endpoint.url))


def another(store: Store, tmp_path: Path, endpoint: BackendApi, **options: object) -> TokenManager:
    """The token manager of another worker."""
    return manager(store, tmp_path, official(endpoint.url), **options)


def exchanges(endpoint: BackendApi) -> int:
    return endpoint.count("oauth_token")


def reason(tokens: TokenManager, token: Secret = ALICE, not_this: Secret | None = None) -> str:
    with pytest.raises(TokenFailure) as caught:
        tokens.access(token, not_this)
    return caught.value.reason


class TestExchange:
    def test_access_token_is_passed_as_it_is(
        self, tokens: TokenManager, endpoint: BackendApi
    ) -> None:
        access = Secret(jwt(time.time() - 5))
        assert tokens.access(access) == access
        assert exchanges(endpoint) == 0

    @pytest.mark.parametrize("form", ["oauth_token", "applelogin", "ninja_refresh"])
    def test_each_form_gives_a_token(
        self, store: Store, tmp_path: Path, endpoint: BackendApi, form: str
    ) -> None:
        groups = {
            "oauth_token": official(endpoint.url),
            "applelogin": RefreshToAccess(
                enableOai=False, xyhelper_refreshToAccess_Url=f"{endpoint.url}/applelogin"
            ),
            "ninja_refresh": RefreshToAccess(
                enableOai=False, ninja_refreshToAccess_Url=f"{endpoint.url}/ninja/refresh"
            ),
        }
        access = manager(store, tmp_path, groups[form]).access(ALICE)
        assert access.reveal() == endpoint.accounts["alice"].access_token
        assert [call.endpoint for call in endpoint.log] == [form]

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            ({"answer": "400"}, "refused"),
            ({"status": 401, "body": {"error": "invalid_grant"}}, "refused"),
            ({"answer": "html"}, "nonsense"),
            ({"answer": "html", "status": 200}, "nonsense"),
            ({"answer": "no_token"}, "nonsense"),
            ({"answer": "not_json"}, "nonsense"),
            ({"status": 200, "body": {"access_token": "two words"}}, "nonsense"),
            ({"status": 200, "body": {"access_token": {"x": 1}}}, "nonsense"),
            ({"answer": None, "lifetime": -10}, "nonsense"),
            ({"status": 429, "body": {}}, "limited"),
            ({"status": 500, "body": "oops"}, "failing"),
            ({"answer": "reset"}, "unreachable"),
            ({"answer": "cut"}, "unreachable"),
            ({"answer": "timeout"}, "unreachable"),
        ],
    )
    def test_failure_is_told_by_its_reason_and_not_repeated_at_once(
        self,
        store: Store,
        tmp_path: Path,
        endpoint: BackendApi,
        entry: dict[str, object],
        expected: str,
    ) -> None:
        clock = Clock()
        tokens = another(store, tmp_path, endpoint, clock=clock)
        endpoint.script({"endpoint": "oauth_token", **entry})
        assert reason(tokens) == expected
        assert reason(tokens) == expected
        assert reason(another(store, tmp_path, endpoint)) == expected
        assert exchanges(endpoint) == 1
        clock.now += 31
        store.run(lambda c: c.delete(store.key("token", f"{{{hashed(ALICE.reveal())}}}", "failed")))
        assert tokens.access(ALICE).reveal() == endpoint.accounts["alice"].access_token

    def test_failure_goes_away_by_itself_after_half_a_minute(
        self, store: Store, tokens: TokenManager, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "oauth_token", "answer": "400"})
        assert reason(tokens) == "refused"
        name = store.key("token", f"{{{hashed(ALICE.reveal())}}}", "failed")
        assert 25_000 < int(str(store.run(lambda c: c.pttl(name)))) <= 30_000

    def test_without_an_endpoint_nothing_is_exchanged(self, store: Store, tmp_path: Path) -> None:
        tokens = manager(store, tmp_path, RefreshToAccess())
        assert reason(tokens) == "unconfigured"
        assert reason(manager(store, tmp_path, RefreshToAccess(enableOai=False))) == "unconfigured"

    def test_token_that_fits_in_no_header_is_refused(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        group = RefreshToAccess(
            enableOai=False, ninja_refreshToAccess_Url=f"{endpoint.url}/ninja/refresh"
        )
        assert reason(manager(store, tmp_path, group), Secret("ключ\n")) == "refused"
        assert endpoint.log == []

    def test_opaque_access_token_lasts_as_long_as_the_endpoint_says(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        clock = Clock()
        tokens = another(store, tmp_path, endpoint, clock=clock)
        body = {"access_token": "opaque-1", "expires_in": 1000}
        endpoint.script({"endpoint": "oauth_token", "status": 200, "body": body})
        assert tokens.access(ALICE).reveal() == "opaque-1"
        clock.now += 699
        assert tokens.access(ALICE).reveal() == "opaque-1"
        clock.now += 2
        assert tokens.access(ALICE).reveal() == endpoint.accounts["alice"].access_token


class TestUse:
    def test_known_token_costs_no_round_trip_and_in_another_worker_one(
        self, store: Store, tokens: TokenManager, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        access = tokens.access(ALICE)
        other = another(store, tmp_path, endpoint)

        def commands() -> int:
            [stats] = store.pipeline(lambda p: p.info("commandstats"))
            return sum(s["calls"] for name, s in stats.items() if not name.endswith("info"))

        before = commands()
        assert [tokens.access(ALICE) for _ in range(50)] == [access] * 50
        assert commands() == before
        assert [other.access(ALICE) for _ in range(50)] == [access] * 50
        assert commands() == before + 1
        assert exchanges(endpoint) == 1

    @pytest.mark.parametrize(
        ("lifetime", "usable"), [(10 * DAY, 8 * DAY), (2 * DAY, 2 * DAY - 300), (60, 30)]
    )
    def test_access_token_serves_until_shortly_before_its_end_and_eight_days_at_most(
        self, store: Store, tmp_path: Path, endpoint: BackendApi, lifetime: float, usable: float
    ) -> None:
        clock = Clock()
        tokens = another(store, tmp_path, endpoint, clock=clock)
        endpoint.script({"endpoint": "oauth_token", "lifetime": lifetime})
        first = tokens.access(ALICE)
        clock.now += usable - 2
        assert tokens.access(ALICE) == first
        clock.now += 3
        assert tokens.access(ALICE) != first

    def test_refused_access_token_is_replaced_once_for_all(
        self, store: Store, tokens: TokenManager, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        old = tokens.access(ALICE)
        other = another(store, tmp_path, endpoint)
        other.access(ALICE)
        got = together(10, lambda: tokens.access(ALICE, not_this=old))
        got += together(10, lambda: other.access(ALICE, not_this=old))
        assert {type(result) for result in got} == {Secret}
        assert len(set(got)) == 1
        assert got[0] != old
        assert exchanges(endpoint) == 2

    def test_upstream_that_refuses_fresh_tokens_too_causes_no_storm(
        self, tokens: TokenManager, endpoint: BackendApi
    ) -> None:
        second = tokens.access(ALICE, not_this=tokens.access(ALICE))
        assert [reason(tokens, not_this=second) for _ in range(5)] == ["refused"] * 5
        assert exchanges(endpoint) == 2
        assert tokens.access(ALICE) == second

    def test_account_after_a_comma(self) -> None:
        assert split_account("rt-1,acc-2") == ("rt-1", "acc-2")
        assert split_account("rt-1") == ("rt-1", None)
        assert split_account("rt-1, ") == ("rt-1", None)

    def test_expiry_is_read_from_a_token_or_unknown(self) -> None:
        assert expiry(jwt(12345)) == 12345.0
        for text in (
            "eyJ",
            "eyJ.a.b",
            "eyJ.e30.x",
            "eyJ.bnVsbA.x",
            "a.\0.c",
            "eyJ.eyJleHAiOiJ4In0.x",
        ):
            assert expiry(text) is None


class TestRotation:
    def test_new_refresh_token_is_found_by_the_old_one_which_is_never_used_again(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.state.rotate_refresh = True
        for generation in range(3):
            clock = Clock(time.time() + 9 * DAY * generation)
            endpoint.script({"endpoint": "oauth_token", "lifetime": 9 * DAY * (generation + 1)})
            another(store, tmp_path, endpoint, clock=clock).access(ALICE)
        sent = [call.json["refresh_token"] for call in endpoint.calls("oauth_token")]
        assert sent == ["rt-alice-canary7f3e", "rt-alice-1-canary7f3e", "rt-alice-2-canary7f3e"]

    def test_newest_refresh_token_leads_to_the_same_line(
        self, store: Store, tokens: TokenManager, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.state.rotate_refresh = True
        access = tokens.access(ALICE)
        other = another(store, tmp_path, endpoint)
        assert other.access(Secret("rt-alice-1-canary7f3e")) == access
        assert other.access(Secret("rt-alice-1-canary7f3e")) == access
        assert other.access(Secret("rt-alice-1-canary7f3e"), access) == tokens.access(ALICE, access)
        assert exchanges(endpoint) == 2

    def test_new_refresh_token_is_stored_before_the_access_token_is_given_out(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.state.rotate_refresh = True
        shelf = TokenStore(store, open_vault(tmp_path))
        access = another(store, tmp_path, endpoint).access(ALICE)
        record = shelf.find(hashed("rt-alice-canary7f3e")).record
        assert record is not None
        assert (record.refresh, record.access) == ("rt-alice-1-canary7f3e", access.reveal())

    def test_new_refresh_token_counts_though_the_access_token_had_ended(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        clock = Clock()
        tokens = another(store, tmp_path, endpoint, clock=clock)
        endpoint.script({"endpoint": "oauth_token", "answer": "rotated", "lifetime": -10})
        assert reason(tokens) == "nonsense"
        clock.now += 31
        store.run(lambda c: c.delete(store.key("token", f"{{{hashed(ALICE.reveal())}}}", "failed")))
        tokens.access(ALICE)
        assert endpoint.calls("oauth_token")[-1].json["refresh_token"] == "rt-alice-1-canary7f3e"

    def test_store_that_lost_its_data_gets_the_newest_back(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.state.rotate_refresh = True
        clock = Clock()
        tokens = another(store, tmp_path, endpoint, clock=clock)
        access = tokens.access(ALICE)
        store.run(lambda c: c.flushdb())
        clock.now += 61
        assert tokens.access(ALICE) == access
        assert another(store, tmp_path, endpoint).access(ALICE) == access
        assert exchanges(endpoint) == 1


class TestManyWorkers:
    def test_forty_requests_in_four_processes_make_one_exchange(
        self, server: EmbeddedStore, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.state.rotate_refresh = True
        endpoint.script({"endpoint": "oauth_token", "delay": 0.3})
        workers = start_workers(
            4, server.url, str(tmp_path), endpoint.url, ALICE.reveal(), "10", "20"
        )
        got = results_of(workers)
        assert [len(results) for results in got] == [10] * 4
        assert {access for results in got for access in results} == {
            endpoint.accounts["alice"].access_token
        }
        assert exchanges(endpoint) == 1

    def test_failure_is_one_exchange_too(
        self, server: EmbeddedStore, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "oauth_token", "answer": "400", "delay": 0.2, "times": 0})
        got = results_of(
            start_workers(3, server.url, str(tmp_path), endpoint.url, ALICE.reveal(), "7", "20")
        )
        words = {text for results in got for text in results}
        assert words == {"the token endpoint refuses this refresh token"}
        assert exchanges(endpoint) == 1

    def test_twenty_parallel_requests_make_one_exchange(
        self, tokens: TokenManager, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "oauth_token", "delay": 0.2})
        assert len(set(together(20, lambda: tokens.access(ALICE)))) == 1
        assert exchanges(endpoint) == 1

    def test_lock_of_a_worker_that_died_lapses(
        self, server: EmbeddedStore, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "oauth_token", "answer": "timeout"})
        arguments = (server.url, str(tmp_path), endpoint.url, ALICE.reveal(), "3", "0.8")
        [dying, waiting] = start_workers(2, *arguments)
        assert dying.stdin is not None
        dying.stdin.write("go\n")
        dying.stdin.flush()
        assert endpoint.wait(lambda: exchanges(endpoint) == 1)
        dying.kill()
        dying.communicate()
        assert results_of([waiting]) == [[endpoint.accounts["alice"].access_token] * 3]
        assert exchanges(endpoint) == 2

    def test_waiting_for_a_lock_ends(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        name = store.key("token", f"{{{hashed(ALICE.reveal())}}}", "lock")
        store.run(lambda c: c.set(name, "somebody", px=60_000))
        assert reason(another(store, tmp_path, endpoint, patience=0.3)) == "busy"
        assert store.run(lambda c: c.get(name)) == b"somebody"
        assert exchanges(endpoint) == 0

    def test_greenlets_share_an_exchange_and_do_not_block(
        self, server: EmbeddedStore, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "oauth_token", "delay": 0.3})
        done = subprocess.run(
            [sys.executable, "-c", IN_GEVENT, server.url, str(tmp_path), endpoint.url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout.strip(), done.stderr) == ("1 20", "")
        assert exchanges(endpoint) == 1


class TestOutage:
    def test_killed_store_stops_nobody_and_causes_no_storm(
        self,
        server: EmbeddedStore,
        store: Store,
        tokens: TokenManager,
        tmp_path: Path,
        endpoint: BackendApi,
    ) -> None:
        access = tokens.access(ALICE)
        other = another(store, tmp_path, endpoint)
        with killed(server, store):
            assert set(together(20, lambda: tokens.access(ALICE))) == {access}
            fresh = tokens.access(ALICE, not_this=access)
            bob = tokens.access(Secret("rt-bob-canary7f3e"))
            assert store.status.state == "away"
        tokens.save_missed()
        assert set(together(20, lambda: other.access(ALICE))) == {fresh}
        assert other.access(Secret("rt-bob-canary7f3e")) == bob
        assert exchanges(endpoint) == 3

    def test_rotated_token_got_during_an_outage_is_stored_with_the_next_use(
        self,
        server: EmbeddedStore,
        store: Store,
        tokens: TokenManager,
        tmp_path: Path,
        endpoint: BackendApi,
    ) -> None:
        endpoint.state.rotate_refresh = True
        with killed(server, store):
            access = tokens.access(ALICE)
        tokens.access(Secret("rt-bob-canary7f3e"))
        assert another(store, tmp_path, endpoint).access(ALICE) == access
        sent = [call.json["refresh_token"] for call in endpoint.calls("oauth_token")]
        assert sent == ["rt-alice-canary7f3e", "rt-bob-canary7f3e"]

    def test_worker_that_ends_during_an_outage_loses_no_token_and_its_sibling_exchanges_none(
        self,
        server: EmbeddedStore,
        store: Store,
        tokens: TokenManager,
        tmp_path: Path,
        endpoint: BackendApi,
    ) -> None:
        endpoint.state.rotate_refresh = True
        with killed(server, store):
            access = tokens.access(ALICE)
            sibling = another(store, tmp_path, endpoint)
            assert sibling.access(ALICE) == access
        (kept,) = (tmp_path / "data" / "tokens").glob("[0-9a-f]*[0-9a-f]")
        assert kept.stat().st_mode & 0o077 == 0
        assert b"canary" not in kept.read_bytes()
        assert access.reveal().encode() not in kept.read_bytes()
        later = another(store, tmp_path, endpoint)
        later.save_missed()
        assert later.access(ALICE) == access
        assert exchanges(endpoint) == 1
        assert list((tmp_path / "data" / "tokens").iterdir()) == []

    def test_memory_serves_while_the_server_is_killed_and_restarted(
        self, program: str, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        with (
            RedisServer(tmp_path / "redis", program=program) as redis,
            contextlib.closing(Store(redis.url, timeout=0.5)) as store,
        ):
            clock = Clock()
            tokens = another(store, tmp_path, endpoint, clock=clock)
            access = tokens.access(ALICE)
            redis.kill()
            clock.now += 61  # the memory is not fresh any more
            assert set(together(20, lambda: tokens.access(ALICE))) == {access}
            assert store.status.state == "away"
            redis.start()
            wait_for(lambda: store.probe().state == "ok")
            other = another(store, tmp_path, endpoint)
            assert set(together(20, lambda: other.access(ALICE))) == {access}
        assert exchanges(endpoint) == 1

    def test_server_on_the_network_has_one_exchange_over_processes_too(
        self, program: str, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        with RedisServer(tmp_path / "redis", program=program) as redis:
            arguments = (redis.url, str(tmp_path), endpoint.url, ALICE.reveal(), "5", "20")
            got = results_of(start_workers(2, *arguments))
        assert {access for results in got for access in results} == {
            endpoint.accounts["alice"].access_token
        }
        assert exchanges(endpoint) == 1

    def test_replaced_key_makes_records_unknown_and_nothing_worse(
        self, store: Store, tmp_path: Path, tokens: TokenManager, endpoint: BackendApi
    ) -> None:
        tokens.access(ALICE)
        other = another(store, tmp_path / "other", endpoint)
        assert other.access(ALICE).reveal() == endpoint.accounts["alice"].access_token
        assert exchanges(endpoint) == 2


class TestSecrets:
    def test_canary_is_nowhere_to_be_seen(
        self,
        store: Store,
        tmp_path: Path,
        endpoint: BackendApi,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        canary = "rt-canary7f3e-0123456789abcdef-do-not-show"
        endpoint.accounts["alice"].refresh_token = canary
        monitor = Monitor(store)
        seen = [canary]
        told = ""
        endpoint.script({"endpoint": "oauth_token", "answer": "rotated"})
        tokens = another(store, tmp_path, endpoint)
        for not_this in (None, None, Secret("another")):
            seen.append(tokens.access(Secret(canary), not_this).reveal())
        seen.append(endpoint.accounts["alice"].refresh_token)
        body = {"error": f"bad token {canary}"}
        endpoint.script({"endpoint": "oauth_token", "status": 400, "body": body})
        for bad in (Secret(canary + "-bad"), Secret(canary + "-worse")):
            with pytest.raises(TokenFailure) as caught:
                tokens.access(bad)
            told += "".join(traceback.format_exception(caught.value))
            told += repr(caught.value.as_error(True)) + caught.value.as_error(False).message
        shelf = TokenStore(store, open_vault(tmp_path))
        found = shelf.find(hashed(canary))
        told += repr(found) + repr(tokens) + repr(vars(tokens)) + repr(shelf)
        told += repr(Granted(Secret(canary))) + repr(TokenRecord(refresh=canary, access=canary))
        store.run(lambda c: c.set("end", "of-it"))
        told += monitor.read("of-it") + caplog.text
        monitor.close()
        assert "causeway:token:" in told
        assert "token exchange failed" in told
        for secret in seen:
            assert len(secret) >= 10
            assert secret not in told

    def test_refresher_shows_nothing(self, endpoint: BackendApi) -> None:
        refresher = refresher_of(official(endpoint.url), transport.Transport())
        unknown = Secret("rt-canary7f3e-unknown-to-all")
        with pytest.raises(TokenFailure) as caught:
            refresher.exchange(unknown)
        assert caught.value.__cause__ is None
        assert "canary" not in "".join(traceback.format_exception(caught.value))
