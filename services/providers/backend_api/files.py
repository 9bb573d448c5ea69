"""Files both ways: the caller's attachments are opened and uploaded, pictures and files in an
answer looked up.
"""

from __future__ import annotations

import hashlib
import logging
import re
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec

from services.config import Settings
from services.core.errors import GatewayError, InvalidRequest, ProtocolError, UpstreamError
from services.core.events import SILENCE, Event, Events, File, Image, Text
from services.core.requests import File as FileInput
from services.core.requests import ImageURL, Part
from services.files.data_urls import Fetched, base_name
from services.files.fetch import caller_fetcher
from services.files.sniff import INLINE_IMAGES, UNKNOWN, extension, measure_image
from services.providers.backend_api.calls import Calls, Waiting, read_body, wait_for_headers
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.base import ProviderContext
from services.transport import Timeouts, UpstreamRequest

log = logging.getLogger(__name__)

CACHED = 7 * 86400.0
"""Seconds for which an uploaded file's id is kept, by account and content."""

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
        *(f"text/{kind}" for kind in ("html", "javascript", "markdown", "plain")),
        *(f"text/x-{kind}" for kind in ("c", "c++", "csharp", "java", "php", "ruby")),
        *(f"text/x-{kind}" for kind in ("script.python", "sh", "tex", "typescript")),
    }
)
_PUT = Timeouts(connect=10.0, first_byte=120.0, idle=60.0, total=300.0)
_POINTER = re.compile(r"(?:file-service|sediment)://([\w-]{1,200})(?:[?#].*)?", re.ASCII)
_ENCODED = re.compile(r"filename\*=utf-8'[^']*'([^;]+)", re.IGNORECASE)
_PLAIN = re.compile(r"filename=([^;]+)", re.IGNORECASE)


class Attachment(msgspec.Struct, frozen=True):
    """A file of a message. `mime` is told by the bytes; `name` is the user's.

    `width` and `height` are in pixels, and None unless it is a png, jpeg, gif or webp picture.
    """

    data: bytes
    mime: str
    name: str
    width: int | None = None
    height: int | None = None

    def __repr__(self) -> str:
        return f"Attachment({len(self.data)} bytes, mime={self.mime!r})"


class Opener:
    """Opens `data:` URLs, base64 and public http(s) URLs; not the ids of uploads."""

    def __init__(self, settings: Settings) -> None:
        self._fetcher = caller_fetcher(settings)

    def __call__(self, part: Part, *, param: str) -> Attachment:
        """The file behind a part; `param` is its place in the request.

        A URL under `image_url` may lead to any type of file. Raises `InvalidRequest`, with the
        field at fault, for what cannot be had or is broken.
        """
        match part.attached or part.image:
            case ImageURL(url=url):
                field, name = f"{param}.image_url.url", ""
            case FileInput(file_data=str(data), filename=name):
                field = f"{param}.file.file_data"
                url = data if data[:5].lower() == "data:" else f"data:;base64,{data}"
            case FileInput(file_url=str(url), filename=name):
                field = f"{param}.file.file_url"
            case _:
                raise InvalidRequest(
                    "a file part needs file_data, file_id or file_url", param=param
                )
        return _attachment(self._fetcher.fetch(url, param=field), name or "", field)


def _attachment(fetched: Fetched, name: str, field: str) -> Attachment:
    name, data = base_name(name) or fetched.name, bytes(fetched.data)
    declared = (fetched.declared_type or "").replace("image/jpg", "image/jpeg")
    is_image = fetched.mime in INLINE_IMAGES
    # bytes that call themselves a picture and are nothing else either: say what is wrong with them
    if is_image or (declared in INLINE_IMAGES and fetched.mime == UNKNOWN):
        image = measure_image(data, param=field)
        name = name or f"image{extension(image.mime)}"
        return Attachment(data, image.mime, name, image.width, image.height)
    return Attachment(data, fetched.mime, name or f"file{extension(fetched.mime)}")


class Uploaded(msgspec.Struct, frozen=True):
    """A file at the upstream. `size` is in bytes; it is a picture if it has a width."""

    file_id: str
    name: str
    mime: str
    size: int
    width: int | None = None
    height: int | None = None


class _CreatedFile(msgspec.Struct):
    upload_url: str
    file_id: str


class _UploadStatus(msgspec.Struct):
    status: str = ""


class _CachedFile(msgspec.Struct):
    file_id: str


def use_case(mime: str) -> str:
    """What the upstream will do with a file of this type."""
    if mime in PICTURES:
        return "multimodal"
    return "my_files" if mime in DOCUMENTS else "ace_upload"


def upload(file: Attachment, calls: Calls, context: ProviderContext) -> Waiting[Uploaded]:
    """The file at the upstream. One that the account has uploaded already is only confirmed again.

    Raises `UpstreamError` and its kin when the upstream does not take it.
    """
    digest = hashlib.sha256(file.data).hexdigest()
    key = f"backend_api:file:{calls.account_key}:{digest}"
    file_id = yield from _cached_id(key, calls, context)
    if file_id is None:
        file_id = yield from _upload_new(file, calls, context)
        context.cache.set(key, msgspec.json.encode(_CachedFile(file_id)), CACHED)
    return Uploaded(file_id, file.name, file.mime, len(file.data), file.width, file.height)


