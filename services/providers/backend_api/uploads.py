"""Brings a message's files to the upstream: announce, put, confirm. A file that an account has
brought already is only confirmed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator

import msgspec

from services.core.errors import GatewayError, InvalidRequest, ProtocolError, UpstreamError
from services.core.events import SILENCE, Event
from services.providers.backend_api.attachments import Attachment
from services.providers.backend_api.calls import Calls
from services.providers.backend_api.waiting import body_of, headers_of
from services.providers.base import MAX_ERROR_BODY, ProviderContext
from services.transport import Timeouts, UpstreamRequest

REMEMBERED = 7 * 86400.0
"""Seconds for which a file's id is kept, by account and content."""

PICTURES = frozenset({"image/jpeg", "image/webp", "image/png", "image/gif"})
_OFFICE = "application/vnd.openxmlformats-officedocument."
DOCUMENTS = frozenset(
    {
        f"{_OFFICE}presentationml.presentation",
        f"{_OFFICE}wordprocessingml.document",
        "application/json",
        "application/msword",
        "application/pdf",
        "application/x-latext",
        "text/html",
        "text/javascript",
        "text/markdown",
        "text/plain",
        "text/x-c",
        "text/x-c++",
        "text/x-csharp",
        "text/x-java",
        "text/x-php",
        "text/x-ruby",
        "text/x-script.python",
        "text/x-sh",
        "text/x-tex",
        "text/x-typescript",
    }
)
_PUT = Timeouts(connect=10.0, first_byte=120.0, idle=60.0, total=300.0)


class Uploaded(msgspec.Struct, frozen=True):
    """A file at the upstream. `size` is in bytes; it is a picture if it has a width."""

    file_id: str
    name: str
    mime: str
    size: int
    width: int | None = None
    height: int | None = None


class _Announced(msgspec.Struct):
    upload_url: str
    file_id: str


class _Confirmed(msgspec.Struct):
    status: str = ""


class _Known(msgspec.Struct):
    file_id: str


def use_case(mime: str) -> str:
    """What the upstream will do with a file of this type."""
    if mime in PICTURES:
        return "multimodal"
    return "my_files" if mime in DOCUMENTS else "ace_upload"


def upload(
    file: Attachment, calls: Calls, context: ProviderContext
) -> Generator[list[Event], None, Uploaded]:
    """The file at the upstream, newly or already there.

    Raises `UpstreamError` and its kin when the upstream does not take it.
    """
    digest = hashlib.sha256(file.data).hexdigest()
    key = f"backend_api:file:{calls.owner}:{digest}"
    file_id = yield from _known(key, calls, context)
    if file_id is None:
        file_id = yield from _bring(file, calls, context)
        context.cache.set(key, msgspec.json.encode(_Known(file_id)), REMEMBERED)
    return Uploaded(file_id, file.name, file.mime, len(file.data), file.width, file.height)


def _known(
    key: str, calls: Calls, context: ProviderContext
) -> Generator[list[Event], None, str | None]:
    """The id from an earlier upload, if it is still good."""
    stored = context.cache.get(key)
    if stored is None:
        return None
    try:
        known = msgspec.json.decode(stored, type=_Known)
        yield from _confirm(known.file_id, calls)
    except (GatewayError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return known.file_id


def _bring(
    file: Attachment, calls: Calls, context: ProviderContext
) -> Generator[list[Event], None, str]:
    about = {
        "file_name": file.name,
        "file_size": len(file.data),
        "use_case": use_case(file.mime),
    }
    announced = yield from calls.ask("POST", "files", _Announced, about, about_file=True)
    yield from _put(announced.upload_url, file, context)
    yield SILENCE
    yield from _confirm(announced.file_id, calls)
    return announced.file_id


def _put(
    url: str, file: Attachment, context: ProviderContext
) -> Generator[list[Event], None, None]:
    """PUT the bytes where the upstream wants them, which is another party: no bearer goes there."""
    headers = {"Content-Type": file.mime, "x-ms-blob-type": "BlockBlob"}
    request = UpstreamRequest("PUT", url, headers, file.data)
    try:
        response = context.transport.open(
            request, timeouts=_PUT, proxy=context.settings.proxy or None
        )
    except InvalidRequest as exc:
        raise ProtocolError("the upstream gave no usable address for an upload") from exc
    with response:
        yield from headers_of(response)
        yield from body_of(response, MAX_ERROR_BODY)
    if response.status != 201:
        raise UpstreamError(f"the upstream's file store answered {response.status} to an upload")


def _confirm(file_id: str, calls: Calls) -> Generator[list[Event], None, None]:
    path = f"files/{file_id}/uploaded"
    confirmed = yield from calls.ask("POST", path, _Confirmed, {}, about_file=True)
    if confirmed.status != "success":
        raise UpstreamError("the upstream did not accept an uploaded file")
