"""The two ways out for files: for URLs that callers send, and for URLs that upstreams give."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from services.config import ConfigErrors, Problem, Settings
from services.fetch.content import Limits
from services.fetch.fetcher import Fetcher
from services.fetch.urls import AllowList

MEGABYTE = 1024 * 1024


def caller_fetcher(settings: Settings) -> Fetcher:
    """Reaches public addresses and what `files.fetch_allow` opens. Raise ConfigErrors."""
    files = settings.files
    limits = Limits(seconds=files.fetch_timeout, max_bytes=int(files.fetch_max_mb * MEGABYTE))
    return _fetcher(settings, limits, ())


def upstream_fetcher(settings: Settings) -> Fetcher:
    """Also reaches the hosts that the operator named as upstreams. Raise ConfigErrors.

    Never for a caller's URL: the upstream may be inside the operator's network.
    """
    return _fetcher(settings, download_limits(settings), tuple(_upstream_hosts(settings)))


def download_limits(settings: Settings) -> Limits:
    """How large and how slow an upstream's file may be."""
    files = settings.files
    return Limits(
        seconds=files.download_timeout,
        connect_seconds=settings.server.connect_timeout,
        max_bytes=int(files.download_max_mb * MEGABYTE),
    )


def packed_limits(settings: Settings) -> Limits:
    """The same for a picture that is answered as base64, and so held in memory several times."""
    size = min(settings.files.fetch_max_mb, settings.files.download_max_mb)
    return msgspec.structs.replace(download_limits(settings), max_bytes=int(size * MEGABYTE))


def _fetcher(settings: Settings, limits: Limits, opened: tuple[str, ...]) -> Fetcher:
    return Fetcher(
        allow=_allow(settings, opened),
        limits=limits,
        proxy=settings.proxy or settings.server.proxies,
        proxy_resolves=settings.files.proxy_resolves,
    )


def _allow(settings: Settings, more: tuple[str, ...]) -> AllowList:
    try:
        return AllowList((*settings.files.fetch_allow, *more))
    except ValueError as exc:
        raise ConfigErrors([Problem("", "files.fetch_allow", str(exc))]) from exc


def _upstream_hosts(settings: Settings) -> Iterator[str]:
    """Allow-list entries for `upstream_base_url` and, where it is used, `file_server_host`."""
    urls = [settings.upstream_base_url]
    if settings.use_pandora_file_server and settings.file_server_host:
        urls.append(f"//{settings.file_server_host.rpartition('//')[2]}")
    for url in filter(None, urls):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as exc:
            keys = "upstream_base_url or file_server_host"
            raise ConfigErrors([Problem("", keys, f"not an address: {exc}")]) from exc
        host = f"[{host}]" if ":" in host else host
        yield f"{host}:{port}" if port else host
