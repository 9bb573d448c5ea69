"""The bytes behind a link in an answer: our own copy, or what a model linked to elsewhere."""

from __future__ import annotations

from urllib.parse import urlsplit

from services.fetch import Fetcher
from services.files.cache import FileCache
from services.files.storage import FileGone, Found


class Shelf:
    """Reads pictures by their public URL. `fetcher` is the one for foreign URLs."""

    def __init__(self, cache: FileCache, fetcher: Fetcher) -> None:
        self._cache = cache
        self._fetcher = fetcher

    def read(self, url: str) -> bytes:
        """Raise InvalidRequest for a foreign URL that cannot be had; StorageAway."""
        found = self._own(url)
        if found is not None:
            try:
                body = found.open(0, found.entry.size)
            except FileGone:
                return self._fetcher.fetch(url).data
            try:
                return body.read()
            finally:
                body.close()
        return self._fetcher.fetch(url).data

    def _own(self, url: str) -> Found | None:
        """Our copy, if the path is one of ours; names are unguessable, the host does not matter."""
        *_, area, name = ("", "", *urlsplit(url).path.split("/"))
        if area == "images":
            return self._cache.find("images", name)
        return self._cache.find("files", name) if area == "files" else None
