"""Files that a message brings along, as bytes."""

from __future__ import annotations

from typing import Protocol

import msgspec

from services.config import Settings
from services.core.errors import InvalidRequest
from services.core.requests import FilePart, ImagePart
from services.fetch import AllowList, Fetched, Fetcher, Limits, base_name, decode_data_url
from services.media import INLINE_IMAGES, UNKNOWN, extension, measure_image

_MEGABYTE = 1024 * 1024


class Attachment(Protocol):
    """A file of a message. `width` and `height` are in pixels, None unless it is a picture."""

    @property
    def data(self) -> bytes: ...
    @property
    def mime(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...


class OpenAttachment(Protocol):
    """Gets the bytes behind a part. `param` is the part's place in the request, for errors."""

    def __call__(self, part: ImagePart | FilePart, *, param: str) -> Attachment:
        """Raises `InvalidRequest` for what cannot be had or is broken."""
        ...


class OpenedFile(msgspec.Struct, frozen=True):
    """An `Attachment` with values of its own."""

    data: bytes
    mime: str
    name: str
    width: int | None = None
    height: int | None = None

    def __repr__(self) -> str:
        return f"OpenedFile({len(self.data)} bytes, mime={self.mime!r})"


class Opener:
    """Opens `data:` URLs, base64 and public http(s) URLs; not the ids of uploads."""

    def __init__(self, settings: Settings) -> None:
        files = settings.files
        self._max_bytes = int(files.fetch_max_mb * _MEGABYTE)
        self._fetcher = Fetcher(
            allow=AllowList(files.fetch_allow),
            limits=Limits(seconds=files.fetch_timeout, max_bytes=self._max_bytes),
        )

    def __call__(self, part: ImagePart | FilePart, *, param: str) -> Attachment:
        match part:
            case ImagePart(url=url):
                return _opened(self._fetcher.fetch(url, param=param), "", param)
            case FilePart(data=str(data), name=name):
                url = data if data[:5].lower() == "data:" else f"data:;base64,{data}"
                return _opened(decode_data_url(url, self._max_bytes, param=param), name, param)
            case FilePart(url=str(url), name=name):
                return _opened(self._fetcher.fetch(url, param=param), name, param)
            case _:
                raise InvalidRequest("this file cannot be had by its id here", param=param)


def _opened(fetched: Fetched, name: str | None, param: str) -> OpenedFile:
    """A picture by its bytes is measured; one that only claims to be a picture is refused."""
    name = base_name(name or "") or fetched.name
    claims = (fetched.declared_type or "").replace("image/jpg", "image/jpeg")
    if fetched.mime in INLINE_IMAGES or (claims in INLINE_IMAGES and fetched.mime == UNKNOWN):
        image = measure_image(fetched.data, param=param)
        name = name or f"image{extension(image.mime)}"
        return OpenedFile(fetched.data, image.mime, name, image.width, image.height)
    return OpenedFile(fetched.data, fetched.mime, name or f"file{extension(fetched.mime)}")
