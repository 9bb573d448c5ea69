"""Files that callers keep: owners, limits, lifetimes, and a store that is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.core.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from services.core.models import Caller, Credential, Secret
from services.files.uploads import UserFiles, owner_of
from services.store import Store
from tests.gateway import free_port

from .support import Clock, local_cache


def uploads(folder: Path) -> list[Path]:
    return [path for path in (folder / "data" / "uploads").iterdir()]


def test_bytes_that_were_evicted_are_not_found(store: Store, tmp_path: Path) -> None:
    files = UserFiles(local_cache(tmp_path), store, 100)
    kept = files.add("owner", b"text", "a.txt", "assistants")
    for path in uploads(tmp_path):
        path.unlink()
    assert files.get("owner", kept.id) == kept
    with pytest.raises(NotFound, match="upload it again"):
        files.open("owner", kept.id)


def test_files_expire_with_their_kind(store: Store, tmp_path: Path) -> None:
    clock = Clock(time.time())
    cache = local_cache(tmp_path, clock=clock)
    files = UserFiles(cache, store, 100, clock=clock)
    old = files.add("owner", b"text", "a.txt", "assistants")
    assert old.expires_at - old.created_at == 500
    clock.now += 300
    new = files.add("owner", b"text", "b.txt", "assistants")
    clock.now += 250
    assert files.owned_by("owner") == [new]
    assert store.run(lambda c: c.hlen(store.key("files", "owner"))) == 1
    with pytest.raises(NotFound):
        files.get("owner", old.id)


def test_store_forgets_an_owner_who_stays_away(store: Store, tmp_path: Path) -> None:
    UserFiles(local_cache(tmp_path), store, 100).add("owner", b"text", "a.txt", "assistants")
    assert 0 < store.run(lambda c: c.ttl(store.key("files", "owner"))) <= 500


def test_limits(store: Store, tmp_path: Path) -> None:
    files = UserFiles(local_cache(tmp_path), store, max_bytes=4, max_files=2)
    with pytest.raises(PayloadTooLarge):
        files.add("owner", b"12345", "a", "assistants")
    with pytest.raises(InvalidRequest, match="empty"):
        files.add("owner", b"", "a", "assistants")
    first = files.add("owner", b"1234", "a", "assistants")
    files.add("owner", b"1234", "b", "assistants")
    with pytest.raises(InvalidRequest, match="2 files") as caught:
        files.add("owner", b"1234", "c", "assistants")
    assert caught.value.code == "too_many_files"
    files.add("somebody else", b"1234", "c", "assistants")
    files.delete("owner", first.id)
    files.add("owner", b"1234", "c", "assistants")


def test_store_away_is_503_and_leaves_no_bytes(store: Store, tmp_path: Path) -> None:
    away = UserFiles(
        local_cache(tmp_path), Store(f"redis://127.0.0.1:{free_port()}/0", timeout=0.2), 100
    )
    for attempt in (
        lambda: away.add("owner", b"text", "a.txt", "assistants"),
        lambda: away.owned_by("owner"),
        lambda: away.get("owner", "file-x"),
        lambda: away.delete("owner", "file-x"),
    ):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert caught.value.status == 503
        assert "127.0.0.1" not in caught.value.message
    assert not (tmp_path / "data").exists() or uploads(tmp_path) == []


def test_owners_are_told_apart_without_keeping_a_secret() -> None:
    def brings(token: str) -> Caller:
        return Caller(None, Credential(Secret(token), from_caller=True))

    owners = [
        owner_of(Caller("name")),
        owner_of(Caller("other")),
        owner_of(brings("name")),
        owner_of(brings("secret-token")),
    ]
    assert len(set(owners)) == 4
    assert owner_of(Caller("name", Credential(Secret("theirs")))) == owners[0]
    assert "secret-token" not in str(owners)
    with pytest.raises(Unauthorized):
        owner_of(Caller())
