"""GPTs: the forms of their ids, the names that gpts.json gives them, and the information about one
that a request to it must repeat.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from services.core.errors import ModelNotFound, UpstreamRefused
from services.providers.backend_api.calls import Calls, Waiting
from services.providers.base import Cache

log = logging.getLogger(__name__)

GIZMO_PREFIX = "gpt-4-gizmo-"
CHECK_EVERY = 1.0
"""Seconds between two looks at gpts.json."""
CACHED = 86400.0
"""Seconds for which the information about a GPT is kept."""

_GIZMO_ID = re.compile(
    rf"(?:{GIZMO_PREFIX}|https://[\w.-]+/g/)?(g-[A-Za-z0-9]+(?:-[^\s/?#&]{{0,200}})?)/?", re.ASCII
)
_NOT_THIS_ACCOUNT = (401, 403, 404)
"""Statuses after which the caller's own account may still see the GPT."""


def gizmo_id(text: str) -> str | None:
    """The id of a GPT in any of its forms: bare, after `gpt-4-gizmo-`, or as a link."""
    found = _GIZMO_ID.fullmatch(text.strip())
    return found[1] if found else None


class GptsFile:
    """`{"name": {"id": "g-XXXX"}}` in the first of `paths` that exists, read again whenever the
    file changes; none of them: no names.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._ids: Mapping[str, str] = {}
        self._version: tuple[Path, int, int] | None = None
        self._check_at = 0.0

    def ids(self) -> Mapping[str, str]:
        """Ids of GPTs by name. A file that cannot be read leaves the names as they were."""
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_EVERY
            version = self._find()
            if version != self._version:
                self._version = version
                self._read(version[0] if version else None)
        return self._ids

    def _find(self) -> tuple[Path, int, int] | None:
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                continue
            return path, stat.st_mtime_ns, stat.st_size
        return None

    def _read(self, path: Path | None) -> None:
        if path is None:
            self._ids = {}
            return
        try:
            entries = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as exc:
            log.warning("gpts file not read file=%s error=%s", path.name, exc)
            return
        ids = {}
        for name, entry in entries.items():
            text = entry.get("id") if isinstance(entry, dict) else entry
            identity = gizmo_id(text) if isinstance(text, str) else None
            if identity is None:
                log.warning("gpts file: entry left out name=%r reason=no id like g-XXXX", name[:60])
            else:
                ids[name] = identity
        self._ids = ids


class Gizmo(msgspec.Struct, frozen=True):
    """`info` is the upstream's whole answer about the GPT, as JSON."""

    id: str
    info: msgspec.Raw


class _Display(msgspec.Struct):
    id: str


class _Info(msgspec.Struct):
    gizmo: _Display


def gizmo_info(name: str, calls: Calls, cache: Cache, operator: Calls | None) -> Waiting[Gizmo]:
    """The GPT with this id, asked for with the `operator`'s account, or else the caller's.

    What was learnt with a caller's account is kept for that account alone. Raises `ModelNotFound`.
    """
    shared = f"backend_api:gizmo:{name}"
    if operator is not None:
        try:
            return (yield from _cached_info(name, operator, cache, shared))
        except UpstreamRefused as exc:
            if exc.upstream_status not in _NOT_THIS_ACCOUNT:
                raise
    try:
        return (yield from _cached_info(name, calls, cache, f"{shared}:{calls.account_key}"))
    except UpstreamRefused as exc:
        if exc.upstream_status not in (403, 404):
            raise
        raise _not_found(name) from exc


def _cached_info(name: str, calls: Calls, cache: Cache, key: str) -> Waiting[Gizmo]:
    cached = cache.get(key)
    if cached and (known := _decoded(name, cached)) is not None:
        return known
    raw = bytes((yield from calls.ask("GET", f"gizmos/{quote(name, safe='')}", msgspec.Raw)))
    found = _decoded(name, raw)
    if found is None:
        raise _not_found(name)
    cache.set(key, raw, CACHED)
    return found


def _decoded(name: str, data: bytes) -> Gizmo | None:
    try:
        info = msgspec.json.decode(data, type=_Info)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Gizmo(info.gizmo.id or name, msgspec.Raw(data))


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(
        f"the GPT {name} does not exist, or the upstream account may not use it", param="model"
    )
