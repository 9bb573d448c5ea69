"""What goes by the proxy: `proxy` is for the contents of files, `server.proxies` for everything."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from emulators.backend_api import BackendApi
from tests.fetch.servers import Proxy, Server, answer
from tests.gateway import KEY, GatewayProcess

DOT = (Path(__file__).parent / "dot.png").read_bytes()
PLACE = "93.184.216.34:80"


@pytest.fixture
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture
def pictures() -> Iterator[Server]:
    with Server(answer(DOT, "Content-Type: image/png")) as server:
        yield server


@pytest.fixture(params=["http", "socks5", "socks5h"])
def proxy(
    request: pytest.FixtureRequest, web: BackendApi, pictures: Server
) -> Iterator[tuple[Proxy, str]]:
    web_port = int(web.url.rpartition(":")[2])
    with Proxy(web_port, others={PLACE: pictures.port}) as running:
        yield running, f"{request.param}://127.0.0.1:{running.port}"


def settings_for(web: BackendApi, **more: Any) -> dict[str, Any]:
    own = {"access_token": web.accounts["alice"].access_token, "calls_per_minute": 0}
    return {
        "auth": {"keys": [KEY]},
        "upstream_base_url": web.url,
        "use_pandora_file_server": False,
        "providers": {"backend_api": own},
        **more,
    }


def turns(bridge: GatewayProcess, web: BackendApi) -> None:
    """A picture that is fetched and uploaded, and one that is drawn and downloaded."""
    picture = {"type": "image_url", "image_url": {"url": f"http://{PLACE.partition(':')[0]}/cat"}}
    chat = bridge.client().chat.completions
    chat.create(model="gpt-4-s", messages=[{"role": "user", "content": [picture]}])  # type: ignore[typeddict-item,list-item]
    assert web.calls("blob_put")[-1].request.body == DOT
    web.script("dalle")
    drawn = chat.create(model="gpt-4-s", messages=[{"role": "user", "content": "Draw"}])
    (link,) = set(re.findall(r"http://[^\s)]+", str(drawn.choices[0].message.content)))
    assert requests.get(link, timeout=10).content.startswith(b"\x89PNG")


def contents(proxy: Proxy) -> list[str]:
    """What the proxy was asked for of the callers' and the upstream's files, without paths."""
    asked = [re.sub(r"^(\w+ http://[^/]+/blob/).*", r"\1", text) for text in proxy.asked]
    return [text for text in asked if "/backend-api/" not in text]


def test_proxy_carries_the_contents_of_files_and_nothing_else(
    web: BackendApi, proxy: tuple[Proxy, str], tmp_path: Path
) -> None:
    running, url = proxy
    with GatewayProcess(tmp_path, settings_for(web, proxy=url)) as bridge:
        turns(bridge, web)
    place = web.url.removeprefix("http://")
    if url.startswith("socks5"):
        ways = [PLACE, place, place]
        assert running.asked == [f"socks address {way}" for way in ways]
    else:
        assert running.asked[0] == f"connect {PLACE}"
        assert contents(running)[1:] == [f"PUT http://{place}/blob/", f"connect {place}"]
        assert len(running.asked) == 3


def test_server_proxies_carries_every_call(
    web: BackendApi, proxy: tuple[Proxy, str], tmp_path: Path
) -> None:
    running, url = proxy
    with GatewayProcess(tmp_path, settings_for(web, server={"proxies": url})) as bridge:
        turns(bridge, web)
    place = web.url.removeprefix("http://")
    if url.startswith("socks5"):
        assert set(running.asked) == {f"socks address {PLACE}", f"socks address {place}"}
    else:
        chats = [text for text in running.asked if text.endswith("/backend-api/conversation")]
        assert chats == [f"POST http://{place}/backend-api/conversation"] * 2
        assert contents(running) == [
            f"connect {PLACE}",
            f"PUT http://{place}/blob/",
            f"connect {place}",
        ]
