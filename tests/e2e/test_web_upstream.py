"""The backend-api upstream through the official client: chat, files in, pictures and files out."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from emulators.backend_api import BackendApi
from tests.fetch.servers import Server, answer
from tests.gateway import KEY, GatewayProcess, free_port

DOT = (Path(__file__).parent / "dot.png").read_bytes()
PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF"
SETTINGS: dict[str, Any] = {
    "auth": {"keys": [KEY]},
    "use_pandora_file_server": False,
    "server": {"commit_window": 3},
}


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shelf() -> Iterator[tuple[str, str]]:
    """Where a picture and a document lie, beside the service."""
    picture = answer(DOT, "Content-Type: image/png")
    document = answer(PDF, "Content-Type: application/pdf")
    with Server(picture) as pictures, Server(document) as documents:
        yield f"127.0.0.1:{pictures.port}", f"127.0.0.1:{documents.port}"


@pytest.fixture(scope="module")
def bridge(
    web: BackendApi, shelf: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    own = {"access_token": web.accounts["alice"].access_token, "calls_per_minute": 0}
    settings = SETTINGS | {"upstream_base_url": web.url, "providers": {"backend_api": own}}
    settings["files"] = {"fetch_allow": list(shelf)}
    with GatewayProcess(tmp_path_factory.mktemp("bridge"), settings) as process:
        yield process


def say(bridge: GatewayProcess, content: Any, **options: Any) -> Any:
    return bridge.client().chat.completions.create(
        model="gpt-4-s", messages=[{"role": "user", "content": content}], **options
    )


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def streamed(bridge: GatewayProcess, content: Any, **options: Any) -> str:
    chunks = list(say(bridge, content, stream=True, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.model for chunk in chunks} == {"gpt-4-s"}
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize("transport", ["sse", "socket_flat", "socket_nested"])
@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("plain", "Hello world!"),
        ("code", "\n```python\nprint(1)\n```\n`Result:` \n```\n1\n```\nIt is 1."),
        (
            "code_twice",
            "\n```python\na()\n```\n`Result:` \n```\n1\n```\n"
            "\n```python\nb()\n```\n`Result:` \n```\n2\n```\nEnd",
        ),
    ],
)
def test_text_is_the_same_over_every_transport(
    bridge: GatewayProcess, web: BackendApi, scenario: str, expected: str, transport: str
) -> None:
    web.script({"scenario": scenario, "transport": transport, "times": 2})
    assert text_of(say(bridge, "Hi")) == expected
    assert streamed(bridge, "Hi") == expected


def test_bot_profile_leaves_only_plain_text(bridge: GatewayProcess, web: BackendApi) -> None:
    web.script({"scenario": "code", "times": 1}, {"scenario": "browsing", "times": 1})
    bot = {"extra_headers": {"X-Output-Profile": "bot"}}
    assert text_of(say(bridge, "Hi", **bot)) == "It is 1."
    assert "【" not in text_of(say(bridge, "Hi", **bot))


def test_picture_becomes_a_link_of_ours_that_bots_can_fetch(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    web.script("dalle")
    profile = {"extra_headers": {"X-Output-Profile": "bot+plain_image"}}
    text = text_of(say(bridge, "Hi", **profile))
    (link,) = [line for line in text.splitlines() if line.startswith("http")]
    assert link.startswith(bridge.url)
    assert link.endswith(".png")
    assert requests.head(link, timeout=10).headers["Content-Type"] == "image/png"
    assert requests.get(link, timeout=10).content.startswith(b"\x89PNG")


def test_sandbox_file_becomes_a_link_of_ours(bridge: GatewayProcess, web: BackendApi) -> None:
    web.script("sandbox")
    text = text_of(say(bridge, "Hi"))
    assert "sandbox:" not in text
    link = text.split("](")[1].split(")")[0]
    answer = requests.get(link, timeout=10)
    assert answer.status_code == 200
    assert "attachment" in answer.headers["Content-Disposition"]


def test_images_endpoint_gives_urls_and_bytes(bridge: GatewayProcess, web: BackendApi) -> None:
    web.script({"scenario": "dalle", "times": 2})
    client = bridge.client()
    linked = client.images.generate(model="gpt-4-s", prompt="an otter")
    packed = client.images.generate(model="gpt-4-s", prompt="x", response_format="b64_json")
    assert linked.data is not None
    assert requests.get(str(linked.data[0].url), timeout=10).status_code == 200
    assert packed.data is not None
    assert base64.b64decode(str(packed.data[0].b64_json)).startswith(b"\x89PNG")


def test_pictures_and_documents_are_uploaded(bridge: GatewayProcess, web: BackendApi) -> None:
    url = f"data:image/png;base64,{base64.b64encode(DOT).decode()}"
    upload = bridge.client().files.create(file=("notes.pdf", PDF), purpose="user_data")
    say(
        bridge,
        [
            {"type": "text", "text": "What is in it?"},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "file", "file": {"file_id": upload.id}},
        ],
    )
    message = web.calls("conversation")[-1].json["messages"][-1]
    assert message["content"]["content_type"] == "multimodal_text"
    attached = {a["mimeType"]: a for a in message["metadata"]["attachments"]}
    assert set(attached) == {"image/png", "application/pdf"}
    assert (attached["image/png"]["width"], attached["image/png"]["height"]) == (1, 1)
    assert attached["application/pdf"]["name"] == "notes.pdf"
    assert web.problems == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["image_url", "file_url"])
def test_pictures_and_documents_are_fetched_from_their_urls(
    bridge: GatewayProcess, web: BackendApi, shelf: tuple[str, str], form: str, stream: bool
) -> None:
    image, pdf = (f"http://{place}/some" for place in shelf)
    # older clients send documents as pictures, since that was all there was
    part = {"type": "image_url", "image_url": {"url": pdf}}
    if form == "file_url":
        part = {"type": "file", "file": {"file_url": pdf, "filename": "notes.pdf"}}
    content = [
        {"type": "text", "text": "What is in it?"},
        {"type": "image_url", "image_url": {"url": image}},
        part,
    ]
    heard = streamed(bridge, content) if stream else text_of(say(bridge, content))
    assert heard
    message = web.calls("conversation")[-1].json["messages"][-1]
    types = {a["mimeType"] for a in message["metadata"]["attachments"]}
    assert types == {"image/png", "application/pdf"}
    assert web.problems == []


def test_address_inside_is_not_fetched(bridge: GatewayProcess, web: BackendApi) -> None:
    before = len(web.calls("conversation"))
    inside = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{free_port()}/x.png"}}
    with pytest.raises(openai.BadRequestError):
        say(bridge, [inside])
    assert len(web.calls("conversation")) == before


@pytest.mark.parametrize(
    ("scenario", "kind", "status"),
    [
        ("cap_429", openai.RateLimitError, 429),
        ("html_403", openai.InternalServerError, 503),
        ("error_500", openai.InternalServerError, 502),
        ("account_deactivated", openai.InternalServerError, 503),
    ],
)
def test_upstream_error_is_a_status(
    bridge: GatewayProcess,
    web: BackendApi,
    scenario: str,
    kind: type[openai.APIStatusError],
    status: int,
) -> None:
    web.script({"scenario": scenario, "times": 2})
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            say(bridge, "Hi", stream=stream)
        assert caught.value.status_code == status
        assert "<" not in str(caught.value.body)


@pytest.mark.parametrize("scenario", ["cut_event", "cut_utf8", "cut_no_done"])
def test_broken_stream_is_an_error_not_a_stop(
    bridge: GatewayProcess, web: BackendApi, scenario: str
) -> None:
    web.script(scenario)
    with pytest.raises(openai.APIError):
        streamed(bridge, "Hi")
