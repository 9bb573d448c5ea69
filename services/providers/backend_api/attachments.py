"""Files that a message brings along, as bytes."""

from __future__ import annotations

import msgspec

from services.config import Settings
from services.core.errors import InvalidRequest
from services.core.requests import File, ImageURL, Part
from services.files.data_urls import Fetched, base_name
from services.files.fetch import caller_fetcher
from services.files.sniff import INLINE_IMAGES, UNKNOWN, extension, measure_image


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

        A URL under `image_url` may lead to any type of file. Raise InvalidRequest, with the field
        at fault, for what cannot be had or is broken.
        """
        match part.attached or part.image:
            case ImageURL(url=url):
                field, name = f"{param}.image_url.url", ""
            case File(file_data=str(data), filename=name):
                field = f"{param}.file.file_data"
                url = data if data[:5].lower() == "data:" else f"data:;base64,{data}"
            case File(file_url=str(url), filename=name):
                field = f"{param}.file.file_url"
            case _:
                raise InvalidRequest(
                    "a file part needs file_data, file_id or file_url", param=param
                )
        return _attachment(self._fetcher.fetch(url, param=field), name or "", field)


def _attachment(fetched: Fetched, name: str, field: str) -> Attachment:
    name, data = base_name(name) or fetched.name, bytes(fetched.data)
    said = (fetched.declared_type or "").replace("image/jpg", "image/jpeg")
    is_image = fetched.mime in INLINE_IMAGES
    # bytes that call themselves a picture and are nothing else either: say what is wrong with them
    if is_image or (said in INLINE_IMAGES and fetched.mime == UNKNOWN):
        image = measure_image(data, param=field)
        name = name or f"image{extension(image.mime)}"
        return Attachment(data, image.mime, name, image.width, image.height)
    return Attachment(data, fetched.mime, name or f"file{extension(fetched.mime)}")
