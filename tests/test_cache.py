"""Facts shared by all workers: through the store, past its absence, and never with an error."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import store as module
from services.server import embedded_store
from services.store import LOCAL_ENTRIES, Store, StoreCache
from tests.gateway import wait_for


@pytest.fixture
def stores(store_url: str, request: pytest.FixtureRequest) -> Iterator[list[Store]]:
    """Two processes' clients of one server."""
    made = [Store(store_url, namespace=request.node.name[:60]) for _ in range(2)]
    yield made
    for store in made:
        store.close()


def test_what_one_worker_knows_all_know(stores: list[Store]) -> None:
    one, two = map(StoreCache, stores)
    assert two.get("k") is None
    one.set("k", b"\x00\xff", 60)
    assert (one.get("k"), two.get("k")) == (b"\x00\xff", b"\x00\xff")


def test_keys_are_in_our_namespace_and_go_away_by_themselves(stores: list[Store]) -> None:
    StoreCache(stores[0]).set("k", b"v", 60)
    name = stores[0].key("cache", "k")
    left = stores[0].run(lambda c: c.pttl(name))
    assert 50_000 < int(left) <= 60_000  # type: ignore[arg-type]


def test_fact_expires_here_and_there(stores: list[Store]) -> None:
    one, two = map(StoreCache, stores)
    one.set("k", b"v", 0.2)
    time.sleep(0.3)
    assert (one.get("k"), two.get("k")) == (None, None)


def test_changed_fact_is_seen_after_the_short_memory(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCAL_SECONDS", 0.1)
    one, two = map(StoreCache, stores)
    one.set("k", b"old", 60)
    assert two.get("k") == b"old"
    one.set("k", b"new", 60)
    assert two.get("k") == b"old"
    time.sleep(0.15)
    assert two.get("k") == b"new"


def test_short_memory_asks_the_store_once(stores: list[Store]) -> None:
    cache = StoreCache(stores[0])
    cache.set("k", b"v", 60)
    stores[1].run(lambda c: c.config_resetstat())
    for _ in range(100):
        assert cache.get("k") == b"v"
    [stats] = stores[1].pipeline(lambda p: p.info("commandstats"))
    assert "cmdstat_get" not in stats


def test_nothing_is_known_and_nothing_raised_while_the_store_is_away() -> None:
    cache = StoreCache(Store(""))
    assert cache.get("k") is None
    cache.set("k", b"v", 60)
    assert cache.get("k") == b"v"


def test_own_facts_are_kept_for_their_full_time_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCAL_SECONDS", 0.05)
    running = embedded_store.start(tmp_path)
    with contextlib.closing(Store(running.url, timeout=0.5)) as store:
        cache = StoreCache(store)
        cache.set("long", b"v", 60)
        cache.set("short", b"v", 0.4)
        time.sleep(0.1)
        assert cache.get("long") == b"v"  # from the store, which tells no time of its own
        running.stop()
        time.sleep(0.1)
        assert cache.get("long") == b"v"
        wait_for(lambda: cache.get("short") is None, 2, "the end of the short fact")
        assert cache.get("long") == b"v"
        assert cache.get("never") is None


def test_deleted_fact_is_forgotten_at_the_next_look(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCAL_SECONDS", 0.05)
    cache = StoreCache(stores[0])
    cache.set("k", b"v", 60)
    stores[0].run(lambda c: c.delete(stores[0].key("cache", "k")))
    time.sleep(0.1)
    assert cache.get("k") is None


def test_memory_is_bounded_and_keeps_the_latest() -> None:
    cache = StoreCache(Store(""))
    for number in range(LOCAL_ENTRIES + 100):
        cache.set(f"k{number}", b"v", 60)
    assert len(cache._local) == LOCAL_ENTRIES
    assert cache.get("k0") is None
    assert cache.get(f"k{LOCAL_ENTRIES + 99}") == b"v"


def test_threads_that_crowd_a_full_memory_raise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCAL_ENTRIES", 2)
    cache = StoreCache(Store(""))
    failures: list[BaseException] = []

    def crowd(start: int) -> None:
        try:
            for number in range(2000):
                cache.set(f"k{(start + number) % 7}", b"v", 60)
                cache.get(f"k{number % 7}")
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=crowd, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
