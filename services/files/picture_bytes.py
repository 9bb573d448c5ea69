"""The bytes of a picture that was made, for callers who want them instead of its address."""

from __future__ import annotations

from services.core.errors import InvalidRequest, NotFound, UpstreamError
from services.fetch import Fetcher, Limits
from services.files.cache import FileCache
from services.files.storage import FileGone


class PictureBytes:
    """Reads what an event points at: a file of ours, or one of the upstream's by `fetcher`."""

    def __init__(self, cache: FileCache, fetcher: Fetcher, limits: Limits | None = None) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._limits = limits

    def read(self, url: str) -> bytes:
        """Raise NotFound for a file of ours that has gone; UpstreamError; StorageAway."""
        try:
            if (found := self._cache.find_link(url)) is not None:
                return found.read()
        except FileGone as exc:
            raise NotFound("this picture is not kept any more") from exc
        try:
            return bytes(self._fetcher.fetch(url, limits=self._limits).data)
        except InvalidRequest as exc:
            raise UpstreamError(f"the upstream's file cannot be used: {exc.message}") from exc
