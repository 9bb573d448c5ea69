"""Pools of accounts: whose turn it is, and how faults are remembered; in the store, and without."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from services.accounts.pool import Fault, Lease, Pool
from services.accounts.pools import AccountsError, Pools, accounts_of
from services.accounts.vault import Vault
from services.config import Settings, load
from services.config.settings import AccountSetting, Group
from services.core.errors import InvalidRequest, NotFound, RateLimited, Unavailable
from services.core.models import Secret
from services.providers.refusals import _BAN_WORDS
from services.server.embedded_store import EmbeddedStore
from services.store import Store
from tests.accounts.support import Clock, killed, together
from tests.gateway import RedisServer

NOWHERE = Store("")
VAULT = Vault([Fernet.generate_key().decode()])


def setting(name: str, **fields: int) -> AccountSetting:
    return AccountSetting(
        token=Secret(f"token-of-{name}-canary7f3e"),
        name=name,
        weight=fields.get("weight", 1),
        concurrent=fields.get("concurrent", 0),
    )


@pytest.fixture(params=["store", "memory"])
def where(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A running store, and one that is away, where what both promise is tested."""
    yield request.getfixturevalue("store") if request.param == "store" else NOWHERE


IN_STORE = pytest.mark.parametrize("where", ["store"], indirect=True)
"""For the rules that hold while the store is there; see `TestWithoutStore` for the others."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Pool]


@pytest.fixture
def make(where: Store, clock: Clock) -> Make:
    def pool(*settings: AccountSetting) -> Pool:
        return Pool("web", accounts_of("web", settings), where, clock)

    return pool


def names(pool: Pool, count: int, conversation: str = "") -> list[str]:
    return [pool.lease(conversation).account.name for _ in range(count)]


def states(pool: Pool) -> dict[str, str]:
    return {view.name: view.state for view in pool.view()}


def lease_of(pool: Pool, name: str) -> Lease:
    """The next lease of this account."""
    for _ in range(10):
        lease = pool.lease()
        if lease.account.name == name:
            return lease
    raise AssertionError(f"{name} is not leased")


class TestTurns:
    def test_least_recently_used_comes_next(self, make: Make) -> None:
        pool = make(setting("a"), setting("b"), setting("c"))
        assert names(pool, 6) == ["a", "b", "c", "a", "b", "c"]

    @IN_STORE
    def test_weights_share_the_requests(self, make: Make) -> None:
        pool = make(setting("a", weight=3), setting("b"), setting("c", weight=2))
        assert Counter(names(pool, 60)) == {"a": 30, "b": 10, "c": 20}
        assert "aaa" not in "".join(names(pool, 60))

    def test_account_that_was_away_does_not_catch_up(self, make: Make, clock: Clock) -> None:
        pool = make(setting("a"), setting("b"))
        pool.strike(lease_of(pool, "a"), "cooling", 10)
        assert set(names(pool, 20)) == {"b"}
        clock.now += 11
        assert Counter(names(pool, 10))["a"] in (5, 6)

    @IN_STORE
    def test_conversation_stays_with_its_account(self, make: Make) -> None:
        pool = make(setting("a"), setting("b"), setting("c"))
        [first] = names(pool, 1, "talk-1")
        names(pool, 1)
        assert names(pool, 4, "talk-1") == [first] * 4
        pool.stick(lease_of(pool, "c"), "talk-2")
        assert names(pool, 3, "talk-2") == ["c"] * 3

    def test_conversation_moves_when_its_account_rests(self, make: Make) -> None:
        pool = make(setting("a"), setting("b"))
        pool.stick(lease_of(pool, "a"), "talk")
        pool.strike(lease_of(pool, "a"), "banned")
        assert names(pool, 3, "talk") == ["b"] * 3

    def test_tried_accounts_are_not_offered_again(self, make: Make) -> None:
        pool = make(setting("a"), setting("b"))
        first = pool.lease()
        second = pool.lease(without=[first.account.id])
        assert second.account != first.account
        with pytest.raises(Unavailable):
            pool.lease(without=[first.account.id, second.account.id])

    @IN_STORE
    def test_open_answers_are_bounded(self, make: Make, where: Store) -> None:
        pool = make(setting("a", concurrent=2))
        leases = [pool.lease(), pool.lease()]
        assert states(pool) == {"a": "busy"}
        with pytest.raises(RateLimited) as caught:
            pool.lease()
        assert caught.value.retry_after == pytest.approx(1.0)
        pool.release(leases[0])
        assert states(pool) == {"a": "ready"}
        assert pool.lease().account.name == "a"


class TestFaults:
    @IN_STORE
    def test_rest_grows_with_each_fault_in_a_row(self, make: Make, clock: Clock) -> None:
        pool = make(setting("a"))
        for rest in (120, 600, 3600, 86400, 86400):
            pool.strike(pool.lease(), "cooling")
            clock.now += rest - 1
            with pytest.raises(RateLimited) as caught:
                pool.lease()
            assert caught.value.retry_after == pytest.approx(1.0, abs=0.01)
            clock.now += 1.1

    @IN_STORE
    @pytest.mark.parametrize("fault", ["expired", "banned"])
    def test_account_that_is_refused_rests_longer_but_not_for_ever(
        self, make: Make, clock: Clock, fault: str
    ) -> None:
        pool = make(setting("a"))
        for rest in (600, 3600, 86400):
            pool.strike(pool.lease(), fault)  # type: ignore[arg-type]
            assert states(pool) == {"a": fault}
            with pytest.raises(Unavailable) as caught:
                pool.lease()
            assert caught.value.retry_after == pytest.approx(rest, abs=0.01)
            clock.now += rest + 0.1
        assert states(pool) == {"a": "ready"}

    def test_upstream_says_when(self, make: Make, clock: Clock) -> None:
        pool = make(setting("a"))
        pool.strike(pool.lease(), "cooling", 7200)
        with pytest.raises(RateLimited) as caught:
            pool.lease()
        assert caught.value.retry_after == pytest.approx(7200, abs=0.01)
        clock.now += 7201
        pool.strike(pool.lease(), "cooling", 0)  # "at once" would be a busy loop
        with pytest.raises(RateLimited):
            pool.lease()

    @IN_STORE
    def test_success_forgives(self, make: Make, clock: Clock) -> None:
        pool = make(setting("a"))
        pool.strike(pool.lease(), "cooling")
        clock.now += 121
        pool.succeeded(pool.lease())
        pool.strike(pool.lease(), "cooling")
        with pytest.raises(RateLimited) as caught:
            pool.lease()
        assert caught.value.retry_after == pytest.approx(120, abs=0.01)

    @IN_STORE
    def test_requests_under_way_together_are_one_fault(self, make: Make, clock: Clock) -> None:
        pool = make(setting("a"))
        leases = [pool.lease() for _ in range(20)]
        clock.now += 1
        for lease in leases:
            pool.strike(lease, "cooling")
        [view] = pool.view()
        assert (view.strikes, view.state) == (1, "cooling")
        assert view.until == pytest.approx(clock.now + 120, abs=0.01)

    def test_earliest_return_is_told_in_neutral_words(self, make: Make) -> None:
        pool = make(setting("a"), setting("b"), setting("c"))
        pool.strike(lease_of(pool, "a"), "cooling", 500)
        pool.strike(lease_of(pool, "b"), "banned", 300)
        pool.strike(lease_of(pool, "c"), "expired", 400)
        with pytest.raises(RateLimited) as limited:
            pool.lease()
        assert limited.value.retry_after == pytest.approx(300, abs=0.01)
        assert not _BAN_WORDS.search(limited.value.message)
        assert not any(name in limited.value.message for name in ("token", "account"))

    def test_view_shows_state_reason_and_end(self, make: Make, clock: Clock) -> None:
        pool = make(setting("a"), setting("b", weight=2))
        pool.strike(lease_of(pool, "a"), "banned", 60)
        first, second = pool.view()
        assert (first.name, first.state, first.provider) == ("a", "banned", "web")
        assert first.until == pytest.approx(clock.now + 60, abs=0.01)
        assert first.reason == "the upstream refuses it"
        assert (second.name, second.state, second.until, second.weight) == ("b", "ready", None, 2)
        assert "token-of" not in repr(pool.view()) + repr(pool.lease())


class TestWithoutStore:
    """A simpler rule, and never a laxer one."""

    def test_bounded_account_gives_one_answer_at_a_time(self, clock: Clock) -> None:
        accounts = accounts_of("web", [setting("a", concurrent=5), setting("b")])
        pool = Pool("web", accounts, NOWHERE, clock)
        held = lease_of(pool, "a")
        assert set(names(pool, 5)) == {"b"}
        pool.release(held)
        assert Counter(names(pool, 2)) == {"a": 1, "b": 1}

    @pytest.mark.parametrize("fault", ["cooling", "expired", "banned"])
    def test_fault_rests_an_account_for_ten_minutes(self, clock: Clock, fault: Fault) -> None:
        pool = Pool("web", accounts_of("web", [setting("a")]), NOWHERE, clock)
        pool.strike(pool.lease(), fault)
        assert states(pool) == {"a": fault}
        clock.now += 599
        with pytest.raises((RateLimited, Unavailable)) as caught:
            pool.lease()
        assert caught.value.retry_after == pytest.approx(1.0, abs=0.01)
        clock.now += 1.1
        assert states(pool) == {"a": "ready"}


class TestOperator:
    def test_disabled_stays_so_until_it_is_reset(
        self, make: Make, clock: Clock, where: Store
    ) -> None:
        pool = make(setting("a"))
        lease = pool.lease()
        pool.disable(lease.account.id)
        pool.strike(lease, "cooling")
        clock.now += 10 * 86400
        assert states(pool) == {"a": "disabled"}
        with pytest.raises(Unavailable) as caught:
            pool.lease()
        assert caught.value.retry_after is None
        pool.reset(lease.account.id)
        assert names(pool, 1) == ["a"]

    def test_cooling_can_be_reset(self, make: Make) -> None:
        pool = make(setting("a"))
        lease = pool.lease()
        pool.strike(lease, "cooling")
        pool.reset(lease.account.id)
        assert names(pool, 1) == ["a"]

    def test_accounts_of_all_pools_are_found_by_id(self, store: Store) -> None:
        pools = Pools(
            {name: accounts_of(name, [setting("a")]) for name in ("one", "two")}, store, VAULT
        )
        first, second = pools.accounts()
        assert first.id != second.id
        assert pools.disable(second.id).state == "disabled"
        assert [view.state for view in pools.accounts()] == ["ready", "disabled"]
        assert pools.reset(second.id).state == "ready"
        with pytest.raises(NotFound):
            pools.reset("unknown")

    def test_change_that_other_workers_cannot_hear_of_is_said(self) -> None:
        pools = Pools({"one": accounts_of("one", [setting("a")])}, NOWHERE, VAULT)
        [view] = pools.accounts()
        with pytest.raises(Unavailable, match="the store is away"):
            pools.disable(view.id)
        assert [view.state for view in pools.accounts()] == ["disabled"]


class TestAdded:
    def test_added_account_is_chosen_by_all_workers_and_lies_encrypted(self, store: Store) -> None:
        one, two = (Pools({}, store, VAULT) for _ in range(2))
        assert one.of("web") is None
        view = one.add("web", setting("a", weight=3))
        assert (view.name, view.state, view.weight, view.source) == ("a", "ready", 3, "store")
        two.refresh()
        pool = two.of("web")
        assert pool is not None
        assert pool.lease().account.token == setting("a").token
        stored: object = store.run(lambda c: c.hgetall(store.key("accounts", "added")))
        assert "token-of" not in repr(stored)

    def test_added_account_stands_beside_those_of_the_settings(self, store: Store) -> None:
        pools = Pools({"web": accounts_of("web", [setting("a")])}, store, VAULT)
        added = pools.add("web", setting("b"))
        pool = pools.of("web")
        assert pool is not None
        assert sorted(names(pool, 4)) == ["a", "a", "b", "b"]
        pools.remove(added.id)
        assert names(pool, 2) == ["a", "a"]
        [own] = pools.accounts()
        with pytest.raises(InvalidRequest, match="remove it there"):
            pools.remove(own.id)

    def test_same_token_twice_is_one_account_and_the_later_fields_count(self, store: Store) -> None:
        pools = Pools({}, store, VAULT)
        first = pools.add("web", setting("a"))
        second = pools.add("web", setting("a", weight=5))
        assert (first.id, second.weight) == (second.id, 5)
        assert len(pools.accounts()) == 1

    def test_account_of_another_key_is_left_out_and_said(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        Pools({}, store, VAULT).add("web", setting("a"))
        other = Pools({}, store, Vault([Fernet.generate_key().decode()]))
        other.refresh()
        assert other.of("web") is None
        assert "account unreadable" in caplog.text

    def test_nothing_is_added_while_the_store_is_away(self) -> None:
        with pytest.raises(Unavailable, match="the store is away"):
            Pools({}, NOWHERE, VAULT).add("web", setting("a"))


class TestShared:
    def test_two_workers_take_turns_and_share_faults(self, store: Store, clock: Clock) -> None:
        accounts = accounts_of("web", [setting("a"), setting("b"), setting("c")])
        one, two = Pool("web", accounts, store, clock), Pool("web", accounts, store, clock)
        assert names(one, 1) + names(two, 1) + names(one, 1) == ["a", "b", "c"]
        one.strike(lease_of(one, "b"), "cooling")
        assert set(names(two, 6)) == {"a", "c"}
        two.disable(lease_of(two, "a").account.id)
        assert set(names(one, 3)) == {"c"}

    def test_a_lease_is_one_command(self, store: Store) -> None:
        pool = Pool("web", accounts_of("web", [setting("a"), setting("b", concurrent=3)]), store)
        pool.lease()

        def calls() -> int:
            [stats] = store.pipeline(lambda p: p.info("commandstats"))
            return int(stats["cmdstat_evalsha"]["calls"])

        before = calls()
        for _ in range(10):
            pool.lease("talk")
        assert calls() == before + 10

    def test_bound_holds_over_many_threads(self, store: Store) -> None:
        pool = Pool("web", accounts_of("web", [setting("a", concurrent=3)]), store)
        got = together(12, pool.lease)
        assert Counter(type(result) for result in got) == {Lease: 3, RateLimited: 9}

    def test_open_answers_of_a_dead_worker_lapse_and_of_a_living_one_do_not(
        self, store: Store, clock: Clock
    ) -> None:
        accounts = accounts_of("web", [setting("a", concurrent=1)])
        one, two = Pool("web", accounts, store, clock), Pool("web", accounts, store, clock)
        lease = one.lease()
        clock.now += 80
        one.extend_open()
        clock.now += 80
        with pytest.raises(RateLimited):
            two.lease()
        clock.now += 11
        assert two.lease().id != lease.id

    def test_outage_keeps_what_this_worker_knows(
        self, server: EmbeddedStore, store: Store, clock: Clock
    ) -> None:
        pool = Pool("web", accounts_of("web", [setting("a"), setting("b")]), store, clock)
        pool.strike(lease_of(pool, "a"), "cooling")
        with killed(server, store):
            assert names(pool, 3) == ["b"] * 3
            assert states(pool) == {"a": "cooling", "b": "ready"}
        assert names(pool, 3) == ["b"] * 3

    def test_server_on_the_network_keeps_the_same_books(
        self, program: str, tmp_path: Path, clock: Clock
    ) -> None:
        with (
            RedisServer(tmp_path, program=program) as server,
            contextlib.closing(Store(server.url)) as store,
        ):
            accounts = accounts_of("web", [setting("a", concurrent=3), setting("b", weight=2)])
            pool = Pool("web", accounts, store, clock)
            assert Counter(names(pool, 3, "")) == {"a": 1, "b": 2}
            pool.strike(lease_of(pool, "b"), "cooling")
            assert states(Pool("web", accounts, store, clock)) == {"a": "ready", "b": "cooling"}
            names(pool, 1)
            with pytest.raises(RateLimited) as caught:
                pool.lease()
            assert caught.value.retry_after == pytest.approx(1.0)
            assert store.status.state == "ok"


class TestSettings:
    def test_bare_strings_objects_and_weights(self) -> None:
        one, two = accounts_of(
            "web",
            [
                AccountSetting(token=Secret("rt-1,acc-7")),
                AccountSetting(token=Secret("rt-2"), account="acc-8", weight=4, name="second"),
            ],
        )
        assert (one.token, one.workspace, one.weight) == (Secret("rt-1"), "acc-7", 1)
        assert (one.name, two.name, two.workspace, two.weight) == (
            "account 1",
            "second",
            "acc-8",
            4,
        )

    def test_an_account_comes_once_and_its_id_shows_nothing(self) -> None:
        same = [AccountSetting(token=Secret("rt-canary7f3e")) for _ in range(2)]
        [account] = accounts_of("web", same)
        assert "canary" not in account.id + repr(account)
        [elsewhere] = accounts_of("other", same[:1])
        assert elsewhere.id != account.id

    def test_file_of_lines_and_of_json(self, tmp_path: Path) -> None:
        path = tmp_path / "accounts"
        path.touch(0o600)
        path.write_text("# two of them\nrt-1\n\nrt-2,acc-9\n")
        lines = accounts_of("web", [], str(path))
        assert [(a.token.reveal(), a.workspace) for a in lines] == [
            ("rt-1", None),
            ("rt-2", "acc-9"),
        ]
        path.write_text(json.dumps(["rt-3", {"token": "rt-4", "weight": 5}]))
        assert [a.weight for a in accounts_of("web", [], str(path))] == [1, 5]

    @pytest.mark.parametrize(
        "text", ['[{"token": 7}]', '["canary"', '[{"toke": "canary"}]', "[[]]", '[{"token": ""}]']
    )
    def test_wrong_file_is_named_and_not_quoted(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "accounts"
        path.touch(0o600)
        path.write_text(text)
        with pytest.raises(AccountsError, match="accounts: (line|an entry)") as caught:
            accounts_of("web", [], str(path))
        assert "canary" not in str(caught.value)

    def test_file_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "accounts"
        path.write_text("rt-1")
        path.chmod(0o644)
        with pytest.raises(AccountsError, match="chmod 600"):
            accounts_of("web", [], str(path))
        with pytest.raises(AccountsError, match="cannot read"):
            accounts_of("web", [], str(tmp_path / "none"))

    def test_pools_come_from_the_settings_of_providers(self, tmp_path: Path) -> None:
        path = tmp_path / "config.json"
        accounts = ["rt-1", {"token": "rt-2", "weight": 2}]
        path.write_text(json.dumps({"providers": {"web": {"accounts": accounts}}}))
        settings = load(path, {}, {"web": Web})
        pools = Pools.from_settings(settings, NOWHERE, VAULT)
        assert [view.weight for view in pools.accounts()] == [1, 2]
        environ = {"PROVIDERS_WEB_ACCOUNTS": '["rt-3"]'}
        settings = load(None, environ, {"web": Web})
        [view] = Pools.from_settings(settings, NOWHERE, VAULT).accounts()
        assert view.provider == "web"
        assert Pools.from_settings(Settings(), NOWHERE, VAULT).of("web") is None


class Web(Group, frozen=True, kw_only=True):
    """Settings of a provider with accounts."""

    accounts: tuple[AccountSetting, ...] = ()
    accounts_file: str = ""
