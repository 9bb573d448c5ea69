"""Adopting, lifetimes, eviction and sweeping."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from services.core.errors import InvalidRequest
from services.files.cache import FileCache, Lifetimes
from services.files.data_urls import Fetched
from services.files.storage import Area, Kind, LocalStorage, is_name

from .support import BASE, HTML, Clock, local_cache, picture, settings

HOSTILE_NAMES = [
    "../../etc/passwd",
    "..\\..\\windows\\system32\\x.exe",
    "/etc/passwd",
    "C:\\x.txt",
    "%2e%2e%2fetc%2fpasswd",
    "a\x00b.png",
    "a\r\nSet-Cookie: x=y",
    "..",
    ".",
    "",
    "x" * 5000,
    "\u202egnp.exe",
    "ünï／code․png",
    '"; filename="evil.html',
]


def stored(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith(".")
    }


def age(folder: Path, area: Area, name: str, seconds: float) -> None:
    """Make a file that much older."""
    then = time.time() - seconds
    os.utime(folder / area / name, (then, then))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("WEBP", "webp")]
)
def test_image_keeps_its_bytes_and_format(tmp_path: Path, kind: str, suffix: str) -> None:
    data = picture(kind)
    url = local_cache(tmp_path).adopt(data, Kind.IMAGE, base=BASE)
    assert re.fullmatch(rf"https://gw\.example/images/i[\w-]{{32}}\.{suffix}", url, re.ASCII)
    assert (tmp_path / url.removeprefix(f"{BASE}/")).read_bytes() == data


def test_names_differ_even_for_the_same_bytes(tmp_path: Path) -> None:
    cache = local_cache(tmp_path)
    names = {cache.keep(b"same", Kind.FILE).name for _ in range(50)}
    assert len(names) == 50
    assert all(is_name(name) for name in names)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_name_stays_a_label(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    kept = local_cache(folder).keep(b"text", Kind.FILE, name)
    assert is_name(kept.name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert stored(folder) == {"files", f"files/{kept.name}"}
    found = local_cache(folder).find("files", kept.name)
    assert found is not None
    assert not set(found.label) & set("/\\\x00\r\n\u202e")
    assert len(found.label) <= 120


def test_extension_comes_from_the_bytes_and_name_tells_kinds_of_text(tmp_path: Path) -> None:
    cache = local_cache(tmp_path)
    suffixes = {
        label: cache.keep(data, Kind.FILE, label).name.rpartition(".")[2]
        for label, data in {
            "a.csv": b"1,2",
            "b.exe": b"%PDF-1.7\n",
            "c.png": HTML,
            "d": b"\x00\x01",
        }.items()
    }
    assert suffixes == {"a.csv": "csv", "b.exe": "pdf", "c.png": "txt", "d": "bin"}
    blob = Fetched(data=b"1,2", mime="", declared_type="application/octet-stream", name="x.csv")
    assert cache.keep(blob, Kind.FILE).mime == "text/csv"


def test_page_does_not_pass_for_an_image(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        local_cache(tmp_path).adopt(HTML, Kind.IMAGE, base=BASE)
    assert stored(tmp_path) == set()


def test_user_files_have_no_public_url(tmp_path: Path) -> None:
    cache = local_cache(tmp_path)
    with pytest.raises(ValueError, match="public"):
        cache.adopt(b"x", Kind.USER, base=BASE)
    assert cache.keep(b"x", Kind.USER).area == "uploads"


@pytest.mark.parametrize(
    ("kind", "lifetime"),
    [(Kind.IMAGE, 1000), (Kind.FILE, 1000), (Kind.PASSED_ON, 60), (Kind.USER, 500)],
)
def test_each_kind_lives_its_own_time(tmp_path: Path, kind: Kind, lifetime: float) -> None:
    clock = Clock(time.time())
    cache = local_cache(tmp_path, clock=clock)
    kept = cache.keep(picture(), kind, "a.png")
    clock.now += lifetime - 5
    assert cache.sweep().expired == 0
    assert cache.find(kept.area, kept.name) is not None
    clock.now += 10
    assert cache.find(kept.area, kept.name) is None, "expired files are not found before a sweep"
    assert cache.sweep().expired == 1
    assert not list((tmp_path).rglob("*.png*"))


def test_lifetimes_and_limits_come_from_the_settings(tmp_path: Path) -> None:
    made = settings(tmp_path)
    lifetimes = Lifetimes.from_settings(made.files)
    assert (lifetimes.generated, lifetimes.passed_on) == (604800.0, 60.0)
    kept = FileCache.from_settings(made).keep(b"x", Kind.FILE)
    assert (tmp_path / "files" / kept.name).read_bytes() == b"x"


def test_oldest_go_first_until_the_rest_fits(tmp_path: Path) -> None:
    cache = local_cache(tmp_path, total=10_000)
    kept = [cache.keep(b"\x00" * 100, Kind.FILE, "label") for _ in range(9)]
    for place, file in enumerate(kept):
        age(tmp_path, "files", file.name, 500 - 10 * place)
    small = local_cache(tmp_path, total=350)
    swept = small.sweep()
    assert (swept.expired, swept.evicted, swept.left) == (0, 6, 300)
    left = {name for name in stored(tmp_path) if "/" in name}
    assert left == {f"files/{file.name}" for file in kept[6:]}
    assert small.sweep().evicted == 0


def test_much_adopted_between_two_sweeps_still_has_a_limit(tmp_path: Path) -> None:
    cache = local_cache(tmp_path, total=1000)
    for _ in range(100):
        cache.keep(b"\x00" * 50, Kind.FILE)
    size = sum(path.stat().st_size for path in (tmp_path / "files").iterdir())
    assert size <= 1150


def test_sweeping_spares_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in (".gitkeep", "image_20240101.png", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(b"x")
        age(tmp_path, "images", name, 10**8)
    local_cache(tmp_path, total=1).sweep()
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_file_that_vanishes_during_a_sweep_is_no_error(tmp_path: Path) -> None:
    class Vanishing(LocalStorage):
        """Another worker deletes each file as soon as it was listed."""

        def entries(self):  # type: ignore[no-untyped-def]
            for entry in list(super().entries()):
                super().delete(entry.area, entry.name)
                yield entry

    clock = Clock(time.time())
    cache = local_cache(tmp_path, storage=Vanishing(tmp_path), clock=clock)
    for _ in range(5):
        cache.keep(b"x", Kind.FILE)
    clock.now += 5000
    assert cache.sweep().expired == 5
