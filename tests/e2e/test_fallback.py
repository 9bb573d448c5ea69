"""Models that stand in for others: before the first word, and never after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from emulators.openai_compat import OpenAICompat
from tests.canaries import UPSTREAM_KEY
from tests.gateway import KEY, GatewayProcess, custom, free_port, question

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
                "aliases": {"lonely": "gone/c", "nice": "second/emu-small"},
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


def who_served(answer: Any) -> dict[str, str]:
    """What the answer's headers say of that."""
    begin = "x-causeway-"
    names = {name.lower(): value for name, value in answer.headers.items()}
    return {n.removeprefix(begin): value for n, value in names.items() if n.startswith(begin)}


@pytest.mark.parametrize("stream", [False, True])
def test_answer_says_which_model_served_it_and_for_whom_it_stood_in(
    process: GatewayProcess, stream: bool
) -> None:
    asked_for = process.post(question("hi", "second/emu-small", stream=stream))
    assert who_served(asked_for) == {"model": "second/emu-small", "provider": "custom"}
    by_another_name = process.post(question("hi", "nice", stream=stream))
    assert who_served(by_another_name) == who_served(asked_for)
    stood_in = process.post(question("hi", "first/emu#500", stream=stream))
    assert who_served(stood_in) == {**who_served(asked_for), "fallback": "first/emu#500"}
    failed = process.post(question("hi", "gone/a", stream=stream))
    assert who_served(failed) == {}


def test_picture_says_which_model_served_it(process: GatewayProcess) -> None:
    body = {"model": "first/emu#500", "prompt": "#echo ![a](http://pictures.example/a.png)"}
    answer = process.post(body, "/v1/images/generations")
    assert answer.status_code == 200, answer.text
    told = {"model": "second/emu-small", "provider": "custom", "fallback": "first/emu#500"}
    assert who_served(answer) == told


def test_name_that_no_header_can_hold_is_told_in_percent_signs(process: GatewayProcess) -> None:
    answer = process.post(question("hi", "second/绘 画"))
    assert who_served(answer)["model"] == "second/%E7%BB%98%20%E7%94%BB"


def test_stream_that_begins_late_says_who_serves_it_only_if_nobody_else_may(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    settings = custom(upstream.base_url) | {
        "server": {"commit_window": 1, "keepalive_interval": 1},
        "models": {"fallbacks": {"up/one#slow-headers:4": ["up/other"]}},
    }
    with GatewayProcess(tmp_path, settings) as late:
        with_another = late.post(question("hi", "up/one#slow-headers:4", stream=True))
        alone = late.post(question("hi", "up/two#slow-headers:4", stream=True))
        assert (with_another.status_code, alone.status_code) == (200, 200)
        assert who_served(with_another) == {}
        assert who_served(alone) == {"model": "up/two#slow-headers:4", "provider": "custom"}


def test_operator_can_have_nothing_said_about_who_served(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    settings = custom(upstream.base_url) | {"server": {"answer_headers": False}}
    with GatewayProcess(tmp_path, settings) as silent:
        answer = silent.post(question("hi"))
        assert (answer.status_code, who_served(answer)) == (200, {})
