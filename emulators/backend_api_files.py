"""Uploads in three steps and downloads in two of the `backend-api` emulator.

Scripted answers besides the general ones: `failed` (file_uploaded: 200 with status `failed`).
"""

from __future__ import annotations

from urllib.parse import quote

from .backend_api_records import Conversation, StoredFile
from .backend_api_visit import Visit

USE_CASES = ("multimodal", "my_files", "ace_upload")


def create(visit: Visit) -> None:
    """POST files: announce a file, get its id and where to put it."""
    account, body = visit.account(), None
    if account is not None:
        body = visit.json_body()
    if account is None or body is None:
        return
    name, size, use_case = body.get("file_name"), body.get("file_size"), body.get("use_case")
    if not isinstance(name, str) or not isinstance(size, int) or use_case not in USE_CASES:
        visit.problem("file_name, file_size or use_case is missing or wrong")
        visit.reply.json(422, {"detail": [{"loc": ["body"], "msg": "field required"}]})
        return
    file = StoredFile(
        visit.state.new_file_id(), account.name, name, declared_size=size, use_case=use_case
    )
    url = _blob_url(visit, visit.state.add_file(file))
    visit.reply.json(200, {"status": "success", "upload_url": url, "file_id": file.file_id})


def put_blob(visit: Visit) -> None:
    """PUT the announced bytes; wants `x-ms-blob-type: BlockBlob`, no bearer, and answers 201."""
    file = _signed_file(visit)
    if file is None:
        return
    if visit.request.headers.get("x-ms-blob-type") != "BlockBlob":
        visit.problem("x-ms-blob-type is not BlockBlob")
        visit.reply.send(400, "<Error><Code>MissingRequiredHeader</Code></Error>")
        return
    if len(visit.request.body) != file.declared_size:
        visit.problem(f"announced {file.declared_size} bytes, sent {len(visit.request.body)}")
    file.content = visit.request.body
    file.content_type = visit.request.headers.get("content-type", "application/octet-stream")
    file.stored = True
    visit.reply.send(201)


def uploaded(visit: Visit) -> None:
    """POST files/<id>/uploaded: 404 unless the caller's, status `failed` without bytes."""
    file = _owned_file(visit)
    if file is None:
        return
    if not file.stored or visit.entry.get("answer") == "failed":
        visit.reply.json(200, {"status": "failed", "error_code": "upload_incomplete"})
        return
    file.uploaded = True
    visit.reply.json(200, {"status": "success", "download_url": _blob_url(visit, file)})


def download(visit: Visit) -> None:
    """GET files/<id>/download: a link to the bytes."""
    file = _owned_file(visit)
    if file is not None:
        _send_link(visit, file)


def interpreter_download(visit: Visit) -> None:
    """GET conversation/<id>/interpreter/download: a link to a file of the sandbox.

    Temporary conversations have none: 403, or what `State.temporary_download_status` says.
    """
    conversation = owned_conversation(visit)
    if conversation is None:
        return
    if conversation.temporary:
        status = visit.state.temporary_download_status
        visit.detail(status, "conversation_not_found", "The session has expired.")
        return
    file_id = conversation.sandbox.get(visit.request.param("sandbox_path"), "")
    file = visit.state.files.get(file_id)
    if file is None or visit.request.param("message_id") not in conversation.messages:
        visit.problem("unknown message_id or sandbox_path")
        visit.detail(404, "file_not_found", "The file was not found.")
        return
    _send_link(visit, file)


def get_blob(visit: Visit) -> None:
    """GET the bytes a link leads to; wants no bearer."""
    file = _signed_file(visit)
    if file is None:
        return
    disposition = visit.request.param("rscd")
    headers = {"Content-Disposition": quote(disposition, safe=" ;=*'\"%/.")} if disposition else {}
    visit.reply.send(200, file.content, headers, file.content_type)


def owned_conversation(visit: Visit) -> Conversation | None:
    """The caller's conversation; answers 401 or 404 and gives None otherwise."""
    account = visit.account()
    if account is None:
        return None
    conversation = visit.state.conversations.get(visit.args["conversation_id"])
    if conversation is None or conversation.owner != account.name:
        visit.detail(404, "conversation_not_found", "Conversation not found.")
        return None
    visit.call.conversation_id = conversation.conversation_id
    return conversation


def _send_link(visit: Visit, file: StoredFile) -> None:
    if file.refused:
        visit.detail(file.refused, "file_access_denied", "You do not have access to this file.")
        return
    rscd = quote(f"attachment; filename={file.name}", safe="")
    url = f"{_blob_url(visit, file)}&rscd={rscd}"
    visit.reply.json(200, {"status": "success", "download_url": url})


def _owned_file(visit: Visit) -> StoredFile | None:
    account = visit.account()
    if account is None:
        return None
    file = visit.state.files.get(visit.args["file_id"])
    if file is None or file.owner != account.name:
        visit.detail(404, "file_not_found", "The file was not found.")
        return None
    return file


def _signed_file(visit: Visit) -> StoredFile | None:
    if "authorization" in visit.request.headers:
        visit.problem("a bearer was sent to the blob store")
    file = visit.state.files.get(visit.args["file_id"])
    if file is None or visit.request.param("sig") != file.signature:
        visit.reply.send(403, "<Error><Code>AuthenticationFailed</Code></Error>")
        return None
    return file


def _blob_url(visit: Visit, file: StoredFile) -> str:
    return f"{visit.base}/blob/{file.file_id}?se=2099-01-01&sp=rw&sig={file.signature}"
