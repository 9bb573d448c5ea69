"""Links that callers send: this gateway's own come from its cache, all others by their rules."""

import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from emulators.backend_api import BackendApi
from tests.files.support import picture
from tests.gateway import KEY, GatewayProcess

PUBLIC = "https://bridge.example/gateway"


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


def settings_for(web: BackendApi, calls_per_minute: int = 0, **more: Any) -> dict[str, Any]:
    own = {
        "access_token": web.accounts["alice"].access_token,
        "calls_per_minute": calls_per_minute,
        "queue_patience": 0,
    }
    return {
        "auth": {"keys": [KEY]},
        "upstream_base_url": web.url,
        "use_pandora_file_server": False,
        "providers": {"backend_api": own},
        **more,
    }


@pytest.fixture(scope="module")
def bridge(web: BackendApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("bridge")
    settings = settings_for(web, backend_container_url=PUBLIC)
    with GatewayProcess(folder, settings) as process:
        yield process


def say(bridge: GatewayProcess, content: Any) -> str:
    answer = bridge.client().chat.completions.create(
        model="gpt-4-s", messages=[{"role": "user", "content": content}]
    )
    return str(answer.choices[0].message.content)


def links_in(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"https?://[^\s)]+", text)))


def with_picture(url: str) -> list[Any]:
    return [{"type": "text", "text": "And now?"}, {"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize(
    "base", [PUBLIC, "{bridge}", "http://localhost:{port}", "http://[::1]:{port}", "http://gw:8080"]
)
@pytest.mark.parametrize("form", ["image_url", "file_url"])
def test_a_picture_that_the_gateway_linked_can_be_sent_back(
    bridge: GatewayProcess, web: BackendApi, base: str, form: str
) -> None:
    web.script("dalle")
    (link,) = links_in(say(bridge, "Draw an otter"))
    assert link.startswith(f"{PUBLIC}/images/")
    path = link.removeprefix(PUBLIC)
    url = base.format(bridge=bridge.url, port=bridge.port) + path
    part = {"type": "file", "file": {"file_url": url}}
    say(bridge, with_picture(url) if form == "image_url" else [part])
    (attached,) = web.calls("conversation")[-1].json["messages"][-1]["metadata"]["attachments"]
    assert attached["mimeType"] == "image/png"
    brought = web.calls("blob_put")[-1].request.body
    assert brought == requests.get(bridge.url + path, timeout=10).content


def test_a_file_that_the_gateway_linked_keeps_its_name(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    web.script("sandbox")
    (link,) = links_in(say(bridge, "Make a table"))
    assert link.startswith(f"{PUBLIC}/files/")
    say(bridge, [{"type": "file", "file": {"file_url": link}}])
    (attached,) = web.calls("conversation")[-1].json["messages"][-1]["metadata"]["attachments"]
    assert attached["name"].endswith(".csv")
    assert not attached["name"].startswith("f")


@pytest.mark.parametrize("base", [PUBLIC, "{bridge}"])
def test_an_expired_link_of_the_gateways_is_a_clear_error(
    bridge: GatewayProcess, web: BackendApi, base: str
) -> None:
    web.script("dalle")
    (link,) = links_in(say(bridge, "Draw an otter"))
    url = base.format(bridge=bridge.url) + link.removeprefix(PUBLIC)
    (bridge.folder / "images" / url.rpartition("/")[2]).unlink()
    with pytest.raises(openai.BadRequestError) as caught:
        say(bridge, with_picture(url))
    assert caught.value.code == "file_expired"
    assert caught.value.param == "messages[0].content[1].image_url.url"
    assert "not kept any more" in caught.value.message


def test_the_same_path_on_another_host_is_fetched_by_the_rules(bridge: GatewayProcess) -> None:
    url = f"http://10.0.0.1/images/i{'A' * 32}.png"
    with pytest.raises(openai.BadRequestError) as caught:
        say(bridge, with_picture(url))
    assert caught.value.code == "invalid_url"


def test_a_message_with_sixteen_pictures_leaves_the_account_its_next_chats(
    web: BackendApi, tmp_path: Path
) -> None:
    with GatewayProcess(tmp_path, settings_for(web, calls_per_minute=30)) as bridge:
        images = [picture(color=f"#0000{shade:02x}") for shade in range(16)]
        urls = [f"data:image/png;base64,{b64encode(image).decode()}" for image in images]
        before = len(web.calls("blob_put"))
        say(bridge, [{"type": "image_url", "image_url": {"url": url}} for url in urls])
        assert len(web.calls("blob_put")) == before + 16
        for _ in range(9):
            say(bridge, "And now?")
