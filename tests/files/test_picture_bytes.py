"""Bytes behind the addresses that events carry, ours or the upstream's."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.errors import UpstreamError
from services.files.addresses import AllowList
from services.files.adopt import PictureBytes
from services.files.fetch import Fetcher
from services.files.storage import Kind
from tests.fetch.servers import Server, answer

from .support import BASE, local_cache, picture

PNG = picture()


def test_picture_of_ours_is_read_without_the_network(tmp_path: Path) -> None:
    cache = local_cache(tmp_path)
    url = cache.adopt(PNG, Kind.IMAGE, base=BASE)
    assert PictureBytes(cache, Fetcher()).read(url) == PNG


def test_picture_of_the_upstreams_is_fetched(tmp_path: Path) -> None:
    with Server(answer(PNG)) as server:
        host = f"127.0.0.1:{server.port}"
        reader = PictureBytes(local_cache(tmp_path), Fetcher(allow=AllowList([host])))
        assert reader.read(f"http://{host}/images/x.png?sig=1") == PNG


@pytest.mark.parametrize("url", ["", "x", "http://[", "/", "javascript:1"])
def test_nonsense_is_the_upstreams_failure(tmp_path: Path, url: str) -> None:
    with pytest.raises(UpstreamError):
        PictureBytes(local_cache(tmp_path), Fetcher()).read(url)


@pytest.mark.parametrize("path", ["/uploads/{user}", "/images/{user}", "/images/..%2f{user}", "/x"])
def test_other_addresses_open_nothing_of_ours(tmp_path: Path, path: str) -> None:
    cache = local_cache(tmp_path)
    kept = cache.keep(PNG, Kind.USER)
    with pytest.raises(UpstreamError):
        PictureBytes(cache, Fetcher()).read(f"http://127.0.0.1:9{path.format(user=kept.name)}")
