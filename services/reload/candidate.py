"""A configuration file's content, and whether the service could run with it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.accounts import AccountsError, VaultError, open_vault
from services.config import (
    ROOT,
    ConfigErrors,
    KeptConfig,
    Problem,
    Settings,
    check_exposure,
    environment,
    find_file,
    keep_running,
    kept_folder,
    load,
)
from services.providers.registry import provider_types
from services.store import Store

log = logging.getLogger(__name__)

SETTLED_AFTER = 0.2
"""Seconds for which a file has to stay the same: whoever writes it may not be done."""
_MOST_READS = 10


class Refused(Exception):
    """The configuration cannot be taken up. `problems` are lines for an operator, no secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Content(msgspec.Struct, frozen=True):
    """What a file holds: `data` None if it cannot be read, `path` None if there is no file."""

    path: Path | None
    data: bytes | None = None

    @property
    def digest(self) -> str:
        """The same for the same content, wherever it lies and whenever it was written."""
        return "none" if self.data is None else hashlib.sha256(self.data).hexdigest()


class ConfigSource:
    """Where the settings of this process come from. Variables are those of the start."""

    def __init__(self, root: Path = ROOT, settled_after: float = SETTLED_AFTER) -> None:
        self._settled_after = settled_after
        folder = kept_folder()
        self.kept = KeptConfig(folder) if folder is not None else None
        self._root = root
        self._environ = environment(folder or root)
        self._types = provider_types()

    def read(self) -> Content:
        """What the file holds now."""
        path = find_file(self._environ, self._root)
        if path is None:
            return Content(None)
        try:
            return Content(path, path.read_bytes())
        except OSError:
            return Content(path)

    def settled(self, known: str) -> Content:
        """What the file holds, once that stays the same for a moment or is what is `known`."""
        content = self.read()
        for _ in range(_MOST_READS):
            before = content.digest
            if before == known:
                break
            time.sleep(self._settled_after)
            content = self.read()
            if content.digest == before:
                break
        return content

    def settings(self, content: Content) -> Settings:
        """The settings of `content`. Raises `ConfigErrors`."""
        return load(content.path, self._environ, self._types, content.data)

    def of_file(self, path: Path | None) -> Settings:
        """The settings of a file that was accepted before. Raises `ConfigErrors`."""
        return load(path, self._environ, self._types)


def checked(source: ConfigSource, content: Content, started: Settings, had_file: bool) -> Settings:
    """What `content` says, by the rules of a start; `had_file`: there was a file before.

    Returns the settings as they are written. Raises `Refused`.
    """
    if content.path is None and had_file:  # never fall back on defaults: they ask for no key
        raise Refused(["the configuration file is gone"])
    try:
        settings = source.settings(content)
    except ConfigErrors as exc:
        raise refusal(exc) from exc
    objections = list(dict.fromkeys(_objections(settings, started)))
    if objections:
        raise Refused(objections)
    return settings


def refusal(error: Exception) -> Refused:
    """What went wrong with settings, as lines for an operator."""
    if isinstance(error, ConfigErrors):
        return Refused([str(problem) for problem in error.problems])
    if isinstance(error, (AccountsError, VaultError, ValueError)):
        return Refused([str(error)])
    log.error("no application could be made", exc_info=error)
    return Refused([f"no application could be made of it: {type(error).__name__}"])


def _objections(settings: Settings, started: Settings) -> Iterator[str]:
    """What `bin/serve` would object to, now and at the next start."""
    yield from check_exposure(keep_running(settings, started))
    yield from check_exposure(settings)
    try:
        if settings.store.secret_key is not None:
            open_vault(settings.server.folder, settings.store.secret_key)
        if settings.store.url or settings.redis.host:
            Store.from_settings(settings).close()
    except (VaultError, ValueError) as exc:
        yield str(Problem("", "store", str(exc)))
