"""Looks up what an answer points at: pictures, plots, and files in the sandbox."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec

from services.config import Settings
from services.core.errors import GatewayError, ProtocolError
from services.core.events import Event, Events, File, Image, Text
from services.files.data_urls import base_name
from services.providers.backend_api.calls import Calls
from services.providers.backend_api.found import Asset, Found, SandboxFile
from services.providers.backend_api.settings import BackendApiSettings

_ENCODED = re.compile(r"filename\*=utf-8'[^']*'([^;]+)", re.IGNORECASE)
_PLAIN = re.compile(r"filename=([^;]+)", re.IGNORECASE)

log = logging.getLogger(__name__)


class _Link(msgspec.Struct):
    status: str = ""
    download_url: str | None = None


class Downloads:
    """Lookups for one turn. What cannot be had is said in the answer."""

    def __init__(self, calls: Calls, settings: Settings, own: BackendApiSettings) -> None:
        self._calls = calls
        self._own = own
        self._host = settings.file_server_host if settings.use_pandora_file_server else ""

    def resolved(self, found: list[Found], conversation_id: str) -> Events:
        """The same as events; what stands before a lookup goes out before it."""
        batch: list[Event] = []
        for item in found:
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

    def _picture(self, asset: Asset) -> Generator[list[Event], None, list[Event]]:
        try:
            url = yield from self._url(f"files/{asset.file_id}/download")
        except GatewayError as exc:
            log.info("picture not had reason=%s", exc.message)
            return [Image(missing=self._own.image_error)]
        title = self._own.image_label or "image"
        return [Image(url=url, title=title, revised_prompt=asset.revised_prompt)]

    def _file(
        self, file: SandboxFile, conversation_id: str
    ) -> Generator[list[Event], None, list[Event]]:
        path = file.link.removeprefix("sandbox:")
        query = f"message_id={quote(file.message_id, safe='')}&sandbox_path={quote(path, safe='')}"
        where = f"conversation/{quote(conversation_id, safe='')}/interpreter/download?{query}"
        try:
            url = yield from self._url(where)
        except GatewayError as exc:
            log.info("sandbox file not had reason=%s", exc.message)
            return [Text(self._own.sandbox_error)]
        return [Text("("), File(url=url, name=_name(url, path), link=file.link), Text(")")]

    def _url(self, path: str) -> Generator[list[Event], None, str]:
        link = yield from self._calls.ask("GET", path, _Link, about_file=True)
        if not link.download_url or link.status != "success":
            raise ProtocolError("the upstream gave no address for a file")
        return _at_host(link.download_url, self._host) if self._host else link.download_url


def _name(url: str, path: str) -> str:
    """The file's name as its download would call it, without folders; else that of the path."""
    said = parse_qs(urlsplit(url).query).get("rscd", [""])[0]
    found = _ENCODED.search(said) or _PLAIN.search(said)
    name = base_name(unquote(found[1]).strip('"')) if found else ""
    return name or base_name(path) or "file"


def _at_host(url: str, host: str) -> str:
    """`url` at the operator's file server; `host` may bring a scheme and a port."""
    scheme, slashes, place = host.rpartition("://")
    parts = urlsplit(url)
    return parts._replace(
        scheme=scheme if slashes else parts.scheme, netloc=place.strip("/")
    ).geturl()
