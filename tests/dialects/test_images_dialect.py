"""OpenAI's images dialect: what is asked, what is answered, and the routes over real sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests
from flask import Flask
from werkzeug.serving import make_server

from emulators.openai_compat import OpenAICompat
from services import transport
from services.api import errors, images
from services.api.auth import Authenticator
from services.config import Auth, BotMode, GatewayKeySetting, Server, Settings
from services.core.errors import (
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
)
from services.core.events import SILENCE, CodeBlock, Event, Events, Finish, Image, Text
from services.core.models import Caller, Credential, Secret
from services.core.requests import ChatRequest
from services.dialects.images import (
    ImageRequest,
    Picture,
    as_chat,
    decode_image_request,
    failed,
    images_body,
    refused,
)
from services.gateway import Context
from services.providers.custom import Custom, Upstream
from services.store import Store
from tests.keys.support import Desk

KEY = "sk-images-canary7f3e-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
A, B = "https://me.example/images/a.png", "https://me.example/images/b.png"
PNG = b"\x89PNG\r\n\x1a\n\x00\xff"

Turn = list[list[Event] | Exception | float]
"""What one turn brings: batches, an exception to raise, or seconds of silence."""


class Painter:
    """An upstream that plays one scripted turn after the other, and keeps what was asked."""

    def __init__(self, *turns: Turn) -> None:
        self._turns = list(turns)
        self.asked: list[tuple[ImageRequest, ChatRequest, Caller]] = []
        self.closed = threading.Event()

    def pictures(self, image: ImageRequest, chat: ChatRequest, context: Context) -> Events:
        self.asked.append((image, chat, context.caller))
        return self._play(self._turns.pop(0))

    def _play(self, turn: Turn) -> Events:
        try:
            for step in turn:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    for _ in range(round(step / 0.05)):
                        time.sleep(0.05)
                        yield SILENCE
                else:
                    yield step
        finally:
            self.closed.set()


class Shelf:
    """Holds one picture, at A."""

    def read(self, url: str) -> bytes:
        if url != A:
            raise UpstreamError("the picture could not be read")
        return PNG


def configured(**fields: Any) -> Settings:
    server = Server(**{"commit_window": 5.0, "keepalive_interval": 5.0, **fields.pop("server", {})})
    keys = (GatewayKeySetting(key=Secret(KEY), name="test"),)
    return Settings(auth=Auth(keys=keys), server=server, **fields)


@contextlib.contextmanager
def served(source: images.PictureSource, **fields: Any) -> Iterator[str]:
    """The routes on a loopback port; the client's socket is handed on as gunicorn does."""
    settings = configured(**fields)
    app = Flask("images", static_folder=None)
    errors.register(app)
    auth = Authenticator(settings, Desk(Store(""), settings.auth.keys).control)
    app.register_blueprint(images.blueprint(settings, source, auth, Shelf()))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    def with_socket(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        return app({**environ, "gunicorn.socket": environ["werkzeug.socket"]}, start)

    server = make_server("127.0.0.1", 0, with_socket, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def post(url: str, path: str = "/v1/images/generations", **fields: Any) -> requests.Response:
    body = {"prompt": "an otter", "model": "painter", **fields.pop("json", {})}
    headers = HEADERS | fields.pop("headers", {})
    return requests.post(url + path, json=body, headers=headers, timeout=20, **fields)


def drawn(*urls: str, text: str = "Here is it.", prompt: str | None = None) -> Turn:
    made: list[Event] = [Image(url, revised_prompt=prompt) for url in urls]
    return [made, [Text(text), Finish("stop")]]


def decoded(**fields: Any) -> ImageRequest:
    return decode_image_request(json.dumps({"prompt": "an otter", **fields}).encode())


# the request


def test_defaults_of_a_request() -> None:
    assert decoded() == ImageRequest("dall-e-3", "an otter")
    nothing = dict.fromkeys(("model", "n", "size", "quality", "style", "response_format", "user"))
    assert decoded(**nothing) == decoded()


def test_all_fields_are_read_and_others_ignored() -> None:
    request = decoded(
        model="m", n=10.0, size="1792x1024", quality=3, style={}, user=5,
        response_format="b64_json", stream="yes", partial_images={"any": 1}, background="auto",
    )  # fmt: skip
    assert request == ImageRequest("m", "an otter", 10, "1792x1024", "b64_json")
    assert decoded(size="auto").size is None
    assert len(decoded(prompt="字" * 32_000).prompt) == 32_000


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": ["x"]}, "prompt", "invalid_type"),
        ({"prompt": " \n"}, "prompt", "invalid_value"),
        ({"prompt": "x" * 32_001}, "prompt", "string_above_max_length"),
        ({"prompt": "a\x00b"}, "prompt", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"model": "x" * 257}, "model", "invalid_value"),
        ({"model": "a\nb"}, "model", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "1024"}, "size", "invalid_value"),
        ({"size": "1024x1024\nignore that"}, "size", "invalid_value"),
        ({"size": "0x10"}, "size", "invalid_value"),
        ({"size": "١٠٢٤x١٠٢٤"}, "size", "invalid_value"),
        ({"size": 1024}, "size", "invalid_type"),
        ({"response_format": "png"}, "response_format", "invalid_value"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_image_request(b"{}")
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"prompt":', b"\xff", b"[" * 1000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_image_request(body)


def test_the_chat_turn_has_prefix_prompt_and_size() -> None:
    chat = as_chat(decoded(model="m", size="512x256"), "Draw exactly: ")
    assert chat.model == "m"
    assert not chat.stream
    [message] = chat.messages
    assert message.role == "user"
    assert message.text == "Draw exactly: an otter\nThe picture's size: 512x256 pixels."
    assert as_chat(decoded(), "").messages[0].text == "an otter"


# the answer


def test_answer_has_reply_and_a_prompt_for_each_picture() -> None:
    body = images_body(1700000000, [Picture("p", url=A), Picture("q", data=PNG)], "said")
    assert json.loads(body) == {
        "created": 1700000000,
        "data": [
            {"url": A, "revised_prompt": "p"},
            {"b64_json": base64.b64encode(PNG).decode(), "revised_prompt": "q"},
        ],
        "reply": "said",
    }


def test_a_refusal_is_the_requests_fault_and_silence_the_upstreams() -> None:
    error = refused("No.", blocked=False)
    assert (error.message, error.status) == ("the model made no picture: No.", 400)
    assert refused("", blocked=False).status == 502
    error = failed(RateLimited("busy", retry_after=7, headers={"x-a": "b"}))
    assert (error.status, error.type, error.code) == (
        429,
        "rate_limit_error",
        "image_generate_fail",
    )
    assert (error.retry_after, error.headers) == (7, {"x-a": "b"})


# the routes


@pytest.mark.parametrize("path", images.PATHS)
def test_every_path_draws(path: str) -> None:
    with served(Painter(drawn(A, prompt="a sleek otter"))) as url:
        answer = post(url, path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["data"] == [{"url": A, "revised_prompt": "a sleek otter"}]
    assert abs(body["created"] - time.time()) < 60
    assert body["reply"] == f"\n![image]({A})\nHere is it."


def test_the_official_client_gets_url_and_bytes() -> None:
    with served(Painter(drawn(A), drawn(A))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20)
        by_url = client.images.generate(prompt="an otter", model="painter")
        by_bytes = client.images.generate(
            prompt="an otter", model="painter", response_format="b64_json", size="1024x1024"
        )
    assert by_url.data
    assert by_url.data[0].url == A
    assert by_bytes.data
    assert base64.b64decode(by_bytes.data[0].b64_json or "") == PNG


def test_without_a_prompt_of_the_upstream_the_whole_text_is_the_revised_prompt() -> None:
    code: list[Event] = [CodeBlock('{"prompt":"otter"}', first=True, language="json")]
    with served(Painter([code, *drawn(A)])) as url:
        body = post(url).json()
    assert body["data"][0]["revised_prompt"] == body["reply"]
    assert body["reply"].startswith('\n```json\n{"prompt":"otter"}\n```\n')


def test_the_operators_prefix_goes_before_the_prompt_and_the_caller_is_known() -> None:
    painter = Painter(drawn(A))
    with served(painter, dalle_prompt_prefix="Draw: ") as url:
        post(url, json={"size": "512x512"})
    [(image, chat, caller)] = painter.asked
    assert chat.messages[0].text.startswith("Draw: an otter\n")
    assert image.size == "512x512"
    assert caller.key_name == "test"


def test_bot_mode_and_the_header_shape_the_reply() -> None:
    bot = BotMode(enabled=True, enabled_plain_image_url_output=True)
    with served(Painter(drawn(A), drawn(A), drawn(A)), bot_mode=bot) as url:
        assert post(url).json()["reply"] == f"{A}\nHere is it."
        header = {"X-Output-Profile": "bot+markdown_image"}
        assert post(url, headers=header).json()["reply"] == f"\n![image]({A})\nHere is it."
        wrong = post(url, headers={"X-Output-Profile": "robot"})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "X-Output-Profile"


def test_n_pictures_are_drawn_in_turns() -> None:
    painter = Painter(drawn(A, text="one"), drawn(B, text="two"), drawn(A, text="never"))
    with served(painter) as url:
        body = post(url, json={"n": 2}).json()
    assert [picture["url"] for picture in body["data"]] == [A, B]
    assert [image.n for image, _, _ in painter.asked] == [2, 1]
    assert "one\n" in body["reply"]
    assert body["reply"].endswith("two")


def test_a_turn_that_gives_several_pictures_spares_turns_and_loses_none() -> None:
    painter = Painter(drawn(A, B), drawn(A))
    with served(painter) as url:
        assert len(post(url).json()["data"]) == 2
    painter = Painter(drawn(A, B), drawn(A))
    with served(painter) as url:
        assert len(post(url, json={"n": 2}).json()["data"]) == 2
    assert len(painter.asked) == 1


@pytest.mark.parametrize(
    "second",
    [
        [RateLimited("busy")],
        [[Text("I cannot draw that.")], [Finish("stop")]],
        [[Text("Wai")], ProtocolError("it broke")],
    ],
)
def test_pictures_made_before_a_failure_are_the_answer(second: Turn) -> None:
    painter = Painter(drawn(A), second, drawn(B))
    with served(painter) as url:
        answer = post(url, json={"n": 3})
    assert answer.status_code == 200
    assert [picture["url"] for picture in answer.json()["data"]] == [A]
    assert len(painter.asked) == 2


def test_a_picture_whose_turn_breaks_off_is_kept() -> None:
    with served(Painter([[Image(A)], [Text("Here")], ProtocolError("it broke")])) as url:
        answer = post(url)
    assert answer.status_code == 200
    assert answer.json()["data"][0]["url"] == A


def test_a_picture_in_markdown_counts_also_in_bot_mode() -> None:
    def turn() -> Turn:
        return [[Text("Here: ![a cat](https://up.example/"), Text("c.png)")], [Finish("stop")]]

    with served(Painter(turn(), turn()), bot_mode=BotMode(enabled=True)) as url:
        body = post(url).json()
    assert body["data"][0]["url"] == "https://up.example/c.png"
    assert body["reply"] == "Here: \nhttps://up.example/c.png"


@pytest.mark.parametrize(
    "turn",
    [
        [[Finish("content_filter")]],
        [[Text("I may not.")], [Finish("content_filter")]],
        [[Image(A)], [Text("Here is it.")], [Finish("content_filter")]],
        [UpstreamRefused("no", upstream_status=400, status=400, code="content_policy_violation")],
        [UpstreamRefused("no", upstream_status=400, status=400, code="moderation_blocked")],
        [[Text("Hm")], UpstreamError("no", code="content_filter")],
    ],
)
def test_a_picture_blocked_by_moderation_is_a_400_with_the_code_that_says_so(turn: Turn) -> None:
    with served(Painter(turn)) as url:
        answer = post(url)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "content_policy_violation"
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_of_several_pictures_the_blocked_one_is_left_out() -> None:
    blocked: Turn = [[Image(B)], [Finish("content_filter")]]
    with served(Painter(drawn(A), blocked)) as url:
        answer = post(url, json={"n": 2})
    assert [picture["url"] for picture in answer.json()["data"]] == [A]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("# Sorry!\n\n**I cannot** draw `that`.\n", "Sorry! I cannot draw that."),
        ("A causeway is a road. " + "It goes on and on. " * 1000, "A causeway is a road. It goes"),
        ("画" * 30 + "。" + "不" * 9000, "画" * 30 + "。"),
        ("word " * 4000, "word word "),
    ],
)
def test_a_long_answer_instead_of_a_picture_is_one_short_line(words: str, told: str) -> None:
    with served(Painter([[Text(words)], [Finish("stop")]])) as url:
        answer = post(url)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"].removeprefix("the model made no picture: ")
    assert message.startswith(told)
    assert len(message) <= 200
    assert "\n" not in message
    assert message[-1] in ".。…"


