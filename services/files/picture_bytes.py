"""The bytes of a picture that was made, for callers who want them instead of its address."""

from __future__ import annotations

from services.core.errors import InvalidRequest, NotFound, UpstreamError
from services.fetch import Fetcher
from services.files.cache import FileCache
from services.files.kinds import Area
from services.files.storage import FileGone

_AREAS: dict[str, Area] = {"images": "images", "files": "files"}


class PictureBytes:
    """Reads what an event points at: a file of ours, or one of the upstream's by `fetcher`."""

    def __init__(self, cache: FileCache, fetcher: Fetcher) -> None:
        self._cache = cache
        self._fetcher = fetcher

    def read(self, url: str) -> bytes:
        """Raise NotFound for a file of ours that has gone; UpstreamError; StorageAway."""
        _, area, name = ("//" + url.partition("?")[0]).rsplit("/", 2)
        if area in _AREAS and (found := self._cache.find(_AREAS[area], name)) is not None:
            try:
                body = found.open(0, found.entry.size)
            except FileGone as exc:
                raise NotFound("this picture is not kept any more") from exc
            try:
                return body.read()
            finally:
                body.close()
        try:
            return self._fetcher.fetch(url).data
        except InvalidRequest as exc:
            raise UpstreamError(f"the upstream's file cannot be used: {exc.message}") from exc
