"""The routes of the file service over real sockets, and /v1/files through the official client."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import openai
import pytest
import requests
from flask.testing import FlaskClient

from services.files.cache import FileCache
from services.files.storage import Kind
from services.files.uploads import UserFiles
from services.store import Store
from tests.files.stores import running_store
from tests.files.support import (
    BASE,
    HTML,
    KEY,
    OTHER_KEY,
    local_cache,
    make_app,
    picture,
    raw_get,
    served,
    settings,
)
from tests.gateway import free_port

NAME = "i" + "A" * 32
ATTACKS = [
    "../secret.png",
    "..%2fsecret.png",
    "%2e%2e/secret.png",
    "%2e%2e%2fsecret.png",
    "..%252fsecret.png",
    "....//secret.png",
    "..\\secret.png",
    "..%5csecret.png",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "C:%5csecret.png",
    "file:///etc/passwd",
    ".",
    "..",
    "%00",
    f"{NAME}%00.png",
    f"{NAME}.png%00",
    f"{NAME}.png%0a",
    f"{NAME}.png%20",
    f"{NAME}.png/",
    f"{NAME}.png/..",
    f"./{NAME}.png",
    f".{NAME}.png.label",
    f"{NAME}.png.label",
    f"{NAME[:-1]}.png",
    f"{NAME}",
    f"{NAME}.",
    f"{NAME}.PNG",
    f"{NAME}.toolong",
    f"x{'A' * 32}.png",
    f"{NAME[:-1]}%d9%a1.png",
    f"{NAME[:-3]}%ef%bc%8e.png",
    "%c0%ae%c0%ae%c0%afsecret.png",
    "%ff%fe.png",
    "A" * 5000,
    "%2e" * 1000,
    ".gitkeep",
    "generations",
    "secret.png",
    "",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The service's folder, with things around the files that nobody may get."""
    for place in ("secret.png", "images/secret.png", "files/secret.png", "data/uploads/secret.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("SECRET")
    (tmp_path / "images" / ".gitkeep").write_text("SECRET")
    return tmp_path


@pytest.fixture
def cache(folder: Path) -> FileCache:
    return local_cache(folder)


@pytest.fixture
def client(cache: FileCache) -> FlaskClient:
    return make_app(cache).test_client()


def path_of(url: str) -> str:
    return url.removeprefix(BASE)


def test_no_name_leads_out_of_the_folder(cache: FileCache) -> None:
    user_file = cache.keep(b"SECRET", Kind.USER, "SECRET.txt")
    attacks = [*ATTACKS, user_file.name, f"../data/uploads/{user_file.name}"]
    with served(make_app(cache)) as port:
        for route in ("images", "files"):
            for attack in attacks:
                status, answer = raw_get(port, f"/{route}/{attack}".encode())
                assert status == 404, (route, attack)
                assert b"SECRET" not in answer, (route, attack)
                assert b"application/json" in answer, (route, attack)
                assert b'"code":"not_found"' in answer, (route, attack)


def test_image_is_served_inline_to_anybody(cache: FileCache, client: FlaskClient) -> None:
    data = picture("JPEG")
    path = path_of(cache.adopt(data, Kind.IMAGE, base=BASE))
    answer = client.get(path, headers={"Origin": "https://chat.example"})
    assert (answer.status_code, answer.data) == (200, data)
    assert answer.content_type == "image/jpeg"
    assert answer.content_length == len(data)
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer.headers.getlist("Access-Control-Allow-Origin") == ["*"]
    assert "Content-Disposition" not in answer.headers
    assert "Set-Cookie" not in answer.headers


def test_head_tells_what_get_sends(cache: FileCache, client: FlaskClient) -> None:
    data = picture() + bytes(500_000)
    path = path_of(cache.adopt(data, Kind.IMAGE, base=BASE))
    get, head = client.get(path, buffered=True), client.head(path)
    assert (head.status_code, head.data) == (200, b"")
    own = ("x-request-id", "openai-processing-ms")
    told, sent = ({n: v for n, v in a.headers if n not in own} for a in (head, get))
    assert told == sent
    assert told["Content-Length"] == str(len(data))
    assert client.head("/images/nothing.png").status_code == 404


def test_page_never_shows_as_a_page(cache: FileCache, client: FlaskClient) -> None:
    path = path_of(cache.adopt(HTML, Kind.FILE, "../páge.html", base=BASE))
    answer = client.get(path)
    assert path.endswith(".html")
    assert answer.data == HTML
    disposition = answer.headers["Content-Disposition"]
    assert disposition == "attachment; filename=\"page.html\"; filename*=UTF-8''p%C3%A1ge.html"


@pytest.mark.parametrize("extra", [0, 1_000_000])
def test_ranges_and_conditions(cache: FileCache, client: FlaskClient, extra: int) -> None:
    data = picture() + bytes(range(256)) * 4 + bytes(extra)
    path = path_of(cache.adopt(data, Kind.IMAGE, base=BASE))

    def get(**headers: str) -> tuple[int, bytes, str | None]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = client.get(path, headers=names, buffered=True)
        return answer.status_code, answer.data, answer.headers.get("Content-Range")

    size = len(data)
    assert get(Range="bytes=10-19") == (206, data[10:20], f"bytes 10-19/{size}")
    assert get(Range="bytes=-7") == (206, data[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert get(Range="bytes=5-") == (206, data[5:], f"bytes 5-{size - 1}/{size}")
    assert get(Range=f"bytes={size}-") == (416, b"", f"bytes */{size}")
    etag = client.head(path).headers["ETag"]
    assert get(If_None_Match=etag) == (304, b"", None)
    assert get(If_None_Match='"x"') == (200, data, None)
    assert get(Range="bytes=0-3", If_Range=etag) == (206, data[:4], f"bytes 0-3/{size}")


def test_large_file_is_sent_in_flat_memory(cache: FileCache) -> None:
    path = path_of(cache.adopt(bytes(40_000_000), Kind.FILE, "x.bin", base=BASE))
    client = make_app(cache).test_client()
    client.get(path).close()
    tracemalloc.start()
    try:
        with client.get(path) as answer:
            received = sum(len(block) for block in answer.iter_encoded())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == 40_000_000
    assert peak < 3_000_000


def test_short_lived_uploads_are_not_cached(cache: FileCache, client: FlaskClient) -> None:
    answer = client.get(path_of(cache.adopt(picture(), Kind.PASSED_ON, "me.png", base=BASE)))
    assert answer.headers["Cache-Control"] == "no-store"
    missing = client.get(f"/images/{NAME}.png")
    assert (missing.status_code, missing.headers["Cache-Control"]) == (404, "no-store")


def test_only_reading_is_possible(cache: FileCache, client: FlaskClient) -> None:
    path = path_of(cache.adopt(picture(), Kind.IMAGE, base=BASE))
    for method in ("POST", "PUT", "DELETE"):
        answer = client.open(path, method=method)
        assert answer.status_code == 405
        assert answer.content_type == "application/json"
    assert client.options(path).status_code == 204


OLD_PICTURE = "image_20231217044452.png"
OLD_FILE = '20240102030405_季度 "报告".csv'


def put_old(folder: Path, area: str, name: str, data: bytes) -> str:
    """A file that an older service left; its path here."""
    path = folder / area / name
    path.write_bytes(data)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return f"/{area}/{quote(name)}"


def test_old_picture_in_the_mounted_folder_is_served_like_a_new_one(
    folder: Path, client: FlaskClient
) -> None:
    data = picture() + bytes(300_000)
    path = put_old(folder, "images", OLD_PICTURE, data)
    answer = client.get(path, buffered=True)
    assert (answer.status_code, answer.data) == (200, data)
    assert answer.content_type == "image/png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert "Content-Disposition" not in answer.headers
    head = client.head(path)
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(len(data))
    part = client.get(path, headers={"Range": "bytes=1-3"}, buffered=True)
    assert (part.status_code, part.data) == (206, b"PNG")
    assert client.get(path, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304


def test_old_file_is_a_download_under_the_name_it_had(folder: Path, client: FlaskClient) -> None:
    answer = client.get(put_old(folder, "files", OLD_FILE, b"1,2\n"))
    assert (answer.status_code, answer.data) == (200, b"1,2\n")
    assert answer.content_type.startswith("text/csv")
    assert answer.headers["Content-Disposition"] == (
        "attachment; filename=\"__.csv\"; filename*=UTF-8''"
        "%E5%AD%A3%E5%BA%A6%20%22%E6%8A%A5%E5%91%8A%22.csv"
    )
    assert answer.headers["ETag"].isascii()
    page = client.get(put_old(folder, "files", "20240102030405_a.html", HTML))
    assert page.headers["Content-Disposition"] == 'attachment; filename="a.html"'
    unknown = client.get(put_old(folder, "files", "20240102030405_a.svg", HTML))
    assert unknown.content_type == "application/octet-stream"
    assert unknown.headers["Content-Disposition"] == 'attachment; filename="a.svg"'


def test_old_files_are_neither_swept_nor_counted(folder: Path) -> None:
    data = bytes(5000)
    paths = [
        put_old(folder, "images", OLD_PICTURE, data),
        put_old(folder, "files", OLD_FILE, data),
    ]
    cache = local_cache(folder, total=6000)
    new = path_of(cache.adopt(picture(), Kind.IMAGE, base=BASE))
    swept = cache.sweep()
    assert (swept.expired, swept.evicted) == (0, 0)
    client = make_app(cache).test_client()
    assert [client.get(path).status_code for path in (*paths, new)] == [200, 200, 200]


@pytest.mark.parametrize(
    "path",
    [
        "/files/20240102030405_..%2f..%2fsecret.png",
        "/files/20240102030405_..%5csecret.png",
        "/files/20240102030405_link.csv",
        "/files/20240102030405_folder",
        "/files/20240102030405_",
        "/files/2024010203040_short.csv",
        "/files/20240102030405_tab%09.csv",
        "/files/20240102030405_nul%00.csv",
        "/files/20240102030405_" + "x" * 300,
        "/files/20240102030405_" + "%E6%8A%A5" * 100,
        "/files/image_20231217044452.png",
        "/images/20240102030405_a.csv",
        "/images/image_20231217044452.png.label",
        "/images/image_20231217044452.png/",
        "/images/image_2023121704445.png",
        "/images/image_20231217044452.PNG",
        "/images/image_2023%d9%a1217044452.png",
    ],
)
def test_name_that_only_resembles_an_old_one_leads_nowhere(
    folder: Path, cache: FileCache, path: str
) -> None:
    put_old(folder, "images", OLD_PICTURE, b"SECRET")
    (folder / "files" / "20240102030405_link.csv").symlink_to(folder / "secret.png")
    (folder / "files" / "20240102030405_folder").mkdir()
    for area, name in (
        ("files", "image_20231217044452.png"),
        ("files", "20240102030405_tab\t.csv"),
        ("files", "20240102030405_..\\secret.png"),
        ("files", "20240102030405_"),
        ("images", "20240102030405_a.csv"),
    ):
        (folder / area / name).write_text("SECRET")
    with served(make_app(cache)) as port:
        status, answer = raw_get(port, path.encode())
    assert status == 404
    assert b"SECRET" not in answer
    assert b'"code":"not_found"' in answer


# --- /v1/files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def port(running: Store, folder: Path) -> Iterator[int]:
    cache = local_cache(folder)
    user_files = UserFiles(cache, running, max_bytes=3_000_000, max_files=5)
    running.run(lambda c: c.flushdb())
    with served(make_app(cache, settings(folder), user_files)) as port:
        yield port


def sdk(port: int, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=10
    )


def test_file_goes_round_through_the_official_client(port: int) -> None:
    with sdk(port) as client:
        made = client.files.create(file=("Tab elle ü.csv", b"1,2\n"), purpose="user_data")
        assert (made.object, made.bytes, made.purpose) == ("file", 4, "user_data")
        assert made.filename == "Tab elle ü.csv"
        assert made.id.startswith("file-")
        assert made.expires_at is not None
        assert made.expires_at > made.created_at
        assert client.files.retrieve(made.id) == made
        assert client.files.list().data == [made]
        content = client.files.content(made.id)
        assert content.read() == b"1,2\n"
        assert content.response.headers["content-type"] == "text/csv"
        assert content.response.headers["cache-control"] == "no-store"
        deleted = client.files.delete(made.id)
        assert (deleted.id, deleted.deleted) == (made.id, True)
        assert client.files.list().data == []
        for again in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                again(made.id)


def test_foreign_files_do_not_exist(port: int) -> None:
    with sdk(port) as client, sdk(port, OTHER_KEY) as other, sdk(port, "sk-no-key-at-all") as none:
        made = client.files.create(file=("a.txt", b"mine"), purpose="assistants")
        assert other.files.list().data == []
        for attempt in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                attempt(made.id)
        with pytest.raises(openai.AuthenticationError):
            none.files.retrieve(made.id)
        assert client.files.content(made.id).read() == b"mine"


def test_list_is_filtered_ordered_and_paged(port: int) -> None:
    with sdk(port) as client:
        made = [
            client.files.create(
                file=(f"{number}.txt", b"x"), purpose="vision" if number == 4 else "assistants"
            ).id
            for number in range(5)
        ]
        page = client.files.list(limit=2)
        assert (len(page.data), page.has_more) == (2, True)
        assert {file.id for file in client.files.list(limit=2)} == set(made)
        upwards = [file.id for file in client.files.list(order="asc")]
        assert upwards == [file.id for file in client.files.list()][::-1]
        assert [file.id for file in client.files.list(purpose="vision")] == made[4:]
        with pytest.raises(openai.BadRequestError, match="5 files"):
            client.files.create(file=("x", b"x"), purpose="assistants")
        with pytest.raises(openai.BadRequestError, match="limit"):
            client.files.list(limit=0)


def test_uploads_that_are_refused(port: int) -> None:
    with sdk(port) as client:
        largest = client.files.create(file=("x", bytes(3_000_000)), purpose="assistants")
        assert client.files.content(largest.id).read() == bytes(3_000_000)
        with pytest.raises(openai.APIStatusError, match="larger than 3000000") as caught:
            client.files.create(file=("x", bytes(3_000_001)), purpose="assistants")
        assert caught.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.files.create(file=("x", b""), purpose="assistants")
    url, headers = f"http://127.0.0.1:{port}/v1/files", {"Authorization": f"Bearer {KEY}"}
    for body in ({"data": {"purpose": "x"}}, {"files": {"file": b"x"}}, {"json": {"a": 1}}, {}):
        answer = requests.post(url, headers=headers, timeout=10, **body)  # type: ignore[arg-type]
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "missing_required_parameter"
    assert requests.post(url, timeout=10).status_code == 401


def test_uploads_name_is_only_a_label(port: int, folder: Path) -> None:
    before = {path for path in folder.rglob("*") if path.parent.name != "uploads"}
    with sdk(port) as client:
        made = client.files.create(file=("../../../x.html", HTML), purpose="assistants")
        content = client.files.content(made.id).response
    assert made.filename == "x.html"
    assert content.headers["content-disposition"] == 'attachment; filename="x.html"'
    assert {path for path in folder.rglob("*") if path.parent.name != "uploads"} == before


def test_files_while_the_store_is_away(folder: Path) -> None:
    cache = local_cache(folder)
    store = Store(f"redis://127.0.0.1:{free_port()}/0", timeout=0.2)
    app = make_app(cache, settings(folder), UserFiles(cache, store, 1000))
    with served(app) as port, sdk(port) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.files.list()
        assert caught.value.status_code == 503
        url = path_of(cache.adopt(picture(), Kind.IMAGE, base=BASE))
        answer = requests.get(f"http://127.0.0.1:{port}{url}", timeout=10)
        assert answer.status_code == 200
