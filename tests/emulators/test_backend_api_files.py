"""The `backend-api` emulator's files and what becomes of conversations."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from backend_api_client import TIMEOUT, bearer, call, payload, read, say

from emulators.backend_api import BackendApi
from emulators.backend_api_assets import CSV, png

BLOB = {"x-ms-blob-type": "BlockBlob", "Content-Type": "text/plain"}


@pytest.fixture
def upstream() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as server:
        yield server
    assert server.errors == []


def announce(upstream: BackendApi, size: int = 5) -> dict[str, str]:
    body = {"file_name": "a.txt", "file_size": size, "use_case": "my_files"}
    found: dict[str, str] = call(upstream, "POST", "/backend-api/files", json=body).json()
    return found


def put(url: str, headers: dict[str, str] = BLOB) -> int:
    return requests.put(url, b"otter", headers=headers, timeout=TIMEOUT).status_code


def complete(upstream: BackendApi, file_id: str, account: str = "alice") -> requests.Response:
    path = f"/backend-api/files/{file_id}/uploaded"
    return call(upstream, "POST", path, json={}, headers=bearer(upstream, account))


def test_upload_in_three_steps(upstream: BackendApi) -> None:
    file = announce(upstream)
    assert file["status"] == "success"
    assert put(file["upload_url"]) == 201
    done = complete(upstream, file["file_id"]).json()
    assert requests.get(done["download_url"], timeout=TIMEOUT).content == b"otter"
    assert upstream.problems == []


def test_upload_refusals(upstream: BackendApi) -> None:
    file = announce(upstream, size=4)
    assert complete(upstream, file["file_id"]).json()["status"] == "failed"
    assert put(file["upload_url"], {}) == 400
    assert put(file["upload_url"] + "0") == 403
    assert put(file["upload_url"], {**BLOB, "Authorization": "Bearer x"}) == 201
    assert complete(upstream, file["file_id"], "bob").status_code == 404
    assert complete(upstream, "file-unknown").status_code == 404
    assert "blob_put: announced 4 bytes, sent 5" in upstream.problems
    assert "blob_put: a bearer was sent to the blob store" in upstream.problems


def test_scripted_upload_failures(upstream: BackendApi) -> None:
    file = announce(upstream)
    upstream.script({"endpoint": "blob_put", "status": 403})
    assert put(file["upload_url"]) == 403
    assert put(file["upload_url"]) == 201
    upstream.script({"endpoint": "file_uploaded", "answer": "failed"})
    assert complete(upstream, file["file_id"]).json()["status"] == "failed"
    assert complete(upstream, file["file_id"]).json()["status"] == "success"


def test_attachment_must_be_uploaded_by_the_caller(upstream: BackendApi) -> None:
    body = payload()
    body["messages"][0]["metadata"] = {"attachments": [{"id": "file-x"}]}
    call(upstream, "POST", "/backend-api/conversation", json=body)
    assert upstream.problems == ["conversation: file-x is not an uploaded file of this account"]


@pytest.mark.parametrize(("name", "count"), [("dalle", 1), ("dalle_two", 2)])
def test_pictures_are_png_of_the_asked_size(upstream: BackendApi, name: str, count: int) -> None:
    events = read(say(upstream, f"#{name} as 320x200"))
    drawn = next(e["message"] for e in events if "image_asset_pointer" in str(e))
    assert drawn["author"] == {"role": "tool", "name": "dalle.text2im", "metadata": {}}
    parts = drawn["content"]["parts"]
    assert [(part["width"], part["height"]) for part in parts] == [(320, 200)] * count
    pictures = [download(upstream, part["asset_pointer"]).content for part in parts]
    assert [struct.unpack(">II", data[16:24]) for data in pictures] == [(320, 200)] * count
    assert len(set(pictures)) == count
    assert [len(data) for data in pictures] == [part["size_bytes"] for part in parts]


def download(upstream: BackendApi, pointer: str) -> requests.Response:
    file_id = pointer.removeprefix("file-service://")
    link = call(upstream, "GET", f"/backend-api/files/{file_id}/download")
    return requests.get(link.json()["download_url"], timeout=TIMEOUT)


def test_png_holds_every_pixel() -> None:
    data = png(3, 2)
    size = struct.unpack(">I", data[33:37])[0]
    assert len(zlib.decompress(data[41 : 41 + size])) == 2 * (1 + 3 * 3)


def test_plot_is_an_aggregate_result(upstream: BackendApi) -> None:
    events = read(say(upstream, "#plot"))
    shown = next(e for e in events if "aggregate_result" in str(e))["message"]["metadata"]
    url = shown["aggregate_result"]["messages"][0]["image_url"]
    assert download(upstream, url).headers["Content-Type"] == "image/png"


def test_refused_picture_is_403(upstream: BackendApi) -> None:
    part = next(e for e in read(say(upstream, "#dalle_403")) if "asset_pointer" in str(e))
    file_id = part["message"]["content"]["parts"][0]["asset_pointer"].removeprefix(
        "file-service://"
    )
    assert call(upstream, "GET", f"/backend-api/files/{file_id}/download").status_code == 403


def sandbox_link(upstream: BackendApi, text: str, path: str, **fields: object) -> requests.Response:
    found = [e for e in read(say(upstream, text, **fields)) if "sandbox:" in str(e)][-1]
    url = f"/backend-api/conversation/{found['conversation_id']}/interpreter/download"
    query = {"message_id": found["message"]["id"], "sandbox_path": path}
    return call(upstream, "GET", url, params=query)


@pytest.mark.parametrize(
    ("name", "path", "file_name"),
    [
        ("sandbox", "/mnt/data/report.csv", "report.csv"),
        ("sandbox_unicode", "/mnt/data/季度 报告.csv", "季度 报告.csv"),
        ("sandbox_traversal", "/mnt/data/report.csv", "../../../evil.csv"),
    ],
)
def test_sandbox_download(upstream: BackendApi, name: str, path: str, file_name: str) -> None:
    url = sandbox_link(upstream, f"#{name}", path).json()["download_url"]
    rscd = parse_qs(urlsplit(url).query)["rscd"]
    assert rscd == [f"attachment; filename={file_name}"]
    assert requests.get(url, timeout=TIMEOUT).content == CSV
    assert upstream.problems == []


def test_sandbox_refusals(upstream: BackendApi) -> None:
    path = "/mnt/data/report.csv"
    assert sandbox_link(upstream, "#sandbox_refused", path).status_code == 403
    temporary = {"history_and_training_disabled": True}
    assert sandbox_link(upstream, "#sandbox", path, **temporary).status_code == 403
    upstream.state.temporary_download_status = 404
    assert sandbox_link(upstream, "#sandbox", path, **temporary).status_code == 404
    assert sandbox_link(upstream, "#sandbox", "/mnt/data/other").status_code == 404


def hide(upstream: BackendApi, conversation_id: str, account: str = "alice") -> int:
    path = f"/backend-api/conversation/{conversation_id}"
    headers = bearer(upstream, account)
    return call(upstream, "PATCH", path, json={"is_visible": False}, headers=headers).status_code


def test_hiding_a_conversation(upstream: BackendApi) -> None:
    kept = read(say(upstream))[0]["conversation_id"]
    temporary = read(say(upstream, history_and_training_disabled=True))[0]["conversation_id"]
    assert hide(upstream, kept, "bob") == 404
    assert hide(upstream, kept) == 200
    assert upstream.state.conversations[kept].hidden
    assert hide(upstream, temporary) == 404