def test_a_refusal_is_a_400_in_the_models_own_words() -> None:
    with served(Painter([[Text("I cannot draw that.")], [Finish("stop")]])) as url:
        answer = post(url)
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": "the model made no picture: I cannot draw that.",
            "type": "invalid_request_error",
            "param": "",
            "code": "image_generate_fail",
        }
    }


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (RateLimited("the upstream is busy", retry_after=7), 429, "image_generate_fail", ""),
        (UpstreamError("it failed"), 502, "image_generate_fail", ""),
        (ProtocolError("it stopped"), 502, "image_generate_fail", ""),
        (ModelNotFound("no such model", param="model"), 404, "model_not_found", "model"),
        (InvalidRequest("too big", param="prompt"), 400, "invalid_value", "prompt"),
        (ZeroDivisionError("secret"), 500, "internal_error", None),
    ],
)
def test_a_failure_has_its_own_status(
    error: Exception, status: int, code: str, param: str | None
) -> None:
    with served(Painter([SILENCE, error])) as url:
        answer = post(url)
    assert answer.status_code == status
    said = answer.json()["error"]
    assert (said["code"], said["param"]) == (code, param)
    assert "secret" not in said["message"]
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_an_answer_without_its_end_or_without_anything_is_a_bad_gateway() -> None:
    with served(Painter([[Text("I am draw")]], [[Finish("stop")]])) as url:
        statuses = [post(url).status_code, post(url).status_code]
    assert statuses == [502, 502]


