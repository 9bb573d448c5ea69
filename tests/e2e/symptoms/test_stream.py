"""Symptoms that show in an answer: lost and garbled text, endings and statuses that lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from emulators.backend_api import BackendApi
from tests.gateway import GatewayProcess, free_port

from .support import COMMIT_WINDOW, Told, alice, ask, draw, message, picture, say, settings_for

SOON = 10.0
"""Seconds that count as at once on a busy machine: far below every time limit here."""
TRANSPORTS = ("sse", "socket_flat", "socket_nested")
BOT = {"X-Output-Profile": "bot"}


@pytest.fixture(scope="module")
def other_bridge(
    upstream_of_file: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway that wants a token that nobody gives, and exchanges at the third-party address."""
    url = upstream_of_file.url
    settings = settings_for(
        upstream_of_file,
        custom_arkose_url=True,
        arkose_urls=[f"{url}/arkose/500", f"{url}/arkose/empty"],
        refresh_ToAccess={"enableOai": False, "xyhelper_refreshToAccess_Url": f"{url}/applelogin"},
    )
    with GatewayProcess(tmp_path_factory.mktemp("other"), settings) as process:
        yield process


@pytest.fixture(scope="module")
def cut_off_bridge(
    upstream_of_file: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway whose upstream is not there."""
    settings = settings_for(upstream_of_file, upstream_base_url=f"http://127.0.0.1:{free_port()}")
    with GatewayProcess(tmp_path_factory.mktemp("cut-off"), settings) as process:
        yield process


def both(bridge: GatewayProcess, web: BackendApi, said: Any, **options: Any) -> list[Told]:
    """The same question streamed and not."""
    return [ask(bridge, said, alice(web), stream=stream, **options) for stream in (True, False)]


def text_everywhere(
    bridge: GatewayProcess, web: BackendApi, scene: str, options: str = "", **more: Any
) -> set[str]:
    """The texts of a scene over every transport, streamed and not: all complete."""
    told: list[Told] = []
    for transport in TRANSPORTS:
        told += both(bridge, web, f"#{scene}[transport={transport}{options}]", **more)
    assert {(t.status, t.finish, t.done) for t in told} == {(200, "stop", True)}
    return {t.linked for t in told}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("scene", "said"),
    [
        ("cut_event", "Hello"),
        ("cut_utf8", "你好"),
        ("cut_no_done", "Hello"),
        ("reset_in_stream", "Hello"),
        ("error_after_text", "Hello"),
    ],
)
def test_broken_upstream_stream_does_not_end_as_a_normal_answer(
    bridge: GatewayProcess, web: BackendApi, scene: str, said: str, transport: str
) -> None:
    streamed, whole = both(bridge, web, f"#{scene}[transport={transport}]")
    assert (streamed.status, streamed.text) == (200, said)
    assert (streamed.finish, streamed.done) == (None, False)
    assert streamed.error is not None
    assert streamed.error["type"] == "upstream_error"
    assert whole.status == 502
    assert whole.error == streamed.error


_SOCKET = {"scenario": "plain", "transport": "socket_flat", "wss_url": False}
STEPS: dict[str, list[dict[str, Any]]] = {
    "register": [{**_SOCKET}, {"endpoint": "register_websocket", "status": 500}],
    "socket": [{**_SOCKET, "wss_url": True}, {"endpoint": "websocket", "status": 403}],
    "announced upload": [{"endpoint": "file_create", "status": 500}],
    "upload": [{"endpoint": "blob_put", "status": 403}],
    "confirmed upload": [{"endpoint": "file_uploaded", "answer": "failed"}],
    "gizmo": [{"endpoint": "gizmo", "status": 500}],
    "reset": [{"answer": "reset", "times": 2}],  # twice: a pooled connection may just be stale
    "cut": [{"answer": "cut", "times": 2}],
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_failure_before_the_first_event_is_an_error_status_at_once(
    bridge: GatewayProcess, web: BackendApi, step: str, stream: bool
) -> None:
    web.script(*STEPS[step])
    said = picture() if "upload" in step else "Hi"
    model = "gpt-4-gizmo-g-otter" if step == "gizmo" else "gpt-4-s"
    told = ask(bridge, said, alice(web), stream=stream, model=model)
    assert told.status == 502
    assert told.error is not None
    assert told.error["message"]
    assert told.seconds < SOON


@pytest.mark.parametrize("stream", [True, False])
def test_missing_arkose_token_is_an_error_status_at_once(
    other_bridge: GatewayProcess, web: BackendApi, stream: bool
) -> None:
    told = ask(other_bridge, "Hi", alice(web), stream=stream)
    assert (told.status, (told.error or {})["code"]) == (503, "unavailable")
    assert told.seconds < SOON
    assert web.count("arkose") == 2
    assert web.count("conversation") == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("step", ["conversation", "upload", "gizmo"])
def test_refused_connection_is_an_error_status_at_once(
    cut_off_bridge: GatewayProcess, web: BackendApi, step: str, stream: bool
) -> None:
    said = picture() if step == "upload" else "Hi"
    model = "gpt-4-gizmo-g-otter" if step == "gizmo" else "gpt-4-s"
    told = ask(cut_off_bridge, said, alice(web), stream=stream, model=model)
    assert (told.status, (told.error or {})["code"]) == (502, "upstream_unreachable")
    assert told.seconds < SOON


@pytest.mark.parametrize("exchange", ["official", "third party"])
def test_refused_refresh_token_is_a_json_401_on_every_route(
    bridge: GatewayProcess, other_bridge: GatewayProcess, web: BackendApi, exchange: str
) -> None:
    at = bridge if exchange == "official" else other_bridge
    for stream in (True, False):
        told = ask(at, "Hi", "rt-nobody-has-it", stream=stream, model="gpt-3.5-turbo")
        assert told.status == 401
        assert told.error is not None
        assert "rt-nobody-has-it" not in str(told.error)
    reply = draw(at, "rt-nobody-has-it")
    assert reply.status_code == 401
    assert reply.json()["error"]["message"]
    web.state.arkose_tokens.add("a-token")
    web.script("dalle", {"endpoint": "arkose", "status": 200, "body": {"token": "a-token"}})
    assert draw(at, web.accounts["bob"].refresh_token).status_code == 200


def test_last_characters_that_come_with_the_finished_event_are_not_lost(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    assert text_everywhere(bridge, web, "tail_in_finished") == {"Hello world!"}


def test_later_messages_of_a_turn_keep_their_first_characters(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    expected = {"First answerSecond message text"}
    assert text_everywhere(bridge, web, "two_messages") == expected


def test_open_bracket_at_the_end_of_an_answer_is_not_lost(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    assert text_everywhere(bridge, web, "open_parenthesis_end") == {"f(x) = 1 ("}
    expected = {"Sky【not a mark】 ends【5†sou"}
    assert text_everywhere(bridge, web, "marks_unclosed") == expected


def test_citation_mark_amid_other_text_of_a_delta_is_rewritten(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    linked = "Blue yes[[5]](https://ex.com/a) and more[[6]](https://ex.com/b)."
    assert text_everywhere(bridge, web, "marks_in_delta") == {linked}
    plain = text_everywhere(bridge, web, "marks_in_delta", headers=BOT)
    assert plain == {"Blue yes and more."}


def test_sandbox_link_is_replaced_wherever_the_deltas_cut_it(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    assert text_everywhere(bridge, web, "sandbox") == {"Get [file](URL.csv) now"}
    expected = {"Done:\n[table](URL.csv) and [chart](URL.html)."}
    assert text_everywhere(bridge, web, "sandbox_two") == expected
    for size in (1, 2, 5):
        assert text_everywhere(bridge, web, "sandbox_two", f",step={size}") == expected


def test_protocol_words_within_the_models_text_are_left_alone(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    expected = {"Send `data: {}`:\n```\ndata: [DONE]\n\ndata: x\n```\nevent: ping\n"}
    assert text_everywhere(bridge, web, "backticks_and_data_prefix") == expected


@pytest.mark.parametrize("scene", ["chinese", "noise", "crlf"])
@pytest.mark.parametrize("split", ["bytes", "random"])
def test_bytes_cut_anywhere_give_the_same_text(
    bridge: GatewayProcess, web: BackendApi, scene: str, split: str
) -> None:
    expected = "你好，世界。水獭🦦很可爱" if scene == "chinese" else "Hello world!"
    told = both(bridge, web, f"#{scene}[split={split},seed=7,raw_utf8=true]")
    assert [(t.text, t.finish) for t in told] == [(expected, "stop")] * 2


def test_text_and_code_around_an_execution_output_are_whole(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    expected = {"\n```python\nprint(2)\n```\n`Result:` \n```\n2\n```\nIt is 2."}
    assert text_everywhere(bridge, web, "code_in_closing_event") == expected
    expected = {
        "\n```python\na()\n```\n`Result:` \n```\n1\n```\n"
        "\n```python\nb()\n```\n`Result:` \n```\n2\n```\nEnd"
    }
    assert text_everywhere(bridge, web, "code_twice") == expected


def test_every_picture_of_one_event_is_shown(bridge: GatewayProcess, web: BackendApi) -> None:
    for told in both(bridge, web, "#dalle_two 16x16"):
        assert len(told.links) == 2
        assert told.text.count("![image](") == 2
        first, second = (requests.get(link, timeout=10).content for link in told.links)
        assert first.startswith(b"\x89PNG")
        assert second.startswith(b"\x89PNG")
        assert first != second


@pytest.mark.parametrize("step", ["file_download", "blob_get"])
def test_picture_that_cannot_be_had_is_told(
    bridge: GatewayProcess, web: BackendApi, step: str
) -> None:
    web.script({"endpoint": step, "status": 404, "times": 2})
    for told in both(bridge, web, "#dalle"):
        assert (told.status, told.finish) == (200, "stop")
        assert told.links == []
        assert "图片下载失败" in told.text or "could not be fetched" in told.text
        assert told.text.endswith("Here is it.")


def test_event_whose_message_is_null_does_not_end_the_stream(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    nothing = {"message": None, "conversation_id": "c1", "error": None}
    finished = message("Hello world!", status="finished_successfully")
    say(web, nothing, message("Hello"), nothing, nothing, finished, nothing, times=2)
    for told in both(bridge, web, "Hi"):
        assert (told.text, told.finish) == ("Hello world!", "stop")


@pytest.mark.parametrize("scene", ["plain", "error_500"])
def test_stream_has_one_model_and_its_role_first(
    bridge: GatewayProcess, web: BackendApi, scene: str
) -> None:
    delay = COMMIT_WINDOW + 1.5
    for options in ("", f"[headers_delay={delay}]"):
        told = ask(bridge, f"#{scene}{options}", alice(web))
        if scene == "error_500" and not options:
            assert told.status == 502
            continue
        assert told.chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert [c for c in told.chunks[1:] if c["choices"][0]["delta"].get("role")] == []
        assert {chunk["model"] for chunk in told.chunks} == {"gpt-4-s"}
        assert len({chunk["id"] for chunk in told.chunks}) == 1
        assert (told.error is None, told.done) == (scene == "plain", scene == "plain")


@pytest.mark.parametrize(
    ("scene", "status"),
    [
        ("cap_429", 429),
        ("string_429", 429),
        ("html_403", 403),
        ("account_deactivated", 403),
        ("not_found_404", 404),
        ("error_500", 502),
        ("error_502", 502),
        ("json_error_200", 429),
        ("error_event", 502),
        ("empty", 502),
    ],
)
def test_error_is_a_status_and_never_the_content_of_a_200(
    bridge: GatewayProcess, web: BackendApi, scene: str, status: int
) -> None:
    for told in both(bridge, web, f"#{scene}"):
        assert told.status == status
        assert set(told.error or {}) == {"message", "type", "param", "code"}
        assert "<" not in str(told.error)
        assert told.text == ""
    assert draw(bridge, alice(web), f"#{scene}").status_code == status


@pytest.mark.parametrize(
    ("scene", "status", "words"),
    [
        ("dalle_refused", 400, "content policy"),
        ("plain", 400, "Hello world!"),
        ("cap_429", 429, "too many messages"),
        ("error_500", 502, ""),
        ("empty", 502, ""),
    ],
)
def test_images_route_without_an_image_is_no_200(
    bridge: GatewayProcess, web: BackendApi, scene: str, status: int, words: str
) -> None:
    reply = draw(bridge, alice(web), f"#{scene}")
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error["code"] == "image_generate_fail"
    assert error["param"] == ""
    assert words in error["message"]


def test_images_route_whose_image_cannot_be_had_is_no_200(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    for endpoint in ("file_download", "blob_get"):
        web.script({"endpoint": endpoint, "status": 403})
        reply = draw(bridge, alice(web), "#dalle")
        assert reply.status_code == 502
        assert reply.json()["error"]["code"] == "image_generate_fail"
