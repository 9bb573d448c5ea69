"""The cache of pictures and files: adopt bytes, find them again, sweep what is old or too much."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from services.config import Files, Settings
from services.core.errors import InvalidRequest
from services.files.data_urls import Fetched, base_name
from services.files.s3 import S3Storage
from services.files.sniff import INLINE_IMAGES, Data, sniff
from services.files.storage import (
    Area,
    Entry,
    Found,
    Kind,
    LocalStorage,
    Storage,
    StorageAway,
    is_name,
    is_old_name,
    kind_of,
    mime_by_suffix,
    new_name,
)

log = logging.getLogger(__name__)

MEGABYTE = 1024 * 1024
_LITTER_SECONDS = 3600.0
_SWEEP_SHARE = 10
_AT_ONCE = 256
_LINKED: dict[str, Area] = {"images": "images", "files": "files"}
_VAGUE = frozenset({"application/octet-stream", "text/plain", "binary/octet-stream"})


class Lifetimes(msgspec.Struct, frozen=True):
    """Seconds for which files of each kind are kept."""

    generated: float
    passed_on: float
    user: float

    @classmethod
    def from_settings(cls, files: Files) -> Lifetimes:
        return cls(files.generated_ttl, files.upload_ttl, files.generated_ttl)

    def of(self, kind: Kind) -> float:
        own = {Kind.PASSED_ON: self.passed_on, Kind.USER: self.user}
        return own.get(kind, self.generated)


class Kept(msgspec.Struct, frozen=True):
    """A file that was just stored; `path` is the path of its public URL, where it has one."""

    area: Area
    name: str
    mime: str
    size: int

    @property
    def path(self) -> str:
        return f"/{self.area}/{self.name}"


class Swept(msgspec.Struct, frozen=True):
    """What one sweep did: how many files went for their age and for lack of room, bytes left."""

    expired: int
    evicted: int
    left: int


class FileCache:
    """One a process; all processes share what is stored. `total_limit` is in bytes."""

    def __init__(
        self,
        storage: Storage,
        lifetimes: Lifetimes,
        total_limit: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._lifetimes = lifetimes
        self._total_limit = total_limit
        self._clock = clock
        self._unswept = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> FileCache:
        """Raise `ConfigErrors` if the storage that is asked for cannot be used."""
        files = settings.files
        is_s3 = files.storage == "s3"
        storage = S3Storage.from_settings(files) if is_s3 else LocalStorage(settings.server.folder)
        return cls(storage, Lifetimes.from_settings(files), int(files.total_limit_mb * MEGABYTE))

    def adopt(self, content: Data | Fetched, kind: Kind, name: str = "", *, base: str) -> str:
        """Store `content` and return its public URL under `base`; the URL ends in an extension.

        `name` is what its maker calls it, and only ever shows as the name of a download. Raise
        InvalidRequest for an IMAGE that is no png, jpeg, gif or webp; StorageAway.
        """
        if kind is Kind.USER:
            raise ValueError("files of users have no public URL")
        return base + self.keep(content, kind, name).path

    def keep(
        self, content: Data | Fetched, kind: Kind, name: str = "", declared: str | None = None
    ) -> Kept:
        """Store `content`, as it is. Raise as `adopt`."""
        fetched = content if isinstance(content, Fetched) else Fetched(data=content, mime="")
        data, name = fetched.data, name or fetched.name
        declared = declared or fetched.declared_type
        if not declared or declared in _VAGUE:
            declared = mime_by_suffix(name) or declared
        mime = sniff(data, declared)
        if kind is Kind.IMAGE and mime not in INLINE_IMAGES:
            raise InvalidRequest(
                "this is not a png, jpeg, gif or webp picture", code="invalid_image"
            )
        kept = Kept(kind.area(mime), new_name(kind, mime), mime, len(data))
        self._storage.put(kept.area, kept.name, data, base_name(name), mime)
        self._unswept += kept.size
        if self._unswept > self._total_limit // _SWEEP_SHARE:
            with contextlib.suppress(StorageAway):
                self.sweep()
        return kept

    def find(self, area: Area, name: str) -> Found | None:
        """The file of that name; None for any other text, and for one whose time has passed.

        What an older service left is found under its old name and never swept: it is not ours.
        Raise StorageAway.
        """
        if is_old_name(area, name):
            found = self._storage.find(area, name)
            label = name.partition("_")[2] if area == "files" else ""
            return found and msgspec.structs.replace(found, label=label)
        if not is_name(name):
            return None
        found = self._storage.find(area, name)
        return None if found is None or self._is_expired(found.entry) else found

    def find_link(
        self, url: str, is_ours: Callable[[str], bool] = lambda url: False
    ) -> Found | None:
        """The file behind a link of ours: by whatever host if its name cannot be guessed, else only
        if the link `is_ours`. Raise StorageAway.
        """
        place = place_of(url)
        if place is None or not (is_name(place[1]) or is_ours(url)):
            return None
        return self.find(*place)

    def delete(self, area: Area, name: str) -> None:
        """Delete a file of ours; one that has gone is no error. Raise StorageAway."""
        if is_name(name):
            self._storage.delete(area, name)

    def lifetime(self, kind: Kind) -> float:
        """Seconds for which files of this kind are kept."""
        return self._lifetimes.of(kind)

    def sweep(self) -> Swept:
        """Delete what is too old; then, while all together are too large, the oldest.

        Any number of processes may do this at once: they choose the same files. Raise StorageAway.
        """
        self._unswept = 0
        kept, expired, evicted = [], 0, 0
        for count, entry in enumerate(self._storage.entries()):
            if count % _AT_ONCE == 0:
                time.sleep(0)  # let other greenlets run: a listing may be long
            if self._is_expired(entry):
                self._storage.delete(entry.area, entry.name)
                expired += 1
            else:
                kept.append(entry)
        left = sum(entry.size for entry in kept)
        for entry in sorted(kept, key=lambda e: (e.modified, e.name)):
            if left <= self._total_limit:
                break
            self._storage.delete(entry.area, entry.name)
            left -= entry.size
            evicted += 1
        self._storage.tidy(self._clock() - _LITTER_SECONDS)
        if expired or evicted:
            log.info("files swept expired=%d evicted=%d left=%d bytes", expired, evicted, left)
        return Swept(expired, evicted, left)

    def _is_expired(self, entry: Entry) -> bool:
        return self._clock() >= entry.modified + self._lifetimes.of(kind_of(entry.name))


def place_of(url: str) -> tuple[Area, str] | None:
    """Area and name of the file, if `url` has the form of our links."""
    path = re.split(r"[?#]", url, maxsplit=1)[0]
    _, folder, name = f"//{path}".rsplit("/", 2)
    return (_LINKED[folder], unquote(name)) if folder in _LINKED and name else None