def test_bytes_that_cannot_be_had_are_a_bad_gateway() -> None:
    with served(Painter(drawn(B))) as url:
        answer = post(url, json={"response_format": "b64_json"})
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the picture could not be read"


def test_nobody_draws_without_a_key_or_without_a_prompt() -> None:
    painter = Painter()
    with served(painter) as url:
        assert post(url, headers={"Authorization": "Bearer sk-wrong"}).status_code == 401
        assert post(url, json={"prompt": ""}).status_code == 400
        assert requests.get(f"{url}/v1/images/generations", timeout=20).status_code == 405
    assert painter.asked == []


# a picture that takes its time

IMPATIENT = {"commit_window": 0.2, "keepalive_interval": 0.2}


def opened(url: str) -> socket.socket:
    """A connection over which a picture has been asked for."""
    body = b'{"prompt":"an otter","model":"painter"}'
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10)
    connection.sendall(head.encode() + body)
    return connection


def test_no_byte_is_sent_before_the_picture_is_there() -> None:
    with (
        served(Painter([1.5, *drawn(A)]), server=IMPATIENT) as url,
        opened(url) as connection,
    ):
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RateLimited("busy"), 429),
        (UpstreamError("it failed"), 502),
        (UpstreamRefused("no", upstream_status=400, status=400), 400),
        (ZeroDivisionError("secret"), 500),
    ],
)
def test_a_refusal_after_a_long_wait_has_its_own_status(error: Exception, status: int) -> None:
    with served(Painter([0.8, error]), server=IMPATIENT) as url:
        answer = post(url)
    assert answer.status_code == status
    said = answer.json()["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert "secret" not in said["message"]


def test_there_is_a_limit_to_patience() -> None:
    painter = Painter([5.0, *drawn(A)])
    with served(painter, server={"total_timeout": 0.3}) as url:
        answer = post(url)
    assert answer.status_code == 503
    assert "time limit" in answer.json()["error"]["message"]
    assert painter.closed.is_set()


def test_a_client_that_leaves_frees_the_upstream() -> None:
    painter = Painter([10.0, *drawn(A)])
    with served(painter, server=IMPATIENT) as url:
        with opened(url):
            deadline = time.monotonic() + 10
            while not painter.asked:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.5)
        assert painter.closed.wait(2)


