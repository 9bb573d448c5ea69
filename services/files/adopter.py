"""Turns a picture or a file that an upstream made into one of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable

from services.core.errors import InvalidRequest, ProtocolError, UpstreamError
from services.core.events import File, Image
from services.fetch import Fetched, Fetcher
from services.files.cache import FileCache
from services.files.kinds import Kind
from services.media import INLINE_IMAGES, Data, sniff


class Adopter:
    """Adopts what one answer holds.

    `fetcher` reaches the upstream's files; `base` gives the public address, and is asked only when
    there is something to adopt. `max_bytes` bounds what comes as bytes.
    """

    def __init__(
        self, cache: FileCache, fetcher: Fetcher, base: Callable[[], str], max_bytes: int
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._base = base
        self._max_bytes = max_bytes

    def __call__(self, event: Image | File, stop: threading.Event) -> str:
        """The public URL of our copy; a download ends early at a `stop`.

        Raise UpstreamError where the upstream's file cannot be had or is not what it should be;
        StorageAway, PublicUrlUnknown.
        """
        base = self._base()
        try:
            content = self._content(event, stop)
            if isinstance(event, Image):
                return self._cache.adopt(content, _image_kind(content), base=base)
            name = event.name if event.name != "file" else ""
            return self._cache.adopt(content, Kind.FILE, name, base=base)
        except InvalidRequest as exc:
            raise UpstreamError(f"the upstream's file cannot be used: {exc.message}") from exc

    def _content(self, event: Image | File, stop: threading.Event) -> Data | Fetched:
        if event.data is not None:
            if len(event.data) > self._max_bytes:
                raise InvalidRequest(f"it is larger than {self._max_bytes} bytes")
            return event.data
        if event.url is None:
            raise ProtocolError("the upstream announced a file without its address")
        return self._fetcher.fetch(event.url, stop=stop)


def _image_kind(content: Data | Fetched) -> Kind:
    """A picture of a type that browsers do not show is kept as a download; others are refused."""
    mime = content.mime if isinstance(content, Fetched) else sniff(content)
    is_odd_picture = mime.startswith("image/") and mime not in INLINE_IMAGES
    return Kind.FILE if is_odd_picture else Kind.IMAGE
