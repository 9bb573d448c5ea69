"""What an upstream made becomes ours, so that callers get links that work and never raw bytes."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import msgspec

from services.core.errors import GatewayError, UpstreamError
from services.core.events import SILENCE, Event, Events, File, Image, Text

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
            if isinstance(event, Image | File) and not (_is_missing(event) or _kept(event, keep))
        }
        yield from _silence(urls.values())
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    yield [
        _settled(event, urls[place], failed) if place in urls else _said(event, failed)
        for place, event in enumerate(rest)
    ]


def _silence(futures: Iterable[Future[str]]) -> Events:
    while wait(futures, timeout=_TICK).not_done:
        yield SILENCE


def _is_missing(event: Event) -> bool:
    return isinstance(event, Image) and event.missing is not None


def _kept(event: Image | File, keep: bool) -> bool:
    return keep and event.url is not None and _LINK.fullmatch(event.url) is not None


def _said(event: Event, failed: str | None) -> Event:
    """A missing picture as its text; anything else as it is."""
    if not isinstance(event, Image) or event.missing is None:
        return event
    if failed is None:
        raise UpstreamError("the upstream made a picture that it does not give out")
    return Text(event.missing)


def _settled(event: Event, url: Future[str], failed: str | None) -> Event:
    assert isinstance(event, Image | File)
    try:
        return msgspec.structs.replace(event, url=url.result(), data=None)
    except GatewayError as exc:
        if failed is None:
            raise
        log.warning("file not adopted kind=%s reason=%s", type(event).__name__, exc.message)
        return Text(_complaint(event, failed))


def _complaint(event: Image | File, failed: str) -> str:
    """`failed` for this event; on one line where it stands in the middle of a link."""
    text = failed.replace("{name}", event.name if isinstance(event, File) else event.title)
    return text.strip() if isinstance(event, File) and event.link is not None else text
