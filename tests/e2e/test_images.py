"""Pictures through the real service: who draws, which status arrives, however long it takes."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from tests.canaries import ADMIN_KEY
from tests.gateway import KEY, GatewayProcess, wait_for

LONGER_THAN_THE_WINDOW = 2.5


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream
    assert upstream.errors == []


@pytest.fixture(scope="module")
def talker() -> Iterator[OpenAICompat]:
    """An upstream that never draws, except where its words hold a picture."""
    with OpenAICompat() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def bridge(
    web: BackendApi, talker: OpenAICompat, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    known = {"prefix": "known", "base_url": talker.base_url, "api_key": "none", "models": ["text"]}
    unknown = {"prefix": "unknown", "base_url": talker.base_url, "api_key": "none"}
    own = {"access_token": web.accounts["alice"].access_token, "calls_per_minute": 0}
    settings = {
        "auth": {"keys": [KEY], "admin_key": ADMIN_KEY},
        "use_pandora_file_server": False,
        "upstream_base_url": web.url,
        "dalle_prompt_prefix": "#dalle ",
        "models": {
            "aliases": {"dall-e-2": "unknown/painter"},
            "fallbacks": {"unknown/broken": ["known/text", "gpt-4o"]},
        },
        "server": {"commit_window": 1, "keepalive_interval": 1},
        "providers": {"backend_api": own, "custom": [{**known, "draws": []}, unknown]},
    }
    with GatewayProcess(tmp_path_factory.mktemp("bridge"), settings) as process:
        yield process


@pytest.fixture(autouse=True)
def fresh(web: BackendApi, talker: OpenAICompat) -> None:
    web.state.calls.clear()
    talker.reset()


def draw(bridge: GatewayProcess, prompt: str = "a red fox", **fields: Any) -> requests.Response:
    headers = fields.pop("headers", {})
    answer: requests.Response = bridge.post(
        {"prompt": prompt, **fields}, "/v1/images/generations", headers=headers
    )
    return answer


def side_lengths(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


# which status arrives


@pytest.mark.parametrize(
    ("scenario", "error", "code"),
    [
        ("cap_429", openai.RateLimitError, "image_generate_fail"),
        ("error_500", openai.InternalServerError, "image_generate_fail"),
        ("dalle_refused", openai.BadRequestError, "image_generate_fail"),
        ("dalle_policy", openai.BadRequestError, "content_policy_violation"),
        ("dalle_blocked", openai.BadRequestError, "content_policy_violation"),
    ],
)
def test_refusal_after_a_long_wait_is_the_official_clients_exception(
    bridge: GatewayProcess,
    web: BackendApi,
    scenario: str,
    error: type[openai.APIStatusError],
    code: str,
) -> None:
    web.script({"scenario": scenario, "headers_delay": LONGER_THAN_THE_WINDOW})
    started = time.monotonic()
    with pytest.raises(error) as caught:
        bridge.client().images.generate(model="gpt-4o", prompt="a red fox")
    assert time.monotonic() - started > LONGER_THAN_THE_WINDOW
    assert caught.value.code == code
    assert "\n" not in str(caught.value.body)


def test_picture_after_a_long_wait_is_there(bridge: GatewayProcess, web: BackendApi) -> None:
    web.script({"scenario": "dalle", "headers_delay": LONGER_THAN_THE_WINDOW})
    answer = bridge.client().images.generate(model="gpt-4o", prompt="a red fox")
    assert answer.data is not None
    assert requests.get(str(answer.data[0].url), timeout=10).content.startswith(b"\x89PNG")


def test_caller_who_leaves_during_the_long_wait_frees_the_upstream(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    web.script({"scenario": "silence", "params": {"seconds": 30}})
    with waiting(bridge):
        call = wait_for(lambda: web.calls("conversation"), 5, "the upstream call")[0]
        wait_for(lambda: call.exchange.bytes_sent, 5, "the answer's beginning")
        time.sleep(LONGER_THAN_THE_WINDOW)
        left_at = time.monotonic()
    wait_for(lambda: call.exchange.aborted_at, 5, "the upstream connection's end")
    assert (call.exchange.aborted_at or 0) - left_at < 2.0


def waiting(bridge: GatewayProcess) -> socket.socket:
    """A connection over which a picture has been asked for."""
    body = json.dumps({"model": "gpt-4o", "prompt": "a red fox"}).encode()
    client = socket.create_connection(("127.0.0.1", bridge.port), timeout=10)
    client.sendall(
        b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
    )
    return client


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_silent_connection_is_probed_so_that_routers_do_not_forget_it(
    tmp_path: Path, web: BackendApi, worker: str
) -> None:
    own = {"access_token": web.accounts["alice"].access_token}
    settings = {
        "auth": {"keys": [KEY]},
        "upstream_base_url": web.url,
        "server": {"worker_class": worker},
        "providers": {"backend_api": own},
    }
    with GatewayProcess(tmp_path, settings) as process:
        web.script({"scenario": "silence", "params": {"seconds": 30}})
        with waiting(process) as client:
            wait_for(lambda: web.calls("conversation"), 5, "the upstream call")
            here, there = f":{process.port:04X}", f":{client.getsockname()[1]:04X}"
            rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            [timer] = [row[5] for row in rows if row[1][8:] == here and row[2][8:] == there]
    kind, expires = timer.split(":")
    assert kind == "02"  # a keep-alive timer
    assert int(expires, 16) <= 30 * 100  # hundredths of a second


# who draws


@pytest.mark.parametrize("model", [None, "dall-e-3", "gpt-image-1", "gpt-image-1-mini"])
def test_usual_names_of_picture_models_lead_to_the_model_that_draws(
    bridge: GatewayProcess, web: BackendApi, model: str | None
) -> None:
    answer = draw(bridge, model=model, size="256x128")
    assert answer.status_code == 200
    [picture] = answer.json()["data"]
    assert picture["revised_prompt"] == "a red fox"
    assert side_lengths(requests.get(picture["url"], timeout=10).content) == (256, 128)
    assert web.calls("conversation")[0].json["model"] == "gpt-4"


def test_names_of_picture_models_are_listed_and_answer_chats(bridge: GatewayProcess) -> None:
    client = bridge.client()
    assert {"dall-e-3", "dall-e-2", "gpt-image-1"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("dall-e-3").owned_by == "openai"
    chat = client.chat.completions.create(
        model="dall-e-3", messages=[{"role": "user", "content": "#dalle a red fox"}]
    )
    assert ".png" in str(chat.choices[0].message.content)


def test_alias_of_the_operator_goes_before_the_model_that_draws(
    bridge: GatewayProcess, web: BackendApi, talker: OpenAICompat
) -> None:
    answer = draw(bridge, "#echo ![x](https://up.example/x.png)", model="dall-e-2")
    assert answer.json()["data"][0]["url"] == "https://up.example/x.png"
    assert [call.request.json()["model"] for call in talker.calls] == ["painter"]
    assert web.log == []


def test_other_unknown_name_is_no_picture_model(bridge: GatewayProcess) -> None:
    answer = draw(bridge, model="dall-e3")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["gpt-3.5-turbo", "known/text", "text"])
def test_model_that_draws_nothing_is_refused_before_anything_is_asked(
    bridge: GatewayProcess, web: BackendApi, talker: OpenAICompat, model: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        bridge.client().images.generate(model=model, prompt="a red fox")
    assert caught.value.param == "model"
    assert f"the model {model} makes no pictures; gpt-4-s does" in str(caught.value)
    assert (web.log, talker.calls) == ([], [])


def test_model_named_instead_is_one_that_the_key_may_use(bridge: GatewayProcess) -> None:
    made = bridge.admin("POST", "/keys", {"name": "some", "models": ["known/*", "gpt-4o"]})
    answer = draw(bridge, model="known/text", headers={"Authorization": f"Bearer {made['secret']}"})
    message = answer.json()["error"]["message"]
    assert message == "the model known/text makes no pictures; gpt-4o does"


def test_text_instead_of_a_picture_is_a_400_of_one_short_line(bridge: GatewayProcess) -> None:
    answer = draw(bridge, "#long:4000", model="unknown/text")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "image_generate_fail"
    assert len(error["message"]) < 250
    assert "\n" not in error["message"]


def test_model_that_draws_nothing_does_not_stand_in(
    bridge: GatewayProcess, web: BackendApi, talker: OpenAICompat
) -> None:
    answer = draw(bridge, "#500 fox", model="unknown/broken")
    assert answer.status_code == 200
    assert [call.request.json()["model"] for call in talker.calls] == ["broken"]
    assert len(web.calls("conversation")) == 1


def test_operator_is_told_once_that_links_name_a_host_which_browsers_may_not_find(
    bridge: GatewayProcess,
) -> None:
    def links(host: str) -> list[str]:
        answers = [draw(bridge, model="gpt-4o", headers={"Host": host}) for _ in range(2)]
        return [answer.json()["data"][0]["url"] for answer in answers]

    def warnings() -> list[str]:
        return [x for x in bridge.log_text().splitlines() if "backend_container_url" in x]

    for reachable in ("localhost:8080", "pictures.example", "127.0.0.1", "[::1]:8080"):
        assert links(reachable)[0].startswith(f"http://{reachable}/images/")
    assert warnings() == []
    assert links("gateway:8080")[0].startswith("http://gateway:8080/images/")
    assert links("other")[0].startswith("http://other/images/")
    [warning] = warnings()
    assert "WARNING" in warning
    assert "host=gateway:8080" in warning
