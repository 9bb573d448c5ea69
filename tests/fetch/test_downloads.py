"""Whom the two fetchers reach: only upstreams' files may come from the operator's own network."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.config import ConfigErrors, Files
from services.core.errors import InvalidRequest
from services.files.fetch import caller_fetcher, upstream_fetcher
from tests.fetch.servers import Server, answer
from tests.files.support import settings


def test_upstream_host_is_open_for_its_files_only(tmp_path: Path) -> None:
    with Server(answer(b"data")) as server:
        url = f"http://127.0.0.1:{server.port}"
        made = settings(tmp_path, upstream_base_url=f"{url}/some/path")
        assert upstream_fetcher(made).fetch(f"{url}/x").data == b"data"
        with pytest.raises(InvalidRequest):
            caller_fetcher(made).fetch(f"{url}/x")
        with pytest.raises(InvalidRequest):
            upstream_fetcher(made).fetch(f"http://127.0.0.1:{server.port + 1}/x")
        assert server.connections == 1


def test_file_server_host_is_open_where_it_is_used(tmp_path: Path) -> None:
    with Server(answer(b"data")) as server:
        host = f"127.0.0.1:{server.port}"
        made = settings(tmp_path, file_server_host=host)
        assert upstream_fetcher(made).fetch(f"http://{host}/x").data == b"data"
        unused = settings(tmp_path, file_server_host=host, use_pandora_file_server=False)
        with pytest.raises(InvalidRequest):
            upstream_fetcher(unused).fetch(f"http://{host}/x")


def test_allow_list_and_limits_come_from_the_settings(tmp_path: Path) -> None:
    with Server(answer(b"x" * 3000)) as server:
        host = f"127.0.0.1:{server.port}"
        files = Files(fetch_allow=(host,), fetch_max_mb=0.002, download_max_mb=0.001)
        made = settings(tmp_path, files=files)
        for fetcher, size in ((caller_fetcher(made), 2097), (upstream_fetcher(made), 1048)):
            with pytest.raises(InvalidRequest, match=f"larger than {size} bytes"):
                fetcher.fetch(f"http://{host}/x")


def test_malformed_allow_list_names_its_key(tmp_path: Path) -> None:
    made = settings(tmp_path, files=Files(fetch_allow=("not a host",)))
    with pytest.raises(ConfigErrors, match="files.fetch_allow"):
        caller_fetcher(made)


@pytest.mark.parametrize("url", ["http://[::1]:8080", "https://chat.internal", "http://h:81/p"])
def test_every_form_of_upstream_address_is_understood(tmp_path: Path, url: str) -> None:
    made = settings(tmp_path, upstream_base_url=url, file_server_host="https://files.internal:90")
    assert upstream_fetcher(made) is not None


def test_malformed_upstream_address_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="file_server_host"):
        upstream_fetcher(settings(tmp_path, file_server_host="files.example:x"))
