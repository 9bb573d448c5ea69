"""The one interface to where bytes lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from services.core.errors import Unavailable
from services.files.kinds import Area
from services.media import Data


class StorageAway(Unavailable):
    """The folder or the bucket does not take or give files."""

    code = "file_storage_unavailable"


class FileGone(Exception):
    """The file was deleted between being found and being opened."""


class Body(Protocol):
    """The bytes of a file, or of a part of it; `read` gives none at the end."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


class Entry(msgspec.Struct, frozen=True):
    """One file in a listing. `size` is in bytes, `modified` in epoch seconds."""

    area: Area
    name: str
    size: int
    modified: float


class Found(msgspec.Struct, frozen=True):
    """A file that is there. `label` is the name that its maker gave it, or "".

    `open(start, length)` gives a part of its bytes; raises `FileGone` or `StorageAway`.
    """

    entry: Entry
    label: str
    open: Callable[[int, int], Body]

    def read(self) -> bytes:
        """All of it."""
        with contextlib.closing(self.open(0, self.entry.size)) as body:
            return body.read()


class Storage(Protocol):
    """Where files lie. Names have passed `is_name`, those to find perhaps `is_old_name` instead.
    Every method may raise `StorageAway`.
    """

    def put(self, area: Area, name: str, data: Data, label: str, mime: str) -> None:
        """Store a whole file, so that nobody ever sees a part of it."""

    def find(self, area: Area, name: str) -> Found | None: ...

    def delete(self, area: Area, name: str) -> None:
        """Delete a file; one that is not there is no error."""

    def entries(self) -> Iterator[Entry]:
        """All files. Files that come or go meanwhile may be in it or not."""

    def tidy(self, before: float) -> None:
        """Remove what dead writers left before that time (epoch seconds)."""
