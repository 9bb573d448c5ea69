"""GET /images/<name> and /files/<name>, for anybody who knows the name; and OpenAI's /v1/files."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import IO, Any, cast

import msgspec
from flask import Blueprint, Response, request
from werkzeug.datastructures import FileStorage
from werkzeug.formparser import FormDataParser
from werkzeug.wsgi import wrap_file

from services.api.auth import Authenticator
from services.api.body import read_body
from services.config import Settings
from services.core.errors import InvalidRequest, NotFound
from services.files.cache import FileCache
from services.files.serve import deliver
from services.files.storage import Area, FileGone, Found
from services.files.uploads import UserFile, UserFiles, owner_of

_AT_ONCE = 256 * 1024
_BLOCK = 64 * 1024
_MAX_PARTS = 20
_MAX_FIELD = 512 * 1024  # not less: the parser holds pieces of files to it too
_MAX_PAGE = 10_000


def public_blueprint(cache: FileCache) -> Blueprint:
    """Pictures and files by their names, which cannot be guessed; no key, no prefix."""
    bp = Blueprint("public_files", __name__)

    @bp.get("/images/<name>")
    def image(name: str) -> Response:
        return _public(cache, "images", name)

    @bp.get("/files/<name>")
    def file(name: str) -> Response:
        return _public(cache, "files", name)

    return bp


def blueprint(settings: Settings, files: UserFiles, auth: Authenticator) -> Blueprint:
    """The routes of /v1/files. A caller sees its own files only.

    `expires_after` has no effect: `expires_at` in the answer says how long a file is kept.
    """
    seconds = settings.server.slow_body_timeout
    bp = Blueprint("files", __name__)

    def owner() -> str:
        return owner_of(auth.caller(request.headers))

    @bp.post("/v1/files")
    def upload() -> Response:
        mine = owner()
        uploaded, purpose = _read_upload(read_body(request, seconds))
        declared = uploaded.mimetype or None
        name = uploaded.filename or ""
        return _json(_shown(files.add(mine, uploaded.read(), name, purpose, declared)))

    @bp.get("/v1/files")
    def index() -> Response:
        return _json(_page(files.owned_by(owner()), request.args.get))

    @bp.get("/v1/files/<file_id>")
    def show(file_id: str) -> Response:
        return _json(_shown(files.get(owner(), file_id)))

    @bp.delete("/v1/files/<file_id>")
    def delete(file_id: str) -> Response:
        files.delete(owner(), file_id)
        return _json({"id": file_id, "object": "file", "deleted": True})

    @bp.get("/v1/files/<file_id>/content")
    def content(file_id: str) -> Response:
        _, found = files.open(owner(), file_id)
        return _sent(found)

    return bp


def _public(cache: FileCache, area: Area, name: str) -> Response:
    found = cache.find(area, name)
    if found is None:
        raise _no_file()
    return _sent(found)


def _sent(found: Found) -> Response:
    """Small files go out in one piece, large ones in blocks or by the server's sendfile."""
    delivery = deliver(found, request.method, cast("Any", request.headers))
    response = Response(status=delivery.status, headers=delivery.headers, direct_passthrough=True)
    if "Content-Type" not in delivery.headers:
        del response.headers["Content-Type"]
    if delivery.length == 0:
        return response
    try:
        body = found.open(delivery.start, delivery.length)
    except FileGone as exc:
        raise _no_file() from exc
    if delivery.length > _AT_ONCE:
        response.response = wrap_file(request.environ, cast("IO[bytes]", body), _BLOCK)
        return response
    try:
        response.response = [body.read()]
    finally:
        body.close()
    return response


def _no_file() -> NotFound:
    return NotFound(
        "there is no such file here; it may have expired", headers={"Cache-Control": "no-store"}
    )


def _read_upload(body: bytes) -> tuple[FileStorage, str]:
    """The parts `file` and `purpose` of a multipart body."""
    parser = FormDataParser(
        stream_factory=_in_memory,
        max_form_memory_size=_MAX_FIELD,
        max_form_parts=_MAX_PARTS,
    )
    _, form, uploads = parser.parse(
        BytesIO(body), request.mimetype, len(body), request.mimetype_params
    )
    purpose, uploaded = form.get("purpose", ""), uploads.get("file")
    if uploaded is None:
        raise _missing("file")
    if not purpose:
        raise _missing("purpose")
    if len(purpose) > 64 or not purpose.isprintable():
        raise InvalidRequest("purpose must be 1 to 64 printable characters", param="purpose")
    return uploaded, purpose


def _in_memory(
    total_content_length: int | None,
    content_type: str | None,
    filename: str | None,
    content_length: int | None = None,
) -> IO[bytes]:
    """Where an uploaded part goes; the body it comes from is bounded."""
    return BytesIO()


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"missing required parameter: {param}; send multipart/form-data with file and purpose",
        param=param,
        code="missing_required_parameter",
    )


def _page(files: list[UserFile], asked: Callable[[str, str], str]) -> dict[str, Any]:
    """One page of the list, by the query's `purpose`, `order`, `after` and `limit`."""
    purpose = asked("purpose", "")
    chosen = [file for file in files if purpose in ("", file.purpose)]
    if asked("order", "desc") != "asc":
        chosen.reverse()
    after = asked("after", "")
    if after:
        places = [place for place, file in enumerate(chosen, start=1) if file.id == after]
        chosen = chosen[places[0] :] if places else []
    shown = [_shown(file) for file in chosen[: _limit(asked("limit", str(_MAX_PAGE)))]]
    return {
        "object": "list",
        "data": shown,
        "has_more": len(shown) < len(chosen),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= _MAX_PAGE):
        raise InvalidRequest(f"limit must be 1 to {_MAX_PAGE}", param="limit")
    return int(text)


def _shown(file: UserFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json")
