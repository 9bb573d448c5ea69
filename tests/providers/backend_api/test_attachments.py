"""What messages refer to, in every form they may do so."""

from __future__ import annotations

import base64

import pytest

from services.config import Files, Settings
from services.core.errors import InvalidRequest
from services.core.requests import Part, file_part, image_part
from services.providers.backend_api.files import Attachment, Opener
from tests.fetch.servers import Server, answer
from tests.files.support import picture

PARAM = "messages[0].content[1]"
PNG, JPEG = picture("PNG", (30, 20)), picture("JPEG", (4, 5))
PDF = b"%PDF-1.7\n%%EOF"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def opened(part: Part, *open_to: str) -> Attachment:
    files = Files(fetch_allow=open_to, fetch_timeout=5.0, fetch_max_mb=10_000 / 1024 / 1024)
    return Opener(Settings(files=files))(part, param=PARAM)


def refused(part: Part) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        opened(part)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            image_part(f"data:image/jpeg;base64,{encoded(PNG)}"),
            Attachment(PNG, "image/png", "image.png", 30, 20),
        ),
        (
            image_part(f"data:application/pdf;base64,{encoded(PDF)}"),
            Attachment(PDF, "application/pdf", "file.pdf"),
        ),
        (
            image_part(f"data:text/csv;name=my%20t.csv;base64,{encoded(b'1,2')}"),
            Attachment(b"1,2", "text/csv", "my t.csv"),
        ),
        (
            file_part(encoded(JPEG), name="Ferien ü.jpeg"),
            Attachment(JPEG, "image/jpeg", "Ferien ü.jpeg", 4, 5),
        ),
        (
            file_part(f"data:application/pdf;base64,{encoded(PDF)}", name="../a/b.pdf"),
            Attachment(PDF, "application/pdf", "b.pdf"),
        ),
        (file_part(encoded(b"hello")), Attachment(b"hello", "text/plain", "file.txt")),
    ],
)
def test_data_in_the_message(part: Part, expected: Attachment) -> None:
    assert opened(part) == expected


def test_url_is_fetched_and_typed_by_its_bytes() -> None:
    with Server(answer(PNG, "Content-Type: text/html")) as server:
        host = f"127.0.0.1:{server.port}"
        image = opened(image_part(f"http://{host}/dir/otter.png"), host)
        file = opened(file_part(url=f"http://{host}/dir/otter.png", name="mine.png"), host)
    assert image == Attachment(PNG, "image/png", "otter.png", 30, 20)
    assert file == Attachment(PNG, "image/png", "mine.png", 30, 20)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (image_part("http://10.0.0.1/x.png"), "image_url.url"),
        (image_part("ftp://example.com/x"), "image_url.url"),
        (image_part("data:image/png;base64,x"), "image_url.url"),
        (image_part(f"data:image/png;base64,{encoded(PNG[:40])}"), "image_url.url"),
        (image_part(f"data:image/jpg;base64,{encoded(bytes(40))}"), "image_url.url"),
        (image_part(f"data:x/y;base64,{encoded(bytes(10_001))}"), "image_url.url"),
        (file_part("not base64!"), "file.file_data"),
        (file_part(encoded(bytes(10_001))), "file.file_data"),
        (file_part(url="http://localhost/x"), "file.file_url"),
    ],
)
def test_what_cannot_be_had_names_the_field(part: Part, field: str) -> None:
    assert refused(part).param == f"{PARAM}.{field}"


def test_part_without_anything_is_refused() -> None:
    assert refused(file_part()).param == PARAM


def test_attachments_do_not_show_their_bytes() -> None:
    assert "secret" not in repr(Attachment(b"secret", "text/plain", "a.txt"))
