"""Faults of a pool's accounts: relays in front ban no channel for them, and try another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from tests.canaries import MARK
from tests.e2e.pools import RETRY_AFTER, WORDS, Pool, UpPool, WebPool, settings_for
from tests.e2e.relays import (
    Chunk,
    Whole,
    new_api_bans,
    new_api_retries,
    new_api_stream,
    one_api_bans,
    one_api_retries,
    one_api_stream,
    read_error,
)
from tests.gateway import KEY, GatewayProcess, question, wait_for

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
FAULTS = ["expired", "unpaid", "banned", "quota"]
REFRESH_FAULTS: dict[str, dict[str, Any]] = {
    "down": {"status": 500, "body": WORDS},
    "cut": {"answer": "cut"},
    "limited": {"status": 429, "body": {"error": WORDS}},
    "refused": {"answer": "400"},
}
LONGEST_GUESS = 3600
"""Seconds that a rest may last of which the upstream has said nothing."""


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pool]]:
    """A gateway of two workers and its pools, by kind."""
    with OpenAICompat() as up, BackendApi(seed=1) as web:
        settings = settings_for(up, web) | {"process_workers": 2}
        with GatewayProcess(tmp_path_factory.mktemp("pools"), settings) as process:
            yield {
                "custom": UpPool(process, up),
                "web": WebPool(process, web),
                "gone": Pool(process, "custom/gone", "gone/emu-small"),
            }


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebPool]:
    """A gateway of its own: a token that could not be had is not tried again for a while."""
    with (
        OpenAICompat() as up,
        BackendApi(seed=1) as upstream,
        GatewayProcess(tmp_path, settings_for(up, upstream)) as process,
    ):
        yield WebPool(process, upstream)


@pytest.fixture(params=["custom", "web"])
def pool(request: pytest.FixtureRequest, pools: dict[str, Pool]) -> Iterator[UpPool | WebPool]:
    """One of the two whose upstream is there, all accounts ready before."""
    chosen = pools[request.param]
    assert isinstance(chosen, UpPool | WebPool)
    chosen.make_well()
    chosen.each("reset")
    wait_for(lambda: chosen.states() == ["ready", "ready"], 10, "accounts that are ready")
    yield chosen
    chosen.make_well()
    chosen.each("reset")


def refused(answer: requests.Response, *statuses: int, after: float | None) -> None:
    """The answer makes relays ask elsewhere and ban nothing. It tells when to come back: within
    `after` seconds; None where nobody knows.
    """
    error = read_error(answer)
    assert answer.status_code in statuses, answer.text
    assert (error.type, error.code) in {
        ("rate_limit_error", "rate_limit_exceeded"),
        ("rate_limit_error", "model_cap_exceeded"),
        ("service_unavailable_error", "unavailable"),
        ("upstream_error", "upstream_unreachable"),
        ("upstream_error", "upstream_error"),
    }
    assert not one_api_bans(answer.status_code, error), error
    assert not new_api_bans(answer.status_code, error), error
    assert one_api_retries(answer.status_code)
    assert new_api_retries(answer.status_code)
    for word in ("account", "token", "deactivated", WORDS[:12]):
        assert word not in error.message.lower()
    if after is None:
        assert "Retry-After" not in answer.headers
    else:
        assert 0 < int(answer.headers["Retry-After"]) <= after


@STREAMED
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_every_account_is_tried_elsewhere_and_bans_nothing(
    pool: UpPool | WebPool, fault: str, stream: bool
) -> None:
    pool.spoil(fault)
    knows = fault == "quota"
    after = RETRY_AFTER if knows else LONGEST_GUESS
    answer = pool.ask(stream=stream)
    refused(answer, 429 if knows else 503, after=after)
    assert not knows or int(answer.headers["Retry-After"]) > RETRY_AFTER / 2


@STREAMED
@pytest.mark.parametrize("fault", FAULTS)
def test_accounts_that_rest_are_not_asked_and_are_no_reason_for_a_ban(
    pool: UpPool | WebPool, fault: str, stream: bool
) -> None:
    pool.spoil(fault)
    pool.ask()
    assert "ready" not in pool.states()
    asked = pool.asked()
    for _ in range(4):  # by either worker
        refused(pool.ask(stream=stream), 429, 503, after=LONGEST_GUESS)
    assert pool.asked() == asked
    pool.make_well()
    pool.each("reset")
    assert pool.ask(stream=stream).status_code == 200


@STREAMED
def test_accounts_disabled_by_hand_are_a_503(pool: UpPool | WebPool, stream: bool) -> None:
    pool.each("disable")
    asked = pool.asked()
    refused(pool.ask(stream=stream), 503, after=None)
    assert pool.asked() == asked


@STREAMED
def test_busy_accounts_are_a_429_until_one_is_free(pool: UpPool | WebPool, stream: bool) -> None:
    running = [pool.begin(pool.slow) for _ in range(4)]
    assert pool.states() == ["busy", "busy"]
    refused(pool.ask(stream=stream), 429, after=2)
    for lines in running:
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    wait_for(lambda: pool.ask(stream=stream).status_code == 200, 5, "a free account")


@STREAMED
def test_one_dead_key_among_living_ones_is_not_seen(pools: dict[str, Pool], stream: bool) -> None:
    pool = pools["custom"]
    pool.make_well()
    pool.each("reset")
    pool.spoil_one()
    is_unseen(pool, stream)
    pool.make_well()
    pool.each("reset")


@STREAMED
def test_one_dead_refresh_token_among_living_ones_is_not_seen(web: WebPool, stream: bool) -> None:
    assert web.ask().status_code == 200
    web.spoil_one()
    is_unseen(web, stream)


def is_unseen(pool: Pool, stream: bool) -> None:
    for _ in range(6):
        answer = pool.ask(stream=stream)
        assert answer.status_code == 200
        assert '"error"' not in answer.text
    assert pool.states() == ["expired", "ready"]


@STREAMED
@pytest.mark.parametrize("answer", REFRESH_FAULTS.values(), ids=REFRESH_FAULTS.keys())
def test_no_access_token_to_be_had_is_tried_elsewhere(
    web: WebPool, answer: dict[str, Any], stream: bool
) -> None:
    assert web.ask().status_code == 200
    web.spoil_the_refresh_endpoint(answer)
    for _ in range(3):
        refused(web.ask(stream=stream), 429, 503, after=LONGEST_GUESS)


@STREAMED
def test_upstream_that_is_overloaded_is_tried_elsewhere(
    pools: dict[str, Pool], stream: bool
) -> None:
    pool = pools["custom"]
    assert isinstance(pool, UpPool)
    pool.overload()
    refused(pool.ask(stream=stream), 503, after=RETRY_AFTER)
    assert pool.states() == ["ready", "ready"], "it is not the accounts' fault"


@STREAMED
def test_upstream_that_is_gone_is_tried_elsewhere(pools: dict[str, Pool], stream: bool) -> None:
    for _ in range(3):
        refused(pools["gone"].ask(stream=stream), 502, after=None)
    assert pools["gone"].states() == ["ready", "ready"], "it is not the accounts' fault"


def test_fault_in_mid_answer_reaches_people_and_bans_nothing(pool: UpPool | WebPool) -> None:
    pool.spoil_in_the_middle()
    relayed = one_api_stream(pool.ask(stream=True))
    [error] = relayed.errors
    assert error["code"] != "account_deactivated"
    assert error["type"] not in ("insufficient_quota", "permission_error")
    assert error["message"] in relayed.text
    assert WORDS[:12] not in relayed.text
    assert relayed.finishes == []


@pytest.mark.parametrize("said", ["hi", "Output only your specific model name."])
def test_relays_find_the_channel_in_order(pool: UpPool | WebPool, said: str) -> None:
    began = time.monotonic()
    answer = pool.ask(said, max_tokens=16)
    assert time.monotonic() - began < 5  # from then on they hold a channel for too slow
    assert answer.status_code == 200
    whole = msgspec.json.decode(answer.content, type=Whole)
    assert isinstance(whole.choices[0].message.content, str)
    assert whole.usage.total_tokens > 0


def test_usage_stands_in_the_last_line_alone(pool: UpPool | WebPool) -> None:
    answer = pool.ask(stream=True)
    relayed = new_api_stream(answer, True)
    assert relayed.usage is not None
    assert relayed.usage.total_tokens > 0
    assert relayed.finishes == ["stop"]
    *_, last, done = [line for line in answer.text.split("\n") if line]
    assert done == "data: [DONE]"
    assert msgspec.json.decode(last.removeprefix("data: "), type=Chunk).choices == []


def test_models_are_listed_whatever_their_accounts_can(pool: UpPool | WebPool) -> None:
    pool.each("disable")
    url, headers = f"{pool.process.url}/v1/models", {"Authorization": f"Bearer {KEY}"}
    answer = requests.get(url, headers=headers, timeout=10)
    assert answer.status_code == 200
    cards = answer.json()["data"]
    assert pool.model in [card["id"] for card in cards]
    assert {type(card["created"]) for card in cards} == {int}


def test_no_token_of_a_pool_is_told(pool: UpPool | WebPool) -> None:
    pool.spoil("expired")
    answer = pool.process.post(question("hi", pool.model))
    assert MARK not in answer.text + str(answer.headers) + str(pool.accounts())
