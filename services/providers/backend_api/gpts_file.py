"""gpts.json: the names that callers use for GPTs, read again whenever the file changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from services.providers.backend_api.model_names import gizmo_id

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks at the file."""


class GptsFile:
    """`{"name": {"id": "g-XXXX"}}` in the first of `places` that exists; none of them: no names."""

    def __init__(self, places: tuple[Path, ...]) -> None:
        self._places = places
        self._ids: Mapping[str, str] = {}
        self._seen: tuple[Path, int, int] | None = None
        self._look_at = 0.0

    def ids(self) -> Mapping[str, str]:
        """Ids of GPTs by name. A file that cannot be read leaves the names as they were."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._look()
        return self._ids

    def _look(self) -> None:
        seen = self._find()
        if seen == self._seen:
            return
        self._seen = seen
        if seen is None:
            self._ids = {}
            return
        try:
            entries = msgspec.json.decode(seen[0].read_bytes(), type=dict[str, Any])
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as exc:
            log.warning("gpts file not read file=%s error=%s", seen[0].name, exc)
            return
        self._ids = dict(_read(entries))

    def _find(self) -> tuple[Path, int, int] | None:
        for place in self._places:
            try:
                about = place.stat()
            except OSError:
                continue
            return place, about.st_mtime_ns, about.st_size
        return None


def _read(entries: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, entry in entries.items():
        text = entry.get("id") if isinstance(entry, dict) else entry
        identity = gizmo_id(text) if isinstance(text, str) else None
        if identity is None:
            log.warning("gpts file: entry left out name=%r reason=no id like g-XXXX", name[:60])
        else:
            found.append((name, identity))
    return found