def _cached_id(key: str, calls: Calls, context: ProviderContext) -> Waiting[str | None]:
    """The id from an earlier upload, if it is still good."""
    cached = context.cache.get(key)
    if cached is None:
        return None
    try:
        known = msgspec.json.decode(cached, type=_CachedFile)
        yield from _confirm(known.file_id, calls)
    except (GatewayError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return known.file_id


def _upload_new(file: Attachment, calls: Calls, context: ProviderContext) -> Waiting[str]:
    """Create the file, PUT its bytes where the upstream says, confirm; returns its id."""
    about = {
        "file_name": file.name,
        "file_size": len(file.data),
        "use_case": use_case(file.mime),
    }
    created = yield from calls.ask("POST", "files", _CreatedFile, about, about_file=True)
    # another party, so no bearer goes there
    headers = {"Content-Type": file.mime, "x-ms-blob-type": "BlockBlob"}
    request = UpstreamRequest("PUT", created.upload_url, headers, file.data)
    try:
        response = context.transport.open(
            request, timeouts=_PUT, proxy=context.settings.proxy or None
        )
    except InvalidRequest as exc:
        raise ProtocolError("the upstream gave no usable address for an upload") from exc
    with response:
        yield from wait_for_headers(response)
        yield from read_body(response)
    if response.status != 201:
        raise UpstreamError(f"the upstream's file store answered {response.status} to an upload")
    yield SILENCE
    yield from _confirm(created.file_id, calls)
    return created.file_id


def _confirm(file_id: str, calls: Calls) -> Waiting[None]:
    path = f"files/{file_id}/uploaded"
    answer = yield from calls.ask("POST", path, _UploadStatus, {}, about_file=True)
    if answer.status != "success":
        raise UpstreamError("the upstream did not accept an uploaded file")


class Asset(msgspec.Struct, frozen=True):
    """A picture in an answer, by its id among the upstream's files."""

    file_id: str
    revised_prompt: str | None = None


class SandboxFile(msgspec.Struct, frozen=True):
    """A file in an answer that running code has left; `link` is the target as it stood in the
    text.
    """

    link: str
    message_id: str


Item = Event | Asset | SandboxFile
"""What an answer consists of before its files are looked up."""


def file_id(pointer: str) -> str | None:
    """The id in `file-service://file-…`."""
    found = _POINTER.fullmatch(pointer)
    return found[1] if found else None


class _DownloadAddress(msgspec.Struct):
    status: str = ""
    download_url: str | None = None


class Downloads:
    """Looks up the files of one answer. A file that cannot be had is named in the answer."""

    def __init__(self, calls: Calls, settings: Settings, own: BackendApiSettings) -> None:
        self._calls = calls
        self._own = own
        self._host = settings.file_server_host if settings.use_pandora_file_server else ""

    def resolve(self, items: list[Item], conversation_id: str) -> Events:
        """The same as events; what stands before a lookup goes out before it."""
        batch: list[Event] = []
        for item in items:
            if not isinstance(item, Asset | SandboxFile):
                batch.append(item)
                continue
            if batch:
                yield batch
            if isinstance(item, Asset):
                batch = yield from self._picture(item)
            else:
                batch = yield from self._file(item, conversation_id)
        yield batch

    def _picture(self, asset: Asset) -> Waiting[list[Event]]:
        try:
            url = yield from self._url(f"files/{asset.file_id}/download")
        except GatewayError as exc:
            log.info("picture not had reason=%s", exc.message)
            return [Image(missing=self._own.image_error)]
        title = self._own.image_label or "image"
        return [Image(url=url, title=title, revised_prompt=asset.revised_prompt)]

    def _file(self, file: SandboxFile, conversation_id: str) -> Waiting[list[Event]]:
        path = file.link.removeprefix("sandbox:")
        query = f"message_id={quote(file.message_id, safe='')}&sandbox_path={quote(path, safe='')}"
        where = f"conversation/{quote(conversation_id, safe='')}/interpreter/download?{query}"
        try:
            url = yield from self._url(where)
        except GatewayError as exc:
            log.info("sandbox file not had reason=%s", exc.message)
            return [Text(self._own.sandbox_error)]
        return [Text("("), File(url=url, name=_file_name(url, path), link=file.link), Text(")")]

    def _url(self, path: str) -> Waiting[str]:
        """The address of a file, at the operator's file server if there is one."""
        answer = yield from self._calls.ask("GET", path, _DownloadAddress, about_file=True)
        if not answer.download_url or answer.status != "success":
            raise ProtocolError("the upstream gave no address for a file")
        if not self._host:
            return answer.download_url
        scheme, slashes, place = self._host.rpartition("://")
        url = urlsplit(answer.download_url)
        return url._replace(
            scheme=scheme if slashes else url.scheme, netloc=place.strip("/")
        ).geturl()


def _file_name(url: str, path: str) -> str:
    """The file's name as its download would call it, without folders; else that of the path."""
    disposition = parse_qs(urlsplit(url).query).get("rscd", [""])[0]
    found = _ENCODED.search(disposition) or _PLAIN.search(disposition)
    name = base_name(unquote(found[1]).strip('"')) if found else ""
    return name or base_name(path) or "file"
