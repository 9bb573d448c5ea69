"""How upstream trouble reaches a caller: as what it is, at once, and never as a normal answer."""

from __future__ import annotations

import logging
import time
from base64 import b64encode
from typing import Any

import pytest

from emulators.backend_api import BackendApi as Upstream
from services.core.errors import (
    ProtocolError,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.core.events import SILENCE, Text
from services.core.models import Credential, Secret
from services.core.requests import ChatRequest, Message, file_part
from services.providers.backend_api import BackendApiSettings
from services.providers.backend_api.calls import error_in_stream, error_of
from services.transport import Timeouts, Transport

from .support import STOP, Stage, joined, message, wait_for

MINE = Credential(Secret("callers-canary7f3e-token"), from_caller=True)
OPERATORS = Credential(Secret("operators-canary7f3e-token"))
HELLO = [Text("Hello")]


@pytest.mark.parametrize(
    ("scene", "status", "code"),
    [
        ("token_expired_401", 401, "token_expired"),
        ("cap_429", 429, "model_cap_exceeded"),
        ("string_429", 429, "rate_limit_exceeded"),
        ("html_403", 403, "upstream_error"),
        ("account_deactivated", 403, "account_deactivated"),
        ("not_found_404", 404, "conversation_not_found"),
        ("error_500", 502, "upstream_error"),
        ("error_502", 502, "upstream_error"),
        ("json_error_200", 429, "model_cap_exceeded"),
        ("error_event", 502, "upstream_error"),
        ("empty", 502, "empty_answer"),
        ("cut_at_start", 502, "upstream_protocol_error"),
    ],
)
def test_refusal_is_an_http_status_before_any_word(
    stage: Stage, scene: str, status: int, code: str
) -> None:
    told, failure = stage.failure(f"#{scene}")
    assert told == []
    assert (failure.status, failure.code) == (status, code)
    assert "<" not in failure.message


def test_exhausted_model_says_when_to_come_back(stage: Stage) -> None:
    _, failure = stage.failure("#cap_429[clears_in=99]")
    assert isinstance(failure, RateLimited)
    assert failure.retry_after == 99
    assert "too many messages" in failure.message


def test_expired_token_can_be_told_from_other_refusals(stage: Stage) -> None:
    stage.upstream.revoke("alice")
    _, failure = stage.failure("Hi")
    assert isinstance(failure, UpstreamRefused)
    assert (failure.upstream_status, failure.status) == (401, 401)


@pytest.mark.parametrize("scene", ["token_expired_401", "account_deactivated", "html_403"])
def test_fault_of_the_operators_account_is_told_neutrally(stage: Stage, scene: str) -> None:
    token = Secret(stage.upstream.accounts["alice"].access_token)
    provider = stage.provider(BackendApiSettings(access_token=token, calls_per_minute=0))
    _, failure = stage.failure(f"#{scene}", provider=provider)
    assert isinstance(failure, UpstreamRefused)
    assert (failure.status, failure.code) == (503, "unavailable")
    assert failure.upstream_status == (401 if scene == "token_expired_401" else 403)
    assert "deactivated" not in failure.message


@pytest.mark.parametrize(
    "scene", ["cut_event", "cut_no_done", "reset_in_stream", "error_after_text"]
)
def test_broken_stream_is_an_error_after_its_text(stage: Stage, scene: str) -> None:
    told, failure = stage.failure(f"#{scene}")
    assert told == HELLO
    assert isinstance(failure, UpstreamError)


def test_stream_cut_inside_a_character(stage: Stage) -> None:
    told, failure = stage.failure("#cut_utf8")
    assert told == [Text("你好")]
    assert isinstance(failure, ProtocolError)


@pytest.mark.parametrize("text", ["f(x) = 1 (", "Sky【5†sou", "Get [f](sandbox:/mnt/a"])
def test_held_back_text_is_released_before_the_failure(stage: Stage, text: str) -> None:
    stage.says(message(text), end="")
    told, failure = stage.failure("")
    assert told == [Text(text)]
    assert isinstance(failure, ProtocolError)


def test_finished_message_without_end_mark_is_an_error(stage: Stage) -> None:
    stage.says(message("Hello", status="finished_successfully", end_turn=True), end="")
    told, failure = stage.failure("")
    assert told == HELLO
    assert isinstance(failure, ProtocolError)


def test_end_mark_without_blank_line_is_an_end(stage: Stage) -> None:
    stage.says(message("Hello"), end="data: [DONE]")
    assert stage.events("") == [*HELLO, STOP]


def test_thinking_alone_is_no_answer(stage: Stage) -> None:
    stage.says(message("Hm", role="tool", name="a8km123"))
    _, failure = stage.failure("")
    assert failure.code == "empty_answer"


@pytest.mark.parametrize("event", ['{"message": {"id": "m1", ', "{", '{"message": "\\x"}'])
def test_broken_json_is_an_error(stage: Stage, event: str) -> None:
    stage.says(message("Hello"), event)
    told, failure = stage.failure("")
    assert told == HELLO
    assert isinstance(failure, ProtocolError)


def test_answer_of_unknown_shape_is_an_error_not_a_loss(stage: Stage) -> None:
    stage.says(message("Hello"), message("Hello you", status=7))
    told, failure = stage.failure("")
    assert told == HELLO
    assert isinstance(failure, ProtocolError)


def test_upstream_that_is_not_there(stage: Stage) -> None:
    with Upstream() as gone:
        url = gone.url
    _, failure = stage.failure("Hi", provider=stage.provider(upstream_base_url=url))
    assert isinstance(failure, UpstreamUnreachable)


def test_silence_gives_empty_batches_and_goes_on(stage: Stage) -> None:
    batches = stage.ask("#silence[seconds=2.5]")
    assert batches.count(SILENCE) >= 2
    told = [e for batch in batches for e in batch if isinstance(e, Text)]
    assert joined(told) == [Text("Hello world!")]


def test_slow_headers_give_empty_batches(stage: Stage) -> None:
    stage.upstream.script({"scenario": "plain", "headers_delay": 2.2})
    batches = stage.ask("")
    assert batches[:2] == [SILENCE, SILENCE]
    assert batches[-1][-1] == STOP


def test_login_page_instead_of_an_answer(stage: Stage) -> None:
    stage.upstream.script({"endpoint": "conversation", "answer": "html", "status": 200})
    _, failure = stage.failure("Hi")
    assert isinstance(failure, ProtocolError)
    assert "text/html" in failure.message


def test_client_that_leaves_frees_the_upstream(stage: Stage) -> None:
    provider = stage.provider()
    route = provider.route("gpt-4-s")
    assert route is not None
    request = ChatRequest("gpt-4-s", (Message("user", "#silence[seconds=8]"),))
    events = provider.stream(request, route, stage.credential())
    next(batch for batch in events if batch)
    events.close()  # type: ignore[attr-defined]  # it is a generator
    [call] = stage.upstream.calls("conversation")
    assert wait_for(lambda: call.exchange.aborted_at is not None, 2.0)


def test_tokens_are_in_no_log_and_no_error(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stage.events("#dalle_403")
    _, failure = stage.failure("#token_expired_401")
    token = stage.upstream.accounts["alice"].access_token
    assert token not in caplog.text
    assert token not in f"{failure!r} {failure.message} {stage.credential()!r}"


def test_calls_of_a_minute_are_bounded(stage: Stage) -> None:
    own = BackendApiSettings(calls_per_minute=2, queue_patience=0.2)
    provider = stage.provider(own)
    for _ in range(2):
        stage.events("Hi", provider=provider)
    _, failure = stage.failure("Hi", provider=provider)
    assert isinstance(failure, RateLimited)
    assert failure.retry_after is not None
    assert 0 < failure.retry_after <= 60
    assert stage.events("Hi", provider=provider, credential=stage.credential("bob"))[-1] == STOP


def test_calls_about_files_are_counted_apart_and_wait_for_their_minute(stage: Stage) -> None:
    provider = stage.provider(BackendApiSettings(calls_per_minute=2, queue_patience=0.2))
    files = [file_part(b64encode(text).decode()) for text in (b"one", b"two", b"three")]
    for said in (files, "#dalle"):  # six and one of eight calls about files
        stage.events(said, provider=provider)
    _, failure = stage.failure("Hi", provider=provider)
    assert isinstance(failure, RateLimited)
    route = provider.route("gpt-4-s")
    assert route is not None
    more = (file_part(b64encode(text).decode()) for text in (b"four", b"five"))
    request = ChatRequest("gpt-4-s", (Message("user", tuple(more)),))
    events = provider.stream(request, route, stage.credential())
    waited = [next(events) for _ in range(6)]  # it says so each second, instead of failing
    assert waited == [SILENCE] * 6
    assert len(stage.upstream.calls("file_create")) == 4
    events.close()  # type: ignore[attr-defined]  # a generator


def test_upstreams_own_timeout_is_a_timeout(stage: Stage) -> None:
    stage.upstream.script({"endpoint": "file_create", "status": 504})
    _, failure = stage.failure([file_part("aGk=", name="a.txt")])
    assert isinstance(failure, UpstreamTimeout)


@pytest.mark.parametrize(
    ("status", "body", "credential", "expected"),
    [
        (418, b'{"detail":{"code":"account_deactivated","message":"gone"}}', MINE, (403, "gone")),
        (
            418,
            b'{"detail":{"code":"account_deactivated","message":"gone"}}',
            OPERATORS,
            (503, "this model's upstream account cannot serve requests now"),
        ),
        (
            429,
            b'{"detail":"Only one message at a time."}',
            MINE,
            (429, "Only one message at a time."),
        ),
        (403, b"<html>blocked</html>", MINE, (403, "the upstream answered 403")),
        (422, b'{"detail":[{"loc":["body"],"msg":"bad"}]}', MINE, (422, None)),
        (500, b'{"detail":{"message":"your account has no credit"}}', OPERATORS, (502, None)),
        (429, b'{"detail":{"message":"no credit","code":"credit"}}', OPERATORS, (429, None)),
        (200, b'{"detail":{"message":"no credit","code":"credit"}}', OPERATORS, (502, None)),
        (200, b'{"detail":{"message":"odd"}}', MINE, (502, "odd")),
        (302, b"", MINE, (502, None)),
        (429, b'{"detail":{"clears_in":"soon"}}', MINE, (429, None)),
    ],
)
def test_meaning_of_error_bodies(
    status: int, body: bytes, credential: Credential, expected: tuple[int, str | None]
) -> None:
    failure = error_of(status, {}, body, credential)
    assert failure.status == expected[0]
    assert expected[1] is None or failure.message == expected[1]
    assert "<" not in failure.message
    if credential is OPERATORS:
        assert "credit" not in f"{failure.message} {failure.code}"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("Something went wrong.", 502),
        ({"code": "model_cap_exceeded", "message": "later", "clears_in": 5}, 429),
        ({"code": "account_deactivated", "message": "gone"}, 403),
        ([{"msg": "odd"}], 502),
        (True, 502),
    ],
)
def test_meaning_of_errors_within_a_stream(error: Any, status: int) -> None:
    assert error_in_stream(error, MINE).status == status


def test_idle_limit_ends_a_dead_socket(stage: Stage) -> None:
    stage.upstream.script({"scenario": "silence", "transport": "socket_flat", "seconds": 9})
    began = time.monotonic()
    provider = stage.provider(wires=Transport(Timeouts(idle=1.0)))
    told, failure = stage.failure("", provider=provider)
    assert told == HELLO
    assert isinstance(failure, UpstreamTimeout)
    assert time.monotonic() - began < 5
