"""The configuration that the service runs with, kept beside the file that people edit.

A worker may start at any time, also after an edit that was refused, or that waits for a restart.
It has to serve what its siblings serve. So the service keeps copies, in a private folder that goes
when it ends: of the file and `.env` as they were at its start, and of the file as it was accepted
last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from services.config.load import KEPT_VARIABLE, environment, find_file
from services.config.settings import ROOT


class KeptConfig:
    """The copies in `folder`. The master makes them; a worker puts in what it accepts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, folder: Path, root: Path = ROOT) -> KeptConfig:
        """Make the copies in `folder`, which only this user may read, and tell workers of it."""
        folder.mkdir(mode=0o700)
        kept = cls(folder)
        with contextlib.suppress(FileNotFoundError):
            kept._put(".env", (root / ".env").read_bytes())
        file = find_file(environment(root), root)
        if file is not None:
            kept._put("started.json", file.read_bytes())
        os.environ[KEPT_VARIABLE] = str(folder)
        return kept

    @property
    def started(self) -> Path | None:
        """The file as it was at the start; None if there was none."""
        return self._if_there("started.json")

    @property
    def accepted(self) -> Path | None:
        """The file as it was accepted last; that of the start if none was since."""
        return self._if_there("accepted.json") or self.started

    def accept(self, content: bytes) -> None:
        """Keep `content` for workers that start later."""
        self._put("accepted.json", content)

    def is_first_to_say(self, text: str) -> bool:
        """Whether no worker has asked this about `text` before, so that one alone says it."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        try:
            (self.folder / f"said-{digest}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _if_there(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.exists() else None

    def _put(self, name: str, content: bytes) -> None:
        """Whole or not at all: siblings write and read at the same time."""
        draft = self.folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)
        draft.replace(self.folder / name)
