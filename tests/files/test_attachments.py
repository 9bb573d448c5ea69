"""What messages refer to, in every form they may do so."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from services.core.errors import InvalidRequest, Unavailable
from services.core.models import Caller
from services.core.requests import FilePart, ImagePart
from services.fetch import AllowList, Fetcher, Limits
from services.files import Attachment, Sources, UserFiles, owner_of, resolve_attachment
from services.store import Store
from tests.fetch.servers import Server, answer
from tests.gateway import free_port

from .support import local_cache, picture

MINE, THEIRS = Caller("mine"), Caller("theirs")
PARAM = "messages[0].content[1]"
PNG, JPEG = picture("PNG", (30, 20)), picture("JPEG", (4, 5))
PDF = b"%PDF-1.7\n%%EOF"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def user_files(store: Store, tmp_path: Path) -> UserFiles:
    return UserFiles(local_cache(tmp_path), store, 100_000)


def resolve(part: ImagePart | FilePart, user_files: UserFiles, port: int = 0) -> Attachment:
    allow = AllowList([f"127.0.0.1:{port}"] if port else ())
    fetcher = Fetcher(allow=allow, limits=Limits(seconds=5, max_bytes=10_000))
    return resolve_attachment(part, Sources(fetcher, user_files, 10_000), MINE, param=PARAM)


def refused(part: ImagePart | FilePart, user_files: UserFiles) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolve(part, user_files)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            ImagePart(f"data:image/jpeg;base64,{encoded(PNG)}"),
            Attachment(PNG, "image/png", "image.png", 30, 20),
        ),
        (
            ImagePart(f"data:application/pdf;base64,{encoded(PDF)}"),
            Attachment(PDF, "application/pdf", "file.pdf"),
        ),
        (
            ImagePart(f"data:text/csv;name=my%20t.csv;base64,{encoded(b'1,2')}"),
            Attachment(b"1,2", "text/csv", "my t.csv"),
        ),
        (
            FilePart(data=encoded(JPEG), name="Ferien ü.jpeg"),
            Attachment(JPEG, "image/jpeg", "Ferien ü.jpeg", 4, 5),
        ),
        (
            FilePart(data=f"data:application/pdf;base64,{encoded(PDF)}", name="../a/b.pdf"),
            Attachment(PDF, "application/pdf", "b.pdf"),
        ),
        (FilePart(data=encoded(b"hello")), Attachment(b"hello", "text/plain", "file.txt")),
    ],
)
def test_data_in_the_message(
    part: ImagePart | FilePart, expected: Attachment, user_files: UserFiles
) -> None:
    assert resolve(part, user_files) == expected


def test_url_is_fetched_and_typed_by_its_bytes(user_files: UserFiles) -> None:
    with Server(answer(PNG, "Content-Type: text/html")) as server:
        url = f"http://127.0.0.1:{server.port}/dir/otter.png"
        image = resolve(ImagePart(url), user_files, server.port)
        file = resolve(FilePart(url=url, name="mine.png"), user_files, server.port)
    assert image == Attachment(PNG, "image/png", "otter.png", 30, 20)
    assert file == Attachment(PNG, "image/png", "mine.png", 30, 20)


def test_upload_is_found_by_its_owner_only(user_files: UserFiles) -> None:
    mine = user_files.add(owner_of(MINE), PNG, "otter.png", "vision")
    theirs = user_files.add(owner_of(THEIRS), PNG, "secret.png", "vision")
    found = resolve(FilePart(file_id=mine.id), user_files)
    assert found == Attachment(PNG, "image/png", "otter.png", 30, 20)
    for file_id in (theirs.id, "file-unknown", "../../x", ""):
        problem = refused(FilePart(file_id=file_id), user_files)
        assert (problem.param, problem.code) == (f"{PARAM}.file.file_id", "file_not_found")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (ImagePart("http://10.0.0.1/x.png"), "image_url.url"),
        (ImagePart("ftp://example.com/x"), "image_url.url"),
        (ImagePart("data:image/png;base64,x"), "image_url.url"),
        (ImagePart(f"data:image/png;base64,{encoded(PNG[:40])}"), "image_url.url"),
        (ImagePart(f"data:image/jpg;base64,{encoded(bytes(40))}"), "image_url.url"),
        (ImagePart(f"data:x/y;base64,{encoded(bytes(10_001))}"), "image_url.url"),
        (FilePart(data="not base64!"), "file.file_data"),
        (FilePart(data=encoded(bytes(10_001))), "file.file_data"),
        (FilePart(url="http://localhost/x"), "file.file_url"),
    ],
)
def test_what_cannot_be_had_names_the_field(
    part: ImagePart | FilePart, field: str, user_files: UserFiles
) -> None:
    assert refused(part, user_files).param == f"{PARAM}.{field}"


def test_part_without_anything_is_refused(user_files: UserFiles) -> None:
    assert refused(FilePart(), user_files).param == PARAM


def test_upload_while_the_store_is_away_is_503(tmp_path: Path) -> None:
    store = Store(f"redis://127.0.0.1:{free_port()}/0", timeout=0.2)
    with pytest.raises(Unavailable):
        resolve(FilePart(file_id="file-x"), UserFiles(local_cache(tmp_path), store, 100))


def test_attachments_do_not_show_their_bytes() -> None:
    assert "secret" not in repr(Attachment(b"secret", "text/plain", "a.txt"))
