"""Pictures and files of the upstream: how slow and how large they may be, and what is said else."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from emulators.backend_api import BackendApi
from tests.fetch.servers import Server, Talk, answer
from tests.files.support import picture
from tests.gateway import KEY, GatewayProcess

PNG = picture(size=(200, 200)) + bytes(3000)
Bridge = Callable[..., tuple[GatewayProcess, BackendApi]]


def trickling(data: bytes, seconds: float) -> Talk:
    """The whole of `data`, in ten pieces over so many seconds."""

    def talk(connection: socket.socket, request: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode())
        step = len(data) // 10 + 1
        for at in range(0, len(data), step):
            time.sleep(seconds / 10)
            connection.sendall(data[at : at + step])

    return talk


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Any]:
    """A gateway whose upstream's files lie on a server that does what a test says."""
    running: list[Any] = []

    def start(talk: Talk, **files: Any) -> tuple[GatewayProcess, BackendApi]:
        web, server = BackendApi(seed=1).__enter__(), Server(talk).__enter__()
        running.extend((web, server))
        own = {"access_token": web.accounts["alice"].access_token, "calls_per_minute": 0}
        settings = {
            "auth": {"keys": [KEY]},
            "upstream_base_url": web.url,
            "file_server_host": f"127.0.0.1:{server.port}",
            "providers": {"backend_api": own},
            "files": files,
        }
        gateway = GatewayProcess(tmp_path, settings).start()
        running.append(gateway)
        return gateway, web

    yield start
    for one in reversed(running):
        one.__exit__(None, None, None)


def drawn(gateway: GatewayProcess, web: BackendApi, scene: str = "dalle") -> str:
    web.script(scene)
    answer = gateway.client().chat.completions.create(
        model="gpt-4-s", messages=[{"role": "user", "content": "Draw"}]
    )
    return str(answer.choices[0].message.content)


def test_a_picture_that_trickles_longer_than_callers_urls_may_arrives(bridge: Bridge) -> None:
    gateway, web = bridge(trickling(PNG, 3.0), fetch_timeout=1, fetch_max_mb=0.002)
    (link,) = set(re.findall(r"http://[^\s)]+", drawn(gateway, web)))
    assert requests.get(link, timeout=10).content == PNG


@pytest.mark.parametrize("files", [{"download_timeout": 1}, {"download_max_mb": 0.002}])
@pytest.mark.parametrize("scene", ["dalle", "sandbox"])
def test_a_file_that_cannot_be_had_is_said_without_nested_brackets(
    bridge: Bridge, files: dict[str, float], scene: str
) -> None:
    gateway, web = bridge(trickling(PNG, 2.0), **files)
    text = drawn(gateway, web, scene)
    assert "this file could not be fetched from the upstream" in text
    said = next(line for line in text.splitlines() if "could not be fetched" in line)
    assert not re.search(r"[(\[][^)\]]*[(\[]", said), said
    assert not re.search(r"[)\]]\s*[)\]]", said), said
    assert "file not adopted" in gateway.log_text()


def test_large_file_of_the_upstreams_arrives_whole(bridge: Bridge) -> None:
    data = b"number,square\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(2_000_000))
    gateway, web = bridge(answer(data), fetch_max_mb=1)
    (link,) = re.findall(r"\((http://[^\s)]+)\)", drawn(gateway, web, "sandbox"))
    got = requests.get(link, timeout=30)
    assert got.content == data
    assert got.headers["Content-Type"].startswith("text/")
