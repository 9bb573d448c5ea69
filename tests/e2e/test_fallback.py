"""Models that stand in for others: before the first word, and never after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from emulators.openai_compat import OpenAICompat
from tests.canaries import UPSTREAM_KEY
from tests.gateway import KEY, GatewayProcess, free_port, question

GONE = free_port()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with OpenAICompat() as upstream:
        named = [("first", upstream.url), ("second", upstream.url), ("gone", nobody())]
        entries = [
            {"prefix": prefix, "base_url": f"{url}/v1", "api_key": UPSTREAM_KEY}
            for prefix, url in named
        ]
        fallbacks = {
            "first/m": ["gone/m", "nobody/has-it", "second/emu-small"],
            "gone/a": ["gone/b"],
            "lonely": ["lonely"],
            "*": ["second/emu-small"],
        }
        settings = {
            "auth": {"keys": [KEY]},
            "providers": {"custom": entries},
            "models": {
                "fallbacks": fallbacks,
                "fallback_after": 1.0,
                "aliases": {"lonely": "gone/c"},
            },
        }
        with GatewayProcess(tmp_path_factory.mktemp("fallback"), settings) as running:
            yield running


def nobody() -> str:
    return f"http://127.0.0.1:{GONE}"


def asked(answer: Any) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("marker", ["#500", "#429", "#401", "#html502", "#error-200"])
def test_model_whose_upstream_fails_is_stood_in_for(
    process: GatewayProcess, marker: str, stream: bool
) -> None:
    # the marker in the model's name makes only the first upstream fail
    body = question("#echo hello", f"first/emu{marker}", stream=stream)
    answer = process.post(body)
    assert answer.status_code == 200, answer.text
    assert "hello" in answer.text
    assert f"first/emu{marker}" in answer.text, "the answer names the model that was asked for"


def test_several_stand_in_by_turns_and_unknown_ones_are_passed_over(
    process: GatewayProcess,
) -> None:
    client = process.client()
    answer = client.chat.completions.create(
        model="first/m#500", messages=[{"role": "user", "content": "#echo hello"}]
    )
    assert answer.choices[0].message.content == "hello"
    told = process.post(question("#500 x", "first/m"))
    assert told.status_code == 502
    assert "fallback unknown model=nobody/has-it" in process.log_text()


def test_upstream_that_does_not_begin_in_time_is_given_up(process: GatewayProcess) -> None:
    body = question("#echo hello", "first/slow#slow-headers:20")
    assert asked(process.post(body, timeout=15)) == "hello"


def test_the_last_one_may_take_its_time(process: GatewayProcess) -> None:
    body = question("#slow-headers:3 #echo hello", "gone/x")
    assert asked(process.post(body)) == "hello"


def test_begun_answer_is_not_begun_again_elsewhere(process: GatewayProcess) -> None:
    answer = process.post(question("hello", "first/emu#cut", stream=True))
    assert answer.status_code == 200
    assert "upstream_protocol_error" in answer.text
    assert "[DONE]" not in answer.text


def test_fault_of_the_request_is_told_at_once(process: GatewayProcess) -> None:
    with pytest.raises(openai.BadRequestError):
        process.client().chat.completions.create(
            model="first/emu#context", messages=[{"role": "user", "content": "hi"}]
        )


def test_when_all_fail_the_failure_of_the_model_asked_for_is_told(process: GatewayProcess) -> None:
    answer = process.post(question("hi", "gone/a"))
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_unreachable"


def test_model_does_not_stand_in_for_itself(process: GatewayProcess) -> None:
    assert process.post(question("hi", "lonely")).status_code == 502


def test_callers_own_credential_goes_nowhere_else(process: GatewayProcess) -> None:
    headers = {"X-Upstream-Authorization": "Bearer sk-of-the-callers-own-canary7f3e"}
    answer = process.post(question("hi", "gone/x"), headers=headers)
    assert answer.status_code == 502
