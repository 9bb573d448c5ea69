"""Files that callers upload to keep, each owned by the key that brought it.

What is known of them lies in the store, one hash for each owner; their bytes lie in the cache.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from services.core.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from services.core.models import Caller
from services.fetch import base_name
from services.files.cache import FileCache
from services.files.kinds import Kind
from services.files.storage import Found
from services.store import Store, StoreAway

T = TypeVar("T")

MAX_FILES = 1000
"""Files that one owner may keep at a time."""


class UserFile(msgspec.Struct, frozen=True):
    """One upload. `stored` names its bytes in the cache; times are in epoch seconds."""

    id: str
    stored: str
    filename: str
    purpose: str
    mime: str
    size: int
    created_at: int
    expires_at: int


class UserFiles:
    """The uploads of all callers. `max_bytes` and `max_files` bound one file and one owner.

    Every method that takes an owner raises Unavailable while the store is away.
    """

    def __init__(
        self,
        cache: FileCache,
        store: Store,
        max_bytes: int,
        max_files: int = MAX_FILES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._store = store
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._clock = clock

    def add(
        self, owner: str, data: bytes, filename: str, purpose: str, declared: str | None = None
    ) -> UserFile:
        """Keep a file. Raise InvalidRequest if it is empty or one too many; PayloadTooLarge."""
        if not data:
            raise InvalidRequest("the file is empty", param="file")
        if len(data) > self._max_bytes:
            raise PayloadTooLarge(f"the file is larger than {self._max_bytes} bytes", param="file")
        if len(self.owned_by(owner)) >= self._max_files:
            raise InvalidRequest(
                f"{self._max_files} files are kept already: delete some first",
                param="file",
                code="too_many_files",
            )
        kept = self._cache.keep(data, Kind.USER, filename, declared)
        now, lifetime = self._clock(), self._cache.lifetime(Kind.USER)
        file = UserFile(
            id=f"file-{secrets.token_hex(16)}",
            stored=kept.name,
            filename=base_name(filename) or "file",
            purpose=purpose,
            mime=kept.mime,
            size=kept.size,
            created_at=int(now),
            expires_at=int(now + lifetime),
        )
        try:
            self._save(owner, file, lifetime)
        except Unavailable:
            self._cache.delete("uploads", kept.name)
            raise
        return file

    def owned_by(self, owner: str) -> list[UserFile]:
        """The owner's files, the oldest first."""
        found: dict[bytes, bytes] = self._run(lambda c: c.hgetall(self._key(owner)))
        files = [msgspec.json.decode(value, type=UserFile) for value in found.values()]
        expired = [file.id for file in files if file.expires_at <= self._clock()]
        self._forget(owner, expired)
        alive = (file for file in files if file.id not in expired)
        return sorted(alive, key=lambda file: (file.created_at, file.id))

    def get(self, owner: str, file_id: str) -> UserFile:
        """One file of the owner's. Raise NotFound for any other id."""
        value: bytes | None = self._run(lambda c: c.hget(self._key(owner), file_id))
        file = msgspec.json.decode(value, type=UserFile) if value else None
        if file is None or file.expires_at <= self._clock():
            raise NotFound("no such file: it was deleted, has expired or is not yours", param="id")
        return file

    def open(self, owner: str, file_id: str) -> tuple[UserFile, Found]:
        """A file and its bytes. Raise NotFound, also where the bytes were evicted."""
        file = self.get(owner, file_id)
        found = self._cache.find("uploads", file.stored)
        if found is None or found.entry.size != file.size:
            raise NotFound("this file's content is not kept any more: upload it again", param="id")
        return file, found

    def delete(self, owner: str, file_id: str) -> None:
        """Delete a file of the owner's. Raise NotFound."""
        file = self.get(owner, file_id)
        self._forget(owner, [file.id])
        self._cache.delete("uploads", file.stored)

    def _save(self, owner: str, file: UserFile, lifetime: float) -> None:
        key = self._key(owner)

        def save(client: Any) -> None:
            with client.pipeline() as pipe:
                pipe.hset(key, file.id, msgspec.json.encode(file))
                pipe.expire(key, math.ceil(lifetime))  # the newest outlives the others
                pipe.execute()

        self._run(save)

    def _forget(self, owner: str, ids: Iterable[str]) -> None:
        if ids := list(ids):
            self._run(lambda c: c.hdel(self._key(owner), *ids))

    def _key(self, owner: str) -> str:
        return self._store.key("files", owner)

    def _run(self, operation: Callable[[Any], T]) -> T:
        try:
            return self._store.run(operation)
        except StoreAway as exc:
            raise Unavailable("the list of files is not available at the moment") from exc


def owner_of(caller: Caller) -> str:
    """Whose files a caller sees: those of its key, or of the credential it brings, as a hash.

    Raise Unauthorized for a caller without either.
    """
    if caller.key_name is not None:
        return _hashed("key", caller.key_id or caller.key_name)
    if caller.credential is not None and caller.credential.token is not None:
        return _hashed("credential", caller.credential.token.reveal())
    raise Unauthorized("files belong to a key: send one as Authorization: Bearer KEY")


def _hashed(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind}:{text}".encode("utf-8", "surrogateescape")).hexdigest()
