"""Make, list, change and revoke the keys in the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from redis.client import Pipeline

from services.core.errors import InvalidRequest, NotFound, Unavailable
from services.keys.limiter import key_name
from services.keys.lookup import KeyLookup
from services.keys.records import (
    KeyChanges,
    KeyRecord,
    Limits,
    NewKey,
    Vault,
    changed,
    digest_of,
    new_id,
    new_key,
    read_record,
)
from services.store import Store, StoreAway

T = TypeVar("T")

REVOKED_SECONDS = 90 * 86_400
"""How long a revoked key is still listed: as long as what it used."""


class KeyEditor:
    """For the operator. Every method raises `Unavailable` while the store is away."""

    def __init__(self, store: Store, book: KeyLookup, vault: Vault) -> None:
        self._store = store
        self._book = book
        self._vault = vault
        self._ids = store.key("key", "ids")
        self._names = store.key("key", "names")

    def create(self, wanted: NewKey) -> tuple[str, KeyRecord]:
        """A new key, in clear for the only time, and its record.

        Raises `InvalidRequest` for a name that is taken: names tell whose files are whose.
        """
        key = new_key()
        record = KeyRecord(
            id=new_id(),
            name=wanted.name,
            hint=key[-4:],
            created=time.time(),
            limits=wanted.limits,
            models=wanted.models,
            profile=wanted.profile,
            always_usage=wanted.always_usage,
            provider_keys={
                provider: self._vault.encrypt(secret)
                for provider, secret in wanted.provider_keys.items()
            },
        )
        if any(record.name == known.name for known in self._book.of_settings):
            raise _taken(record.name)
        digest = digest_of(key)

        def save(pipe: Pipeline) -> None:
            if pipe.hexists(self._names, record.name):
                raise _taken(record.name)
            pipe.multi()
            pipe.hset(self._names, record.name, record.id)
            pipe.hset(self._ids, record.id, digest.hex())
            self._put(pipe, digest, record)

        self._transaction(save, self._names)
        self._book.forget(digest)
        return key, record

    def records(self) -> list[KeyRecord]:
        """All keys: those of the settings, then the stored ones by age, revoked ones too."""
        ids: dict[bytes, bytes] = self._run(lambda c: c.hgetall(self._ids))
        names = [self._record_name(bytes.fromhex(digest.decode())) for digest in ids.values()]
        raws = self._pipeline(lambda pipe: [pipe.hget(name, "record") for name in names])
        gone = [known for known, raw in zip(ids, raws, strict=True) if raw is None]
        if gone:
            self._run(lambda c: c.hdel(self._ids, *gone))
        stored = [read_record(raw) for raw in raws if raw is not None]
        stored.sort(key=lambda record: (record.created, record.id))
        return [*self._book.of_settings, *stored]

    def get(self, key_id: str) -> KeyRecord:
        """One key by its id. Raises `NotFound`."""
        for record in self._book.of_settings:
            if record.id == key_id:
                return record
        name = self._record_name(self._digest(key_id))
        return _decoded(self._run(lambda c: c.hget(name, "record")))

    def change(self, key_id: str, changes: KeyChanges) -> KeyRecord:
        """Change a key; other workers follow within seconds. Raises `NotFound`."""
        return self._rewrite(key_id, lambda record: changed(record, changes, self._vault))

    def revoke(self, key_id: str) -> KeyRecord:
        """Close a key for good: answers under way end, new requests get a 401."""
        revoked = time.time()
        return self._rewrite(
            key_id, lambda record: msgspec.structs.replace(record, revoked=revoked)
        )

    def _rewrite(self, key_id: str, rewrite: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        digest = self._digest(key_id)
        name = self._record_name(digest)
        saved: list[KeyRecord] = []

        def save(pipe: Pipeline) -> None:
            before = _decoded(pipe.hget(name, "record"))
            if before.revoked is not None:
                raise InvalidRequest("this key is revoked", code="key_revoked", status=409)
            after = rewrite(before)
            pipe.multi()
            self._put(pipe, digest, after)
            saved[:] = [after]

        self._transaction(save, name)
        self._book.forget(digest)
        return saved[0]

    def _put(self, pipe: Pipeline, digest: bytes, record: KeyRecord) -> None:
        """The record as JSON, and beside it what the script for limits reads."""
        name = self._record_name(digest)
        fields: dict[str, Any] = {"record": msgspec.json.encode(record)}
        if record.revoked is not None:
            fields["revoked"] = 1
        limits = msgspec.structs.asdict(record.limits)
        fields |= {limit: value for limit, value in limits.items() if value is not None}
        pipe.hdel(name, *Limits.__struct_fields__)
        pipe.hset(name, mapping=fields)
        if record.revoked is not None:
            pipe.expire(name, REVOKED_SECONDS)
            pipe.hdel(self._names, record.name)

    def _digest(self, key_id: str) -> bytes:
        if any(key_id == known.id for known in self._book.of_settings):
            raise InvalidRequest(
                "this key stands in the settings: change it there", code="read_only", status=409
            )
        found: bytes | None = self._run(lambda c: c.hget(self._ids, key_id))
        if found is None:
            raise _unknown()
        return bytes.fromhex(found.decode())

    def _record_name(self, digest: bytes) -> str:
        return key_name(self._store, digest, "record")

    def _transaction(self, save: Callable[[Pipeline], None], *watched: str) -> None:
        self._run(lambda c: c.transaction(save, *watched))

    def _pipeline(self, fill: Callable[[Pipeline], object]) -> list[Any]:
        try:
            return self._store.pipeline(fill)
        except StoreAway as exc:
            raise _away() from exc

    def _run(self, operation: Callable[[Any], T]) -> T:
        try:
            return self._store.run(operation)
        except StoreAway as exc:
            raise _away() from exc


def _decoded(raw: Any) -> KeyRecord:
    if raw is None:
        raise _unknown()
    return read_record(raw)


def _unknown() -> NotFound:
    return NotFound("no such key: it never was, or it was revoked long ago", param="id")


def _taken(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"there is a key named {name} already", param="name", code="name_taken", status=409
    )


def _away() -> Unavailable:
    return Unavailable("the store is away: keys can be neither read nor changed", retry_after=5)
