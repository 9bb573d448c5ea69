"""What is kept, where, for how long, and under which names."""

from __future__ import annotations

import re
import secrets
from enum import Enum
from typing import Literal

import msgspec

from services.config import Files
from services.media import INLINE_IMAGES, UNKNOWN, extension
from services.media.mimes import EXTENSIONS

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
        match self:
            case Kind.IMAGE:
                return "images"
            case Kind.FILE:
                return "files"
            case Kind.PASSED_ON:
                return "images" if mime in INLINE_IMAGES else "files"
            case Kind.USER:
                return "uploads"


class Lifetimes(msgspec.Struct, frozen=True):
    """Seconds for which files of each kind are kept."""

    generated: float
    passed_on: float
    user: float

    @classmethod
    def from_settings(cls, files: Files) -> Lifetimes:
        return cls(files.generated_ttl, files.upload_ttl, files.generated_ttl)

    def of(self, kind: Kind) -> float:
        match kind:
            case Kind.IMAGE | Kind.FILE:
                return self.generated
            case Kind.PASSED_ON:
                return self.passed_on
            case Kind.USER:
                return self.user


_NAME = re.compile(r"[ifpu][A-Za-z0-9_-]{32}\.[a-z0-9]{1,5}", re.ASCII)
_MIMES = {suffix: mime for mime, suffix in EXTENSIONS.items()}


def new_name(kind: Kind, mime: str) -> str:
    """A name that cannot be guessed (192 random bits) and ends in the extension of `mime`."""
    return f"{kind.value}{secrets.token_urlsafe(24)}{extension(mime)}"


def is_name(text: str) -> bool:
    """Whether `text` has the form of our names. No other text may become part of a path."""
    return _NAME.fullmatch(text) is not None


_OLD_NAMES: dict[Area, re.Pattern[str]] = {
    "images": re.compile(r"image_[0-9]{14}\.png"),
    "files": re.compile(r"[0-9]{14}_[^/\\\x00-\x1f\x7f]+"),
}
_LONGEST_OLD_NAME = 255  # bytes, as file systems have it


def is_old_name(area: Area, text: str) -> bool:
    """Whether `text` is a name that an older service gave: `image_<time>.png` for a picture, and
    `<time>_<name>` for a file, the time to the second.
    """
    form = _OLD_NAMES.get(area)
    if form is None or form.fullmatch(text) is None:
        return False
    return len(text.encode("utf-8", "replace")) <= _LONGEST_OLD_NAME


def old_label(area: Area, name: str) -> str:
    """What the upstream called an old file."""
    return name.partition("_")[2] if area == "files" else ""


def kind_of(name: str) -> Kind:
    """The kind of a file by its name, in one form or the other."""
    if is_name(name):
        return Kind(name[0])
    return Kind.IMAGE if is_old_name("images", name) else Kind.FILE


def mime_of(name: str) -> str:
    return mime_by_suffix(name) or UNKNOWN


def mime_by_suffix(name: str) -> str | None:
    """The type that the extension of any file name stands for; None for one that is not listed."""
    _, dot, suffix = name.rpartition(".")
    return _MIMES.get(f".{suffix.lower()}") if dot else None
