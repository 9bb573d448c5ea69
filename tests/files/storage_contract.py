"""What every storage must do. Subclasses give two storages that share one place."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest

from services.files.storage import Entry, FileGone, Kind, Storage, new_name

from .support import BASE, HTML, Clock, local_cache, make_app, picture


def contents(storage: Storage, name: str, start: int, length: int) -> bytes:
    found = storage.find("files", name)
    assert found is not None
    body = found.open(start, length)
    try:
        return body.read(2) + body.read()
    finally:
        body.close()


class StorageContract:
    @pytest.fixture
    def pair(self) -> tuple[Storage, Storage]:
        raise NotImplementedError

    def test_file_that_lies_on_disk_is_put_whole(
        self, pair: tuple[Storage, Storage], tmp_path: Path
    ) -> None:
        one, other = pair
        content = bytes(range(256)) * 10_000
        (tmp_path / "large").write_bytes(content)
        name = new_name(Kind.FILE, "application/zip")
        with (tmp_path / "large").open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        one.put("files", name, data, "", "application/zip")
        assert contents(other, name, 0, len(content)) == content

    def test_one_finds_what_the_other_put(self, pair: tuple[Storage, Storage]) -> None:
        one, other = pair
        name = new_name(Kind.FILE, "text/csv")
        one.put("files", name, b"0123456789", "bericht ü.csv", "text/csv")
        found = other.find("files", name)
        assert found is not None
        assert (found.label, found.entry.size) == ("bericht ü.csv", 10)
        assert abs(found.entry.modified - time.time()) < 60
        assert contents(other, name, 0, 10) == b"0123456789"
        assert contents(other, name, 3, 4) == b"3456"
        assert one.find("images", name) is None

    def test_deleting_twice_is_no_error(self, pair: tuple[Storage, Storage]) -> None:
        one, other = pair
        name = new_name(Kind.FILE, "text/csv")
        one.put("files", name, b"x", "label", "text/csv")
        found = other.find("files", name)
        one.delete("files", name)
        other.delete("files", name)
        assert one.find("files", name) is None
        assert list(other.entries()) == []
        assert found is not None
        with pytest.raises(FileGone):
            found.open(0, 1)

    def test_entries_list_files_of_all_areas(self, pair: tuple[Storage, Storage]) -> None:
        one, other = pair
        names = [new_name(kind, "image/png") for kind in (Kind.IMAGE, Kind.FILE, Kind.USER)]
        for name, area in zip(names, ("images", "files", "uploads"), strict=True):
            one.put(area, name, b"1234", "label", "image/png")
        listed = list(other.entries())
        assert {(e.area, e.name, e.size) for e in listed} == {
            ("images", names[0], 4),
            ("files", names[1], 4),
            ("uploads", names[2], 4),
        }
        assert all(isinstance(e, Entry) and abs(e.modified - time.time()) < 60 for e in listed)

    def test_replicas_serve_each_others_files(self, pair: tuple[Storage, Storage]) -> None:
        caches = [local_cache(None, storage=storage) for storage in pair]  # type: ignore[arg-type]
        clients = [make_app(cache).test_client() for cache in caches]
        data = picture("WEBP")
        for maker, reader in ((0, 1), (1, 0)):
            url = caches[maker].adopt(data, Kind.IMAGE, base=BASE)
            answer = clients[reader].get(url.removeprefix(BASE))
            assert (answer.status_code, answer.data) == (200, data)
            assert answer.content_type == "image/webp"
            part = clients[reader].get(url.removeprefix(BASE), headers={"Range": "bytes=4-9"})
            assert (part.status_code, part.data) == (206, data[4:10])
        big = HTML * 20_000
        url = caches[0].adopt(big, Kind.FILE, "../../x.html", base=BASE)
        answer = clients[1].get(url.removeprefix(BASE), buffered=True)
        assert answer.data == big
        assert answer.headers["Content-Disposition"] == 'attachment; filename="x.html"'

    def test_sweeps_of_both_agree(self, pair: tuple[Storage, Storage]) -> None:
        clock = Clock(time.time())
        one, other = (
            local_cache(None, storage=storage, clock=clock)  # type: ignore[arg-type]
            for storage in pair
        )
        short = one.keep(picture(), Kind.PASSED_ON)
        long = one.keep(picture(), Kind.IMAGE)
        clock.now += 70
        assert other.sweep().expired == 1
        assert one.sweep().expired == 0
        assert one.find("images", long.name) is not None
        assert one.find("images", short.name) is None
