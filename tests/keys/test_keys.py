"""Keys: made, shown once, changed, revoked, and what a record lets its holder do."""

from __future__ import annotations

import time

import pytest

from services.config import GatewayKeySetting
from services.core.errors import InvalidRequest, NotFound, PermissionDenied, Unauthorized
from services.core.models import Secret
from services.keys import KeyChanges, KeyLookup, KeyRecord, Limits, NewKey
from services.keys.records import PREFIX, LimitChanges, digest_of, read_record
from services.store import Store
from tests.gateway import wait_for

from .support import Desk, client

CONFIGURED = GatewayKeySetting(key=Secret("sk-configured-canary7f3e-0123456789"), name="relay")
UPSTREAM = "sk-upstream-own-canary7f3e"


def everything_in(store: Store) -> bytes:
    """Every name and value in the store."""
    names = client(store).keys("*")
    kinds = {"string": "get", "hash": "hgetall", "list": "lrange", "zset": "zrange"}
    found = []
    for name in names:
        kind = client(store).type(name).decode()
        bounds = (0, -1) if kind in ("list", "zset") else ()
        found.append(getattr(client(store), kinds[kind])(name, *bounds))
    return repr((names, found)).encode()


class TestEditing:
    def test_key_is_random_shown_once_and_nowhere_in_the_store(
        self, desk: Desk, store: Store
    ) -> None:
        keys = {desk.editor.create(NewKey(name=f"bot {n}"))[0] for n in range(20)}
        wanted = NewKey(name="own", provider_keys={"custom": UPSTREAM})
        key, record = desk.editor.create(wanted)
        desk.admit(key).done("ok")
        assert len(keys) == 20
        assert all(k.startswith(PREFIX) and len(k) == len(PREFIX) + 43 for k in keys)
        kept = everything_in(store)
        assert b"own" in kept
        for secret in (*keys, key, UPSTREAM):
            assert secret.removeprefix(PREFIX).encode() not in kept
        assert record.hint == key[-4:]
        assert desk.editor.get(record.id) == record

    def test_name_belongs_to_one_living_key(self, store: Store) -> None:
        desk = Desk(store, [CONFIGURED])
        _, record = desk.key("bot")
        for name in ("bot", "relay"):
            with pytest.raises(InvalidRequest) as caught:
                desk.key(name)
            assert (caught.value.status, caught.value.code) == (409, "name_taken")
        desk.editor.revoke(record.id)
        desk.key("bot")

    def test_list_has_settings_first_then_stored_ones_by_age(self, store: Store) -> None:
        desk = Desk(store, [CONFIGURED])
        for name in ("one", "two", "three"):
            desk.key(name)
        records = desk.editor.records()
        assert [record.name for record in records] == ["relay", "one", "two", "three"]
        assert records[0].source == "settings"
        assert records[0].id == "settings:relay"
        assert desk.editor.get("settings:relay") == records[0]

    def test_change_touches_what_it_names(self, desk: Desk) -> None:
        wanted = NewKey(
            name="bot",
            limits=Limits(requests_per_minute=5, tokens_per_day=9),
            models=("a*",),
            provider_keys={"one": "first", "two": "second"},
        )
        _, before = desk.editor.create(wanted)
        changes = KeyChanges(
            limits=LimitChanges(requests_per_minute=None, requests_per_day=7),
            profile="bot",
            provider_keys={"one": None, "three": "third"},
        )
        after = desk.editor.change(before.id, changes)
        assert after.limits == Limits(tokens_per_day=9, requests_per_day=7)
        assert (after.models, after.profile, after.name) == (("a*",), "bot", "bot")
        assert set(after.provider_keys) == {"two", "three"}
        assert desk.control.credential(after, "three").token == Secret("third")
        assert desk.editor.get(before.id) == after

    def test_changed_limit_holds_at_the_next_request(self, desk: Desk) -> None:
        key, record = desk.key(requests_per_minute=5)
        desk.admit(key)
        desk.editor.change(record.id, KeyChanges(limits=LimitChanges(requests_per_minute=100)))
        assert desk.admit(key).headers["x-ratelimit-remaining-requests"] == "98"

    def test_revoked_key_is_refused_at_once_where_limits_are_counted(
        self, desk: Desk, store: Store
    ) -> None:
        key, record = desk.key(requests_per_minute=5)
        elsewhere = Desk(store)
        elsewhere.admit(key).done("ok")
        desk.editor.revoke(record.id)
        for one in (desk, elsewhere):
            with pytest.raises(Unauthorized, match="incorrect API key"):
                one.admit(key)
        assert desk.book.find(digest_of(key)) is None
        assert desk.editor.get(record.id).revoked is not None
        with pytest.raises(InvalidRequest, match="revoked"):
            desk.editor.change(record.id, KeyChanges(always_usage=True))

    def test_revoked_unlimited_key_is_refused_once_memory_fades(self, store: Store) -> None:
        desk, elsewhere = Desk(store), Desk(store)
        elsewhere.book._fresh = 0.2
        key, record = desk.key()
        elsewhere.admit(key).done("ok")
        desk.editor.revoke(record.id)
        wait_for(lambda: elsewhere.book.recognise(key) is None, 2.0)
        with pytest.raises(Unauthorized):
            elsewhere.admit(key)

    def test_revoked_key_is_forgotten_with_its_usage(self, desk: Desk, store: Store) -> None:
        key, record = desk.key()
        desk.editor.revoke(record.id)
        name = store.key("key", f"{{{digest_of(key).hex()}}}", "record")
        left = client(store).ttl(name)
        assert 89 * 86_400 < left <= 90 * 86_400
        client(store).delete(name)
        assert desk.editor.records() == []
        with pytest.raises(NotFound):
            desk.editor.get(record.id)

    def test_keys_of_the_settings_are_read_only(self, store: Store) -> None:
        desk = Desk(store, [CONFIGURED])
        with pytest.raises(InvalidRequest, match="stands in the settings"):
            desk.editor.revoke("settings:relay")
        with pytest.raises(NotFound):
            desk.editor.revoke("settings:nobody")


