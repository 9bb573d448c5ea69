"""Files that callers upload to keep, each owned by the key that brought it; and the parts of a
message that name such a file, or link to one that this gateway gave out.

What is known of uploads lies in the store, one hash for each owner; their bytes lie in the cache.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import msgspec

from services.config import Settings
from services.core.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from services.core.models import Caller
from services.core.requests import ChatRequest, File, ImageURL, Part, file_part, image_part
from services.files.cache import FileCache, place_of
from services.files.data_urls import base_name
from services.files.public_url import is_ours
from services.files.sniff import UNKNOWN
from services.files.storage import FileGone, Found, Kind, mime_by_suffix
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
        def save(client: Any) -> None:
            with client.pipeline() as pipe:
                pipe.hset(self._key(owner), file.id, msgspec.json.encode(file))
                pipe.expire(self._key(owner), math.ceil(lifetime))  # the newest outlives the others
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
        text = f"key:{caller.key_id or caller.key_name}"
    elif caller.credential is not None and caller.credential.token is not None:
        text = f"credential:{caller.credential.token.reveal()}"
    else:
        raise Unauthorized("files belong to a key: send one as Authorization: Bearer KEY")
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class OwnFiles(msgspec.Struct, frozen=True):
    """Where files of ours lie."""

    cache: FileCache
    user_files: UserFiles
    settings: Settings


_IsOurs = Callable[[str], bool]
"""Whether a URL leads to this gateway."""


def fill_in_own_files(
    request: ChatRequest, files: OwnFiles, caller: Caller, base: Callable[[], str]
) -> ChatRequest:
    """The request with each file of ours as a `data:` URL; the same one if it has none.

    `base` gives our address as the caller knows it. Raise InvalidRequest, naming the part, for an
    id that is not the caller's, and for a link to us whose file has gone; Unavailable while uploads
    cannot be looked up.
    """
    ours = partial(is_ours, files.settings, base)
    messages, changed = list(request.messages), False
    for index, message in enumerate(messages):
        if any(map(_may_be_ours, message.parts)):
            filled = tuple(
                _filled(part, files, caller, ours, f"messages[{index}].content[{place}]")
                for place, part in enumerate(message.parts)
            )
            messages[index] = msgspec.structs.replace(message, content=filled)
            changed = True
    return request.replace_messages(tuple(messages)) if changed else request


def _may_be_ours(part: Part) -> bool:
    match part.attached or part.image:
        case File(file_id=str()):
            return True
        case File(file_url=str(url)) | ImageURL(url=url):
            return place_of(url) is not None
        case _:
            return False


def _filled(part: Part, files: OwnFiles, caller: Caller, ours: _IsOurs, param: str) -> Part:
    match part.attached or part.image:
        case File(file_id=str(file_id), filename=name):
            data, label = _uploaded(file_id, files.user_files, caller, f"{param}.file.file_id")
            return file_part(data, name or label)
        case File(file_url=str(url), filename=name):
            found = _linked(url, files.cache, ours, f"{param}.file.file_url")
            return file_part(found[0], name or found[1]) if found else part
        case ImageURL(url=url, detail=detail):
            found = _linked(url, files.cache, ours, f"{param}.image_url.url")
            return image_part(found[0], detail) if found else part
        case _:
            return part


def _uploaded(
    file_id: str, user_files: UserFiles, caller: Caller, field: str
) -> tuple[str, str | None]:
    """A `data:` URL and the file's name."""
    try:
        file, found = user_files.open(owner_of(caller), file_id)
        return _data_url(found, file.mime), file.filename
    except (NotFound, FileGone) as exc:
        raise InvalidRequest(
            "no such file: it was deleted, has expired or is not yours",
            param=field,
            code="file_not_found",
        ) from exc


def _linked(url: str, cache: FileCache, ours: _IsOurs, field: str) -> tuple[str, str | None] | None:
    """The same for a link; None if it is none of ours."""
    try:
        found = cache.find_link(url, ours)
        if found is not None:
            mime = mime_by_suffix(found.entry.name) or UNKNOWN
            return _data_url(found, mime), found.label or None
    except FileGone:
        pass
    if place_of(url) is not None and ours(url):
        raise InvalidRequest(
            "this file of ours is not kept any more: send its content instead",
            param=field,
            code="file_expired",
        )
    return None


def _data_url(found: Found, mime: str) -> str:
    return f"data:{mime};base64,{b64encode(found.read()).decode()}"
