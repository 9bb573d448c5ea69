"""Fetching by a proxy: what it is asked for, and that checks keep their meaning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from services.config import Files, Settings
from services.config import Server as ServerSettings
from services.core.errors import InvalidRequest
from services.files.fetch import Fetcher, caller_fetcher, upstream_fetcher

from .servers import Authority, Proxy, Server, answer, redirect

PUBLIC = "93.184.216.34"
PROXIES = ["http", "https", "socks5", "socks5h"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def never(host: str, port: int) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up here")


def resolve(host: str, port: int) -> Sequence[str]:
    return {"files.example": [PUBLIC], "v6.example": ["2606:4700::1111"]}.get(host, ["10.0.0.1"])


@contextlib.contextmanager
def proxy_of(kind: str, server: Server, authority: Authority) -> Iterator[tuple[Proxy, str]]:
    """A proxy that leads to `server`, and its URL."""
    tls = authority.server_context("localhost") if kind == "https" else None
    with Proxy(server.port, tls) as proxy:
        yield proxy, f"{kind}://me:secret@localhost:{proxy.port}"


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_is_asked_for_the_checked_address(
    authority: Authority, kind: str, scheme: str
) -> None:
    tls = authority.server_context("files.example") if scheme == "https" else None
    port = {"http": 80, "https": 443}[scheme]
    with (
        Server(answer(b"a" * 100_000), tls) as server,
        proxy_of(kind, server, authority) as (proxy, url),
    ):
        fetcher = Fetcher(ca_file=authority.ca_file, resolver=resolve, proxy=url)
        assert len(fetcher.fetch(f"{scheme}://files.example/a?b=c").data) == 100_000
    how = "socks address" if kind.startswith("socks") else "connect"
    assert proxy.asked == [f"{how} {PUBLIC}:{port}"]
    assert proxy.credentials == ["me:secret"]
    assert server.requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: files.example\r\n")
    assert b"secret" not in server.requests[0]


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_resolves_is_asked_for_the_name(
    authority: Authority, kind: str, scheme: str
) -> None:
    tls = authority.server_context("files.example") if scheme == "https" else None
    with (
        Server(answer(b"ok"), tls) as server,
        proxy_of(kind, server, authority) as (proxy, url),
    ):
        fetcher = Fetcher(ca_file=authority.ca_file, resolver=never, proxy=url, proxy_resolves=True)
        assert fetcher.fetch(f"{scheme}://files.example/%e4?b=c").data == b"ok"
    if kind.startswith("socks"):
        assert proxy.asked == [f"socks name files.example:{443 if tls else 80}"]
    elif tls:
        assert proxy.asked == ["connect files.example:443"]
    else:
        assert proxy.asked == ["GET http://files.example/%e4?b=c"]
    assert proxy.credentials == ["me:secret"]
    assert server.requests[0].startswith(b"GET /%e4?b=c HTTP/1.1\r\n")
    assert b"\r\nHost: files.example\r\n" in server.requests[0]


def test_address_of_version_6_is_asked_for_in_brackets(authority: Authority) -> None:
    with Server(answer(b"ok")) as server, Proxy(server.port) as proxy:
        for kind in ("http", "socks5"):
            fetcher = Fetcher(resolver=resolve, proxy=f"{kind}://127.0.0.1:{proxy.port}")
            fetcher.fetch("http://v6.example/")
    assert proxy.asked == ["connect [2606:4700::1111]:80", "socks address 2606:4700::1111:80"]


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("resolves", [False, True])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/",
        "http://[::1]/",
        "http://localhost/",
        "http://redis.internal/",
        "http://files.example:6379/",
        "http://2130706433/",
    ],
)
def test_closed_target_is_asked_of_no_proxy(
    authority: Authority, kind: str, resolves: bool, url: str
) -> None:
    with Server(answer(b"secret")) as server, proxy_of(kind, server, authority) as (proxy, way):
        fetcher = Fetcher(
            ca_file=authority.ca_file, resolver=resolve, proxy=way, proxy_resolves=resolves
        )
        with pytest.raises(InvalidRequest) as caught:
            fetcher.fetch(url)
    assert caught.value.code == "invalid_url"
    assert proxy.connections == 0


def test_name_that_stands_for_a_closed_address_is_asked_of_no_proxy() -> None:
    with Server(answer(b"secret")) as server, Proxy(server.port) as proxy:
        fetcher = Fetcher(resolver=resolve, proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(InvalidRequest):
            fetcher.fetch("http://inside.example/")
    assert proxy.connections == 0


@pytest.mark.parametrize("resolves", [False, True])
def test_redirect_by_a_proxy_is_checked_again(resolves: bool) -> None:
    with Server(redirect("http://127.0.0.1/")) as server, Proxy(server.port) as proxy:
        way = f"socks5://127.0.0.1:{proxy.port}"
        fetcher = Fetcher(resolver=resolve, proxy=way, proxy_resolves=resolves)
        with pytest.raises(InvalidRequest) as caught:
            fetcher.fetch("http://files.example/")
    assert caught.value.code == "invalid_url"
    assert proxy.connections == 1


def test_refusal_of_the_proxy_is_the_operators_to_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Proxy(1, refusal="407 Proxy Authentication Required") as proxy:
        way = f"http://me:secret@127.0.0.1:{proxy.port}"
        with pytest.raises(InvalidRequest, match="cannot be reached") as caught:
            Fetcher(resolver=resolve, proxy=way).fetch("http://files.example/path?sig=hidden")
    assert "127.0.0.1" not in caught.value.message
    assert "the proxy refused the tunnel with status 407" in caplog.text
    for word in ("secret", "hidden", PUBLIC):
        assert word not in caplog.text


@pytest.mark.parametrize("make", [caller_fetcher, upstream_fetcher])
@pytest.mark.parametrize("key", ["proxy", "server.proxies", "both"])
@pytest.mark.parametrize("resolves", [False, True])
def test_settings_name_the_proxy(make, key: str, resolves: bool) -> None:  # type: ignore[no-untyped-def]
    with Server(answer(b"ok")) as server, Proxy(server.port) as proxy:
        way = f"socks5://127.0.0.1:{proxy.port}"
        settings = Settings(
            proxy="" if key == "server.proxies" else way,
            server=ServerSettings(
                proxies={"proxy": "", "both": "http://127.0.0.1:1"}.get(key, way)
            ),
            files=Files(proxy_resolves=resolves),
        )
        url = "http://files.example/" if resolves else f"http://{PUBLIC}/"
        assert make(settings).fetch(url).data == b"ok"
    host = "name files.example" if resolves else f"address {PUBLIC}"
    assert proxy.asked == [f"socks {host}:80"]


def test_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Server(answer(b"ok")) as server, Proxy(server.port) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        host = f"127.0.0.1:{server.port}"
        fetcher = caller_fetcher(Settings(files=Files(fetch_allow=(host,))))
        assert fetcher.fetch(f"http://{host}/").data == b"ok"
    assert proxy.connections == 0
