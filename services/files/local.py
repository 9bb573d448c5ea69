"""Files in a folder that all workers share, on one machine or on a shared volume.

A file's label lies beside it, in a hidden file. Writers make a hidden file and rename it, so that
readers see whole files only. Any file may vanish at any time: another worker sweeps too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from services.files.kinds import AREAS, Area, is_name
from services.files.storage import Body, Entry, FileGone, Found, StorageAway
from services.media import Data

log = logging.getLogger(__name__)

_PIECE = 1024 * 1024
_FILE_MODE = 0o640
_FOLDER_MODE = 0o750
_LABEL = ".label"
_TEMPORARY = ".tmp"


class LocalStorage:
    """`images/` and `files/` in `folder`, and private uploads in `data/uploads/`."""

    def __init__(self, folder: Path) -> None:
        self._folders: dict[Area, Path] = {
            "images": folder / "images",
            "files": folder / "files",
            "uploads": folder / "data" / "uploads",
        }

    def put(self, area: Area, name: str, data: Data, label: str, mime: str) -> None:
        folder = self._folders[area]
        try:
            folder.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
            if label:
                _write(folder / _label_name(name), label.encode())
            _write(folder / name, data)
        except OSError as exc:
            _raise_away(exc)

    def find(self, area: Area, name: str) -> Found | None:
        path = self._folders[area] / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            _raise_away(exc)
        if not stat.S_ISREG(status.st_mode):
            return None
        entry = Entry(area, name, status.st_size, status.st_mtime)
        return Found(entry, _read_label(path), lambda start, length: _open(path, start, length))

    def delete(self, area: Area, name: str) -> None:
        folder = self._folders[area]
        try:
            (folder / name).unlink(missing_ok=True)
            (folder / _label_name(name)).unlink(missing_ok=True)
        except OSError as exc:
            _raise_away(exc)

    def entries(self) -> Iterator[Entry]:
        for area in AREAS:
            for name, status in _listing(self._folders[area]):
                if is_name(name) and stat.S_ISREG(status.st_mode):
                    yield Entry(area, name, status.st_size, status.st_mtime)

    def tidy(self, before: float) -> None:
        for folder in self._folders.values():
            for name, status in _listing(folder):
                if status.st_mtime < before and _is_litter(folder, name):
                    with contextlib.suppress(OSError):
                        (folder / name).unlink(missing_ok=True)


class _Part(io.FileIO):
    """A file from where it stands, `length` bytes long; its number can be handed to sendfile."""

    def __init__(self, descriptor: int, length: int) -> None:
        super().__init__(descriptor, "rb")
        self._left = length

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data = super().read(wanted) or b""
        self._left -= len(data)
        return data


def _open(path: Path, start: int, length: int) -> Body:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise FileGone from exc
    except OSError as exc:
        _raise_away(exc)
    part = _Part(descriptor, length)
    part.seek(start)
    return part


def _write(path: Path, data: Data) -> None:
    temporary = path.with_name(f".{secrets.token_hex(16)}{_TEMPORARY}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _FILE_MODE)  # whatever the umask
            for at in range(0, len(data), _PIECE):
                file.write(data[at : at + _PIECE])
                time.sleep(0)  # let other greenlets run
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _label_name(name: str) -> str:
    return f".{name}{_LABEL}"


def _read_label(path: Path) -> str:
    try:
        return path.with_name(_label_name(path.name)).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # most files have none


def _listing(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(folder) as items:
            for item in items:
                with contextlib.suppress(FileNotFoundError):
                    yield item.name, item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # nothing was ever stored
    except OSError as exc:
        _raise_away(exc)


def _is_litter(folder: Path, name: str) -> bool:
    """A writer's leftover, or a label whose file has gone."""
    if not name.startswith("."):
        return False
    if name.endswith(_TEMPORARY):
        return True
    owner = name[1 : -len(_LABEL)]
    return name.endswith(_LABEL) and is_name(owner) and not (folder / owner).exists()


def _raise_away(exc: OSError) -> NoReturn:
    reason = exc.strerror or type(exc).__name__
    log.error("file storage failed storage=local reason=%s", reason)
    raise StorageAway("the file storage of this service is not available") from exc
