"""What an upstream made becomes ours, so that callers get links that work and never raw bytes."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import msgspec

from services.core.errors import (
    GatewayError,
    InvalidRequest,
    NotFound,
    ProtocolError,
    UpstreamError,
)
from services.core.events import SILENCE, Event, Events, File, Image, Text
from services.files.cache import FileCache
from services.files.data_urls import Fetched
from services.files.download import Limits
from services.files.fetch import Fetcher
from services.files.sniff import INLINE_IMAGES, sniff
from services.files.storage import FileGone, Kind

log = logging.getLogger(__name__)

Adopt = Callable[[Image | File, threading.Event], str]
"""Stores what an event points at or holds and gives our public URL, or raises GatewayError; also
once the second is set, since nobody waits any more.
"""

FAILED = "\n{name}: this file could not be fetched from the upstream\n"
"""What a caller sees instead of a file that cannot be had; `{name}` is the file's name."""

_KINDS = frozenset((Image, File))
_AT_ONCE = 4
_TICK = 1.0
_LINK = re.compile(r"https?://[!-~]{1,8192}", re.IGNORECASE)


def adopt_files(
    events: Events, adopt: Adopt, *, failed: str | None = FAILED, keep_upstream_urls: bool = False
) -> Events:
    """Give every Image and File our URL, and no bytes; where that fails, `failed` as text, or what
    a picture that is missing brings along.

    With None for `failed` the failure is raised instead, for callers who want nothing but files.
    While downloads run, an empty batch goes out each second. With `keep_upstream_urls` an event
    with an http(s) URL passes as it is.
    """
    try:
        for batch in events:
            if _KINDS.isdisjoint(map(type, batch)):
                yield batch
            else:
                yield from _adopted(batch, adopt, failed, keep_upstream_urls)
    finally:
        closing = getattr(events, "close", None)
        if closing is not None:
            closing()


def _adopted(batch: list[Event], adopt: Adopt, failed: str | None, keep: bool) -> Events:
    """The batch up to its first file at once, then the rest when all downloads are done."""
    first = next(place for place, event in enumerate(batch) if type(event) in _KINDS)
    if first:
        yield batch[:first]
    rest = batch[first:]
    # as a context manager it would wait for downloads that nobody wants any more
    pool, stop = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="adopt"), threading.Event()
    try:
        urls = {
            place: pool.submit(adopt, event, stop)
            for place, event in enumerate(rest)
            if isinstance(event, Image | File) and not _passes(event, keep)
        }
        while wait(urls.values(), timeout=_TICK).not_done:
            yield SILENCE
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    yield [_settled(event, urls.get(place), failed) for place, event in enumerate(rest)]


def _passes(event: Image | File, keep: bool) -> bool:
    """Whether there is nothing to fetch: a picture is missing, or a URL shall be kept."""
    if isinstance(event, Image) and event.missing is not None:
        return True
    return keep and event.url is not None and _LINK.fullmatch(event.url) is not None


def _settled(event: Event, url: Future[str] | None, failed: str | None) -> Event:
    """The event with our URL, or as text where there is none."""
    if not isinstance(event, Image | File):
        return event
    if isinstance(event, Image) and event.missing is not None:
        if failed is None:
            raise UpstreamError("the upstream made a picture that it does not give out")
        return Text(event.missing)
    if url is None:
        return event
    try:
        return msgspec.structs.replace(event, url=url.result(), data=None)
    except GatewayError as exc:
        if failed is None:
            raise
        log.warning("file not adopted kind=%s reason=%s", type(event).__name__, exc.message)
    if isinstance(event, Image):
        return Text(failed.replace("{name}", event.title))
    text = failed.replace("{name}", event.name)
    # on one line where it stands in the middle of a link
    return Text(text if event.link is None else text.strip())


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
            if isinstance(event, File):
                name = event.name if event.name != "file" else ""
                return self._cache.adopt(content, Kind.FILE, name, base=base)
            # a picture of a type that browsers do not show is a download; others are refused
            mime = content.mime or sniff(content.data)
            is_odd = mime.startswith("image/") and mime not in INLINE_IMAGES
            return self._cache.adopt(content, Kind.FILE if is_odd else Kind.IMAGE, base=base)
        except InvalidRequest as exc:
            raise UpstreamError(f"the upstream's file cannot be used: {exc.message}") from exc

    def _content(self, event: Image | File, stop: threading.Event) -> Fetched:
        if event.data is not None:
            if len(event.data) > self._max_bytes:
                raise InvalidRequest(f"it is larger than {self._max_bytes} bytes")
            return Fetched(event.data, mime="")
        if event.url is None:
            raise ProtocolError("the upstream announced a file without its address")
        return self._fetcher.fetch(event.url, stop=stop)


class PictureBytes:
    """Reads the picture that an event points at, ours or the upstream's, for callers who want its
    bytes instead of its address.
    """

    def __init__(self, cache: FileCache, fetcher: Fetcher, limits: Limits | None = None) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._limits = limits

    def read(self, url: str) -> bytes:
        """Raise NotFound for a file of ours that has gone; UpstreamError; StorageAway."""
        try:
            if (found := self._cache.find_link(url)) is not None:
                return found.read()
            return bytes(self._fetcher.fetch(url, limits=self._limits).data)
        except FileGone as exc:
            raise NotFound("this picture is not kept any more") from exc
        except InvalidRequest as exc:
            raise UpstreamError(f"the upstream's file cannot be used: {exc.message}") from exc
