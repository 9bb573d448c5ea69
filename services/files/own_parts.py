"""Parts of a message that name files of ours, as the data they stand for: uploads by their id, and
links to pictures and files that this gateway gave out.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import partial

import msgspec

from services.config import Settings
from services.core.errors import InvalidRequest, NotFound
from services.core.models import Caller
from services.core.requests import ChatRequest, File, ImageURL, Part, file_part, image_part
from services.files.cache import FileCache, place_of
from services.files.kinds import mime_of
from services.files.public_base import is_ours
from services.files.storage import FileGone, Found
from services.files.user_files import UserFiles, owner_of

IsOurs = Callable[[str], bool]
"""Whether a URL leads to this gateway."""


class OwnFiles(msgspec.Struct, frozen=True):
    """Where files of ours lie."""

    cache: FileCache
    user_files: UserFiles
    settings: Settings


def fill_in_own_files(
    request: ChatRequest, files: OwnFiles, caller: Caller, base: Callable[[], str]
) -> ChatRequest:
    """The request with each file of ours as data; the same one if it has none.

    `base` gives our address as the caller knows it. Raise InvalidRequest, naming the part, for an
    id that is not the caller's, and for a link to us whose file has gone; Unavailable while uploads
    cannot be looked up.
    """
    if not any(_may_be_ours(part) for message in request.messages for part in message.parts):
        return request
    ours = partial(is_ours, files.settings, base)
    return request.replace_messages(
        tuple(
            msgspec.structs.replace(
                message,
                content=tuple(
                    _filled(part, files, caller, ours, f"messages[{index}].content[{place}]")
                    for place, part in enumerate(message.parts)
                ),
            )
            if message.parts
            else message
            for index, message in enumerate(request.messages)
        )
    )


def _may_be_ours(part: Part) -> bool:
    match part.attached or part.image:
        case File(file_id=str()):
            return True
        case File(file_url=str(url)) | ImageURL(url=url):
            return place_of(url) is not None
        case _:
            return False


def _filled(part: Part, files: OwnFiles, caller: Caller, ours: IsOurs, param: str) -> Part:
    match part.attached or part.image:
        case File(file_id=str(file_id), filename=name):
            data, label = _uploaded(file_id, files.user_files, caller, f"{param}.file.file_id")
            return file_part(data, name or label)
        case File(file_url=str(url), filename=name):
            found = _linked(url, files.cache, ours, f"{param}.file.file_url")
            return file_part(found[0], name or found[1]) if found else part
        case ImageURL(url=url, detail=detail):
            found = _linked(url, files.cache, ours, f"{param}.image_url.url")
            return image_part(found[0], detail) if found else part
        case _:
            return part


def _uploaded(
    file_id: str, user_files: UserFiles, caller: Caller, field: str
) -> tuple[str, str | None]:
    """A `data:` URL and the file's name."""
    try:
        file, found = user_files.open(owner_of(caller), file_id)
        return _data_url(found, file.mime), file.filename
    except (NotFound, FileGone) as exc:
        raise InvalidRequest(
            "no such file: it was deleted, has expired or is not yours",
            param=field,
            code="file_not_found",
        ) from exc


def _linked(url: str, cache: FileCache, ours: IsOurs, field: str) -> tuple[str, str | None] | None:
    """The same for a link; None if it is none of ours."""
    try:
        found = cache.find_link(url, ours)
        if found is not None:
            return _data_url(found, mime_of(found.entry.name)), found.label or None
    except FileGone:
        pass
    if place_of(url) is not None and ours(url):
        raise InvalidRequest(
            "this file of ours is not kept any more: send its content instead",
            param=field,
            code="file_expired",
        )
    return None


def _data_url(found: Found, mime: str) -> str:
    return f"data:{mime};base64,{b64encode(found.read()).decode()}"
