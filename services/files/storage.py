"""Where bytes lie: kinds and names of files, the interface to storages, and the local folder.

In the folder, which all workers share, a file's label lies beside it in a hidden file. Writers make
a hidden file and rename it, so that readers see whole files only. Any file may vanish at any time:
another worker sweeps too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Literal, NoReturn, Protocol

import msgspec

from services.core.errors import Unavailable
from services.files.sniff import EXTENSIONS, INLINE_IMAGES, Data, extension

log = logging.getLogger(__name__)

Area = Literal["images", "files", "uploads"]
"""Where a file lies. The first two are public paths too; `uploads` has none."""

AREAS: tuple[Area, ...] = ("images", "files", "uploads")


class Kind(Enum):
    """Why a file is kept. The value is the first letter of its name, so that a listing tells it."""

    IMAGE = "i"
    """A picture that an upstream made."""
    FILE = "f"
    """Another file that an upstream made."""
    PASSED_ON = "p"
    """A caller's upload that an upstream fetches from us by URL."""
    USER = "u"
    """A file that a caller uploaded to keep; only its owner gets it back."""

    def area(self, mime: str) -> Area:
        if self is Kind.USER:
            return "uploads"
        is_image = self is Kind.IMAGE or (self is Kind.PASSED_ON and mime in INLINE_IMAGES)
        return "images" if is_image else "files"


_NAME = re.compile(r"[ifpu][A-Za-z0-9_-]{32}\.[a-z0-9]{1,5}", re.ASCII)
_OLD_NAMES: dict[Area, re.Pattern[str]] = {
    "images": re.compile(r"image_[0-9]{14}\.png"),
    "files": re.compile(r"[0-9]{14}_[^/\\\x00-\x1f\x7f]+"),
}
_LONGEST_OLD_NAME = 255  # bytes, as file systems have it
_MIMES = {suffix: mime for mime, suffix in EXTENSIONS.items()}


def new_name(kind: Kind, mime: str) -> str:
    """A name that cannot be guessed (192 random bits) and ends in the extension of `mime`."""
    return f"{kind.value}{secrets.token_urlsafe(24)}{extension(mime)}"


def is_name(text: str) -> bool:
    """Whether `text` has the form of our names. No other text may become part of a path."""
    return _NAME.fullmatch(text) is not None


def is_old_name(area: Area, text: str) -> bool:
    """Whether `text` is a name that an older service gave: `image_<time>.png` for a picture, and
    `<time>_<name>` for a file, the time to the second.
    """
    form = _OLD_NAMES.get(area)
    if form is None or form.fullmatch(text) is None:
        return False
    return len(text.encode("utf-8", "replace")) <= _LONGEST_OLD_NAME


def kind_of(name: str) -> Kind:
    """The kind of a file by its name, in one form or the other."""
    if is_name(name):
        return Kind(name[0])
    return Kind.IMAGE if is_old_name("images", name) else Kind.FILE


def mime_by_suffix(name: str) -> str | None:
    """The type that the extension of any file name stands for; None for one that is not listed."""
    _, dot, suffix = name.rpartition(".")
    return _MIMES.get(f".{suffix.lower()}") if dot else None


class StorageAway(Unavailable):
    """The folder or the bucket does not take or give files."""

    code = "file_storage_unavailable"


class FileGone(Exception):
    """The file was deleted between being found and being opened."""


class Body(Protocol):
    """The bytes of a file, or of a part of it; `read` gives none at the end."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


class Entry(msgspec.Struct, frozen=True):
    """One file in a listing. `size` is in bytes, `modified` in epoch seconds."""

    area: Area
    name: str
    size: int
    modified: float


class Found(msgspec.Struct, frozen=True):
    """A file that is there. `label` is the name that its maker gave it, or "".

    `open(start, length)` gives a part of its bytes; raises `FileGone` or `StorageAway`.
    """

    entry: Entry
    label: str
    open: Callable[[int, int], Body]

    def read(self) -> bytes:
        """All of it."""
        with contextlib.closing(self.open(0, self.entry.size)) as body:
            return body.read()


class Storage(Protocol):
    """Where files lie. Names have passed `is_name`, those to find perhaps `is_old_name` instead.
    Every method may raise `StorageAway`.
    """

    def put(self, area: Area, name: str, data: Data, label: str, mime: str) -> None:
        """Store a whole file, so that nobody ever sees a part of it."""

    def find(self, area: Area, name: str) -> Found | None: ...

    def delete(self, area: Area, name: str) -> None:
        """Delete a file; one that is not there is no error."""

    def entries(self) -> Iterator[Entry]:
        """All files. Files that come or go meanwhile may be in it or not."""

    def tidy(self, before: float) -> None:
        """Remove what dead writers left before that time (epoch seconds)."""


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
                _write(folder / f".{name}{_LABEL}", label.encode())
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
        try:
            label = path.with_name(f".{name}{_LABEL}").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            label = ""  # most files have none
        entry = Entry(area, name, status.st_size, status.st_mtime)
        return Found(entry, label, lambda start, length: _open(path, start, length))

    def delete(self, area: Area, name: str) -> None:
        folder = self._folders[area]
        try:
            (folder / name).unlink(missing_ok=True)
            (folder / f".{name}{_LABEL}").unlink(missing_ok=True)
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
    owner = name[1:].removesuffix(_LABEL)
    is_orphan = name.endswith(_LABEL) and is_name(owner) and not (folder / owner).exists()
    return is_orphan or name.endswith(_TEMPORARY)


def _raise_away(exc: OSError) -> NoReturn:
    reason = exc.strerror or type(exc).__name__
    log.error("file storage failed storage=local reason=%s", reason)
    raise StorageAway("the file storage of this service is not available") from exc
