"""What a message part refers to, as bytes of a known type."""

from __future__ import annotations

import msgspec

from services.core.errors import InvalidRequest, NotFound
from services.core.models import Caller
from services.core.requests import FilePart, ImagePart
from services.fetch import Fetched, Fetcher, base_name, decode_data_url
from services.files.storage import FileGone
from services.files.user_files import UserFiles, owner_of
from services.media import INLINE_IMAGES, UNKNOWN, extension, measure_image


class Attachment(msgspec.Struct, frozen=True):
    """A file that a message brings. `mime` is told by the bytes; `name` is the user's.

    `width` and `height` are in pixels, and None unless it is a png, jpeg, gif or webp picture.
    """

    data: bytes
    mime: str
    name: str
    width: int | None = None
    height: int | None = None

    def __repr__(self) -> str:
        return f"Attachment({len(self.data)} bytes, mime={self.mime!r})"


class Sources(msgspec.Struct, frozen=True):
    """Where attachments come from. `fetcher` must be the one for callers' URLs."""

    fetcher: Fetcher
    user_files: UserFiles
    max_bytes: int


def resolve_attachment(
    part: ImagePart | FilePart, sources: Sources, caller: Caller, *, param: str
) -> Attachment:
    """The file behind a part: an http(s) or `data:` URL, base64, or the id of an upload.

    `param` is the part's place in the request. A URL under `image_url` may lead to any type of
    file. Raise InvalidRequest, with the field at fault, for what cannot be had or is broken;
    Unavailable while uploads cannot be looked up.
    """
    match part:
        case ImagePart(url=url):
            field = f"{param}.image_url.url"
            return _attachment(sources.fetcher.fetch(url, param=field), "", field)
        case FilePart(file_id=str(file_id), name=name):
            field = f"{param}.file.file_id"
            return _attachment(_uploaded(file_id, sources, caller, field), name or "", field)
        case FilePart(data=str(data), name=name):
            field = f"{param}.file.file_data"
            url = data if data[:5].lower() == "data:" else f"data:;base64,{data}"
            fetched = decode_data_url(url, sources.max_bytes, param=field)
            return _attachment(fetched, name or "", field)
        case FilePart(url=str(url), name=name):
            field = f"{param}.file.file_url"
            return _attachment(sources.fetcher.fetch(url, param=field), name or "", field)
        case _:
            raise InvalidRequest("a file part needs file_data, file_id or file_url", param=param)


def _attachment(fetched: Fetched, name: str, field: str) -> Attachment:
    name = base_name(name) or fetched.name
    said = (fetched.declared_type or "").replace("image/jpg", "image/jpeg")
    is_image = fetched.mime in INLINE_IMAGES
    # bytes that call themselves a picture and are nothing else either: say what is wrong with them
    if is_image or (said in INLINE_IMAGES and fetched.mime == UNKNOWN):
        image = measure_image(fetched.data, param=field)
        name = name or f"image{extension(image.mime)}"
        return Attachment(fetched.data, image.mime, name, image.width, image.height)
    return Attachment(fetched.data, fetched.mime, name or f"file{extension(fetched.mime)}")


def _uploaded(file_id: str, sources: Sources, caller: Caller, field: str) -> Fetched:
    try:
        file, found = sources.user_files.open(owner_of(caller), file_id)
        body = found.open(0, found.entry.size)
    except (NotFound, FileGone) as exc:
        raise InvalidRequest(
            "no such file: it was deleted, has expired or is not yours",
            param=field,
            code="file_not_found",
        ) from exc
    try:
        data = body.read()
    finally:
        body.close()
    return Fetched(data=data, mime=file.mime, name=file.filename)
