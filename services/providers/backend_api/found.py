"""What an answer points at, until it is looked up; and what all is in one answer."""

from __future__ import annotations

import re

import msgspec

from services.core.events import Event

_POINTER = re.compile(r"(?:file-service|sediment)://([\w-]{1,200})(?:[?#].*)?", re.ASCII)


class Asset(msgspec.Struct, frozen=True):
    """A picture among the upstream's files."""

    file_id: str
    revised_prompt: str | None = None


class SandboxFile(msgspec.Struct, frozen=True):
    """A file that running code has left; `link` is the target as it stood in the text."""

    link: str
    message_id: str


Found = Event | Asset | SandboxFile


def file_id(pointer: str) -> str | None:
    """The id in `file-service://file-…`."""
    found = _POINTER.fullmatch(pointer)
    return found[1] if found else None
