"""Parts of a message that name files of ours: only their owner's uploads, and links to us."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from services.config import Settings
from services.core.errors import InvalidRequest, Unavailable
from services.core.models import Caller
from services.core.requests import ChatRequest, Message, Part, file_part, image_part, text_part
from services.files.cache import FileCache
from services.files.public_url import PublicUrlUnknown
from services.files.storage import Kind
from services.files.uploads import OwnFiles, UserFiles, fill_in_own_files, owner_of
from services.store import Store
from tests.gateway import free_port

from .support import local_cache, picture

MINE, THEIRS = Caller("mine"), Caller("theirs")
PNG = picture()
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
HOST = "https://bridge.example:8443"


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return local_cache(tmp_path)


@pytest.fixture
def files(store: Store, cache: FileCache) -> OwnFiles:
    public = Settings(backend_container_url="https://files.example")
    return OwnFiles(cache, UserFiles(cache, store, 100_000), public)


def filled(files: OwnFiles, *parts: Part) -> tuple[Part, ...]:
    request = ChatRequest("m", (Message("system", "Be brief."), Message("user", parts)))
    after = fill_in_own_files(request, files, MINE, lambda: HOST)
    assert after.messages[0] == request.messages[0]
    content = after.messages[1].content
    assert isinstance(content, tuple)
    return content


def refused(files: OwnFiles, part: Part) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        filled(files, text_part("Hi"), part)
    return caught.value


def test_upload_is_found_by_its_owner_only(files: OwnFiles) -> None:
    mine = files.user_files.add(owner_of(MINE), PNG, "otter.png", "vision")
    theirs = files.user_files.add(owner_of(THEIRS), PNG, "secret.png", "vision")
    assert filled(files, file_part(file_id=mine.id)) == (file_part(DATA, name="otter.png"),)
    for file_id in (theirs.id, "file-unknown", "../../x", ""):
        problem = refused(files, file_part(file_id=file_id))
        assert problem.param == "messages[1].content[1].file.file_id"
        assert problem.code == "file_not_found"


def test_upload_while_the_store_is_away_is_503(cache: FileCache) -> None:
    store = Store(f"redis://127.0.0.1:{free_port()}/0", timeout=0.2)
    files = OwnFiles(cache, UserFiles(cache, store, 100), Settings())
    with pytest.raises(Unavailable):
        filled(files, file_part(file_id="file-x"))


def test_link_of_ours_is_read_by_whatever_host_it_names(files: OwnFiles) -> None:
    path = files.cache.keep(PNG, Kind.IMAGE, "otter.png").path
    for base in (HOST, "https://files.example", "http://127.0.0.1:8080", "http://gateway:1/x"):
        after = filled(files, image_part(base + path, "low"), file_part(url=f"{base}{path}?x#y"))
        assert after == (image_part(DATA, "low"), file_part(DATA, name="otter.png"))


@pytest.mark.parametrize(
    "base",
    [
        "https://bridge.example",
        "http://bridge.example:81/prefix",
        "http://BRIDGE.example:8443",
        "https://files.example:9",
        "http://localhost:8080",
        "http://127.0.0.7:8080",
        "http://[::1]:8080",
    ],
)
def test_link_of_ours_whose_file_has_gone_says_so(files: OwnFiles, base: str) -> None:
    kept = files.cache.keep(PNG, Kind.IMAGE)
    files.cache.delete("images", kept.name)
    for part, field in (
        (image_part(base + kept.path), "image_url.url"),
        (file_part(url=base + kept.path), "file.file_url"),
    ):
        problem = refused(files, part)
        assert (problem.code, problem.status) == ("file_expired", 400)
        assert problem.param == f"messages[1].content[1].{field}"


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/images/cat.png",
        f"https://other.example/images/i{'A' * 32}.png",
        f"http://127.0.0.1:81/images/i{'A' * 32}.png",
        f"{HOST}/uploads/u{'A' * 32}.png",
        f"{HOST}/images/",
        "http://[/images/x.png",
        "images/x.png",
        "",
    ],
)
def test_all_else_is_left_to_be_fetched(files: OwnFiles, url: str) -> None:
    parts = (image_part(url), file_part(url=url), file_part(DATA), text_part("Hi"))
    assert filled(files, *parts) == parts


def test_users_upload_is_no_link(files: OwnFiles) -> None:
    kept = files.cache.keep(PNG, Kind.USER)
    for url in (f"{HOST}/uploads/{kept.name}", f"http://other.example/images/{kept.name}"):
        assert filled(files, image_part(url)) == (image_part(url),)


def test_link_behind_an_unknown_proxy_is_still_read(files: OwnFiles) -> None:
    def unknown() -> str:
        raise PublicUrlUnknown("not known")

    kept = files.cache.keep(PNG, Kind.IMAGE)
    parts = (image_part(f"http://a.example{kept.path}"), image_part("http://a.example/images/x"))
    request = ChatRequest("m", (Message("user", parts),))
    after = fill_in_own_files(request, files, MINE, unknown)
    assert after.messages[0].content == (image_part(DATA), parts[1])


@pytest.mark.parametrize("name", ["image_20231217044452.png", "20231217044452_报告 1.csv"])
def test_link_that_an_older_service_gave_counts_by_our_hosts_only(
    files: OwnFiles, tmp_path: Path, name: str
) -> None:
    folder = "files" if name.endswith(".csv") else "images"
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / name).write_bytes(PNG)
    path = f"/{folder}/{quote(name)}"
    (ours,) = filled(files, file_part(url=HOST + path))
    assert ours.attached is not None
    assert (ours.attached.file_data or "").endswith(DATA.partition(",")[2])
    theirs = file_part(url=f"https://other.example{path}")
    assert filled(files, theirs) == (theirs,)