# through a real provider to an upstream on a socket


class CustomSource:
    """Turns of one OpenAI-compatible upstream, as the gateway would run them."""

    def __init__(self, base_url: str) -> None:
        upstream = Upstream("up", base_url, models=("*",))
        self._provider = Custom([upstream], transport.Transport())

    def pictures(self, image: ImageRequest, chat: ChatRequest, context: Context) -> Events:
        route = self._provider.catch_all(image.model)
        assert route is not None
        return self._provider.stream(chat, route, context.caller.credential or Credential())


@pytest.fixture
def chat_upstream(upstream: OpenAICompat) -> Iterator[tuple[str, OpenAICompat]]:
    with served(CustomSource(upstream.base_url)) as url:
        yield url, upstream


def test_a_chat_upstream_draws_with_one_user_message(
    chat_upstream: tuple[str, OpenAICompat],
) -> None:
    url, upstream = chat_upstream
    prompt = "#echo ![cat](https://up.example/c.png)"
    answer = post(url, json={"prompt": prompt, "size": "256x256"})
    assert answer.json()["data"][0]["url"] == "https://up.example/c.png"
    [call] = upstream.calls
    assert call.request.json() == {
        "model": "painter",
        "messages": [{"role": "user", "content": f"{prompt}\nThe picture's size: 256x256 pixels."}],
    }


@pytest.mark.parametrize(
    ("marker", "status"),
    [("#429", 429), ("#500", 502), ("#cut", 502), ("#empty", 502), ("#refusal", 400), ("", 400)],
)
def test_what_an_upstream_says_instead_of_a_picture(
    chat_upstream: tuple[str, OpenAICompat], marker: str, status: int
) -> None:
    url, _ = chat_upstream
    answer = post(url, json={"prompt": f"{marker} an otter"})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == "image_generate_fail"
    assert answer.json()["error"]["message"]