class TestRecognition:
    def test_key_of_the_settings_is_known_without_the_store(self) -> None:
        desk = Desk(Store(""), [CONFIGURED])
        record = desk.book.recognise("sk-configured-canary7f3e-0123456789")
        assert record is not None
        assert (record.name, record.hint, record.limits.any) == ("relay", "6789", False)
        assert desk.book.recognise("sk-configured-canary7f3e-012345678X") is None
        admission = desk.admit("sk-configured-canary7f3e-0123456789")
        assert admission.record == record
        assert admission.headers == {}

    def test_book_without_a_store_knows_the_settings_only(self) -> None:
        book = KeyLookup(None, [CONFIGURED])
        assert book.recognise("sk-configured-canary7f3e-0123456789") is not None
        assert book.recognise(f"{PREFIX}one") is None

    def test_unknown_key_of_our_making_never_goes_upstream(self, desk: Desk) -> None:
        for _ in range(2):  # the second time from memory
            with pytest.raises(Unauthorized):
                desk.admit(PREFIX + "x" * 43)
        assert desk.book.recognise(PREFIX + "x" * 43) is None

    def test_memory_of_wrong_keys_is_bounded(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.keys.lookup.MOST_REMEMBERED", 10)
        for number in range(30):
            desk.book.recognise(f"{PREFIX}{number}")
        assert len(desk.book._memory) == 10

    def test_record_reads_what_a_newer_version_wrote(self) -> None:
        raw = b'{"id":"key_1","name":"n","hint":"h","created":1.0,"from_the_future":true}'
        assert read_record(raw).limits == Limits()


class TestPermission:
    @pytest.mark.parametrize(
        ("patterns", "model", "allowed"),
        [
            ((), "anything", True),
            (("gpt-4o",), "gpt-4o", True),
            (("gpt-4o",), "gpt-4o-mini", False),
            (("gpt-4o*",), "gpt-4o-mini", True),
            (("up/*", "small"), "small", True),
            (("*-mini",), "o1-mini", True),
            (("*-mini",), "O1-MINI", False),
            (("a?c",), "abc", False),
            (("a[b]c",), "abc", False),
            (("a[b]*",), "a[b]c", True),
        ],
    )
    def test_patterns(self, patterns: tuple[str, ...], model: str, allowed: bool) -> None:
        record = KeyRecord("key_1", "n", "h", time.time(), models=patterns)
        assert record.allows(model) is allowed

    def test_model_that_is_not_allowed_is_a_403_and_frees_the_place(self, desk: Desk) -> None:
        wanted = NewKey(name="b", models=("small",), limits=Limits(concurrent_streams=1))
        key, _ = desk.editor.create(wanted)
        for _ in range(3):
            with pytest.raises(PermissionDenied) as caught, desk.admit(key) as admission:
                admission.permit("large")
        assert (caught.value.status, caught.value.param) == (403, "model")
        assert "permission" not in caught.value.message
