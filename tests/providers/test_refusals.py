"""An upstream's error as our caller sees it: right status, clear words, no channel banned."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import GatewayError
from services.core.models import Credential, Secret
from services.providers.refusals import error_in_answer, not_an_answer, refusal, retry_after

TOKEN = "sk-canary7f3e-0123456789"
OPERATORS = Credential(Secret(TOKEN))
CALLERS = Credential(Secret(TOKEN), from_caller=True)
BAN_WORDS = [
    "Your credit balance is too low",
    "insufficient balance",
    "Permission denied: no access",
    "This organization has been disabled.",
    "your access was terminated",
    "in violation of our policies",
    "API key expired",
    "该令牌已欠费",
    "You exceeded your current quota",
    "The security token included in the request is invalid",
    "Operation not allowed",
    "Your account is not authorized",
]
BAN_TYPES = {"insufficient_quota", "authentication_error", "permission_error", "forbidden"}
BAN_CODES = {"invalid_api_key", "account_deactivated", "billing_not_active"}


def body(message: Any, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, **fields}}).encode()


def bans(error: GatewayError) -> bool:
    """Whether one-api or new-api would disable a channel for this."""
    said = error.message.lower()
    return (
        error.status == 401
        or error.type in BAN_TYPES
        or error.code in BAN_CODES
        or any(words.lower() in said for words in [*BAN_WORDS, "credit", "balance"])
    )


@pytest.mark.parametrize(
    ("status", "operators", "callers"),
    [
        (400, 400, 400),
        (401, 503, 401),
        (402, 503, 402),
        (403, 503, 403),
        (404, 404, 404),
        (408, 503, 503),
        (409, 409, 409),
        (413, 413, 413),
        (415, 415, 415),
        (418, 502, 418),
        (422, 422, 422),
        (429, 429, 429),
        (451, 502, 451),
        (500, 502, 502),
        (501, 502, 502),
        (502, 502, 502),
        (503, 503, 503),
        (504, 503, 503),
        (520, 502, 502),
        (524, 503, 503),
        (529, 503, 503),
    ],
)
def test_status_says_whose_fault_it_is(status: int, operators: int, callers: int) -> None:
    seen = [refusal(status, {}, b"", credential).status for credential in (OPERATORS, CALLERS)]
    assert seen == [operators, callers]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500, 503, 504])
@pytest.mark.parametrize("words", BAN_WORDS)
def test_fault_of_the_operators_account_bans_no_channel(status: int, words: str) -> None:
    for kind in BAN_TYPES:
        for code in BAN_CODES:
            said = body(words, type=kind, code=code)
            error = refusal(status, {}, said, OPERATORS)
            assert not bans(error), vars(error)
            assert error.message
    hidden = error_in_answer(json.loads(body(words, type="x", code="invalid_api_key")), OPERATORS)
    assert hidden is not None
    assert not bans(hidden)


def test_harmless_words_of_an_upstream_are_kept() -> None:
    code = "context_length_exceeded"
    said = body("messages[0] is too long", type="t", code=code, param="messages")
    error = refusal(400, {}, said, OPERATORS)
    assert (error.message, error.type) == ("messages[0] is too long", "t")
    assert (error.code, error.param) == (code, "messages")


def test_callers_own_trouble_is_told_as_it_is() -> None:
    said = body("You exceeded your current quota", type="insufficient_quota", code="x")
    error = refusal(429, {"retry-after": "3"}, said, CALLERS)
    assert (error.message, error.type) == ("You exceeded your current quota", "insufficient_quota")
    assert error.retry_after == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (body("plain"), "plain"),
        (body(5), "5"),
        (b'{"error":"a text"}', "a text"),
        (b'{"detail":"not found"}', "not found"),
        (b'{"detail":{"message":"deep"}}', "deep"),
        (b'{"message":"at the top"}', "at the top"),
        (b'{"error":{"msg":"msg"}}', "msg"),
        (b'{"error_msg":"from afar"}', "from afar"),
        (b'"json text"', "json text"),
        (b"plain text", "plain text"),
        (b"two\nlines", "the upstream answered 400"),
        (b"", "the upstream answered 400"),
        (b"{}", "the upstream answered 400"),
        (b"[]", "the upstream answered 400"),
        (b"null", "the upstream answered 400"),
        (b'{"error":null}', "the upstream answered 400"),
        (b"<!DOCTYPE html><p>no</p>", "the upstream answered 400"),
        (b"\xff\xfe\x00", "the upstream answered 400"),
        (body("<html><body>502</body></html>"), "the upstream answered 400"),
        (b'{"error":"<!doctype html>"}', "the upstream answered 400"),
        (b'{"error":"lone \\ud800"}', None),
        (b"[" * 100_000, None),
        (body(" many \n blanks\t"), "many blanks"),
    ],
)
def test_message_is_found_in_any_shape_and_is_never_a_page(
    answer: bytes, message: str | None
) -> None:
    error = refusal(400, {}, answer, OPERATORS)
    assert error.message
    assert "<" not in error.message
    assert message is None or error.message == message


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: json.dumps([t]).encode()))
def test_no_body_is_too_odd(answer: bytes) -> None:
    for status in (400, 401, 429, 500):
        error = refusal(status, {}, answer, OPERATORS)
        assert error.message
        assert len(error.message) <= 1000


@pytest.mark.parametrize("place", range(970, 1010, 3))
def test_not_even_half_of_the_token_is_quoted(place: int) -> None:
    for said in (body("x" * place + TOKEN), b"x" * place + TOKEN.encode()):
        for credential in (OPERATORS, CALLERS):
            error = refusal(400, {}, said, credential)
            assert "sk-" not in error.message
        hidden = error_in_answer({"error": said.decode()}, OPERATORS)
        assert hidden is not None
        assert "sk-" not in hidden.message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1e9"}, 86400),
        ({"retry-after": "inf"}, 86400),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after": "Mon, 1 Jan 2026 00:00:00 +99999999999999999999"}, None),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0),
    ],
)
def test_retry_after_is_seconds_or_nothing(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_takes_a_date_whatever_its_zone() -> None:
    for usegmt in (True, False):
        date = email.utils.formatdate(time.time() + 100, usegmt=usegmt)
        assert retry_after({"retry-after": date}) == pytest.approx(100, abs=5)


@given(st.text())
def test_no_retry_after_is_too_odd(text: str) -> None:
    seconds = retry_after({"retry-after": text, "retry-after-ms": text})
    assert seconds is None or 0 <= seconds <= 86400


def test_answer_without_an_error_has_none() -> None:
    nothing: list[Any] = [None, False, "", {}, []]
    for value in nothing:
        assert error_in_answer({"error": value}, OPERATORS) is None


def test_page_is_named_by_its_type_only() -> None:
    error = not_an_answer("text/html; charset=utf-8; " + "x" * 500)
    assert error.message == "the upstream answered with text/html instead of an answer"
    assert not_an_answer("").message.count("no content type") == 1
