"""Failures of the backend-api upstream in every output profile, streamed and not: a profile
changes how an answer looks, never whether it failed, nor how a failure is told.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from emulators.backend_api import BackendApi
from emulators.backend_api_records import Account
from tests.e2e.symptoms.profiles import (
    WAYS,
    Failure,
    everywhere,
    fails_everywhere,
    failure_of,
    one,
    says_everywhere,
)
from tests.e2e.symptoms.support import (
    PNG,
    alice,
    ask,
    data_url,
    gateway,
    picture,
    settings_for,
)
from tests.fetch.servers import Server, answer
from tests.gateway import KEY, GatewayProcess, free_port

MEGABYTE = 1024 * 1024
LARGE = PNG + bytes(25 * MEGABYTE)
TRANSPORTS = ("sse", "socket_flat", "socket_nested")


@pytest.fixture(scope="module")
def upstream() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as web:
        yield web
    assert web.errors == []


@pytest.fixture
def web(upstream: BackendApi) -> BackendApi:
    """The upstream with an empty log."""
    with upstream.state.lock:
        upstream.state.calls.clear()
        upstream.state.counters.clear()
        upstream.state.scripts.clear()
    return upstream


@pytest.fixture(scope="module")
def pictures() -> Iterator[Server]:
    with Server(answer(PNG, "Content-Type: image/png")) as server:
        yield server


@pytest.fixture(scope="module")
def large_files() -> Iterator[Server]:
    with Server(answer(LARGE, "Content-Type: image/png")) as server:
        yield server


@pytest.fixture(scope="module")
def bridge(
    upstream: BackendApi,
    pictures: Server,
    large_files: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """Callers bring tokens of their own."""
    allowed = [f"127.0.0.1:{server.port}" for server in (pictures, large_files)]
    settings = settings_for(
        upstream,
        files={"fetch_allow": allowed},
        server={"commit_window": 20, "max_body_mb": 64, "idle_timeout": 20},
    )
    folder = tmp_path_factory.mktemp("bridge")
    with GatewayProcess(folder, settings) as process:
        (folder / "gpts.json").write_text('{"closed-gpt": {"id": "g-forbidden-club"}}')
        yield process


@pytest.fixture(scope="module")
def shop(
    upstream: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """The operator's account answers for all callers."""
    own = {"access_token": alice(upstream), "calls_per_minute": 0}
    with gateway(
        tmp_path_factory.mktemp("shop"), upstream, providers={"backend_api": own}
    ) as process:
        yield process


CAP = "You have sent too many messages to the model. Please try again later."
BUSY = "Only one message at a time. Please allow any other response to complete."
OFFENDED = Failure(
    503,
    "service_unavailable_error",
    "unavailable",
    "this model's upstream account cannot serve requests now",
)
"""Whatever is wrong with the operator's account is no caller's business."""
REFUSALS: dict[str, tuple[Failure, Failure | None]] = {
    "token_expired_401": (
        Failure(
            401,
            "invalid_request_error",
            "token_expired",
            "Could not parse your authentication token. Please try signing in again.",
        ),
        OFFENDED,
    ),
    "cap_429": (Failure(429, "rate_limit_error", "model_cap_exceeded", CAP), None),
    "string_429": (Failure(429, "rate_limit_error", "rate_limit_exceeded", BUSY), None),
    "html_403": (
        Failure(403, "invalid_request_error", "upstream_error", "the upstream answered 403"),
        OFFENDED,
    ),
    "account_deactivated": (
        Failure(
            403,
            "invalid_request_error",
            "account_deactivated",
            "Your account has been deactivated.",
        ),
        OFFENDED,
    ),
    "not_found_404": (
        Failure(404, "invalid_request_error", "conversation_not_found", "Conversation not found."),
        None,
    ),
    "error_500": (
        Failure(502, "upstream_error", "upstream_error", "Internal Server Error"),
        None,
    ),
    "error_502": (
        Failure(502, "upstream_error", "upstream_error", "the upstream answered 502"),
        None,
    ),
    "json_error_200": (Failure(429, "rate_limit_error", "model_cap_exceeded", CAP), None),
    "error_event": (
        Failure(
            502,
            "upstream_error",
            "upstream_error",
            "Something went wrong while generating the response.",
        ),
        None,
    ),
    "empty": (
        Failure(502, "upstream_error", "empty_answer", "the upstream's answer is empty"),
        None,
    ),
}
"""What the owner of the upstream account is told, and what others are where that differs."""


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scene", REFUSALS)
def test_refusal_is_the_same_in_every_profile(
    bridge: GatewayProcess, shop: GatewayProcess, web: BackendApi, scene: str, transport: str
) -> None:
    own, others = REFUSALS[scene]
    said = f"#{scene}[transport={transport}]"
    told = everywhere(bridge, said, alice(web))
    fails_everywhere(told, own)
    waits = {t.headers.get("Retry-After") for t in told.values()}
    assert waits == ({"252"} if scene == "cap_429" else {None})
    fails_everywhere(everywhere(shop, said, KEY), others or own)


_CUT = "the upstream closed the connection within its answer"
_RESET = "the connection to the upstream broke within its answer: connection reset by peer"
_SOCKET_CUT = "the socket of the upstream broke off"
_STOPPED = "the upstream's answer stopped before its end"
BROKEN = {
    "cut_event": ("Hello", _CUT, _SOCKET_CUT),
    "cut_utf8": ("你好", _CUT, _SOCKET_CUT),
    "cut_no_done": ("Hello", _STOPPED, _STOPPED),
    "reset_in_stream": ("Hello", _RESET, _SOCKET_CUT),
    "cut_at_start": ("", _CUT, _SOCKET_CUT),
}
"""The text before the break, and the words over a response and over a socket."""


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scene", BROKEN)
def test_broken_stream_is_the_same_failure_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, scene: str, transport: str
) -> None:
    seed = random.randrange(10_000)
    print(f"byte splits with seed {seed}")
    text, words, socket_words = BROKEN[scene]
    code, words = "upstream_protocol_error", words if transport == "sse" else socket_words
    for encoding in ("whole", "v1"):
        said = f"#{scene}[transport={transport},encoding={encoding},split=random,seed={seed}]"
        for (profile, stream), told in everywhere(bridge, said, alice(web)).items():
            status = 200 if stream and text else 502
            assert failure_of(told) == (status, "upstream_error", code, words), profile
            assert told.text == (text if stream else "")
            assert (told.finish, told.done) == (None, False)


def test_error_after_some_text_is_the_same_in_every_profile(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    words = "Something went wrong while generating the response."
    for transport in TRANSPORTS:
        said = f"#error_after_text[transport={transport}]"
        for (profile, stream), told in everywhere(bridge, said, alice(web)).items():
            status = 200 if stream else 502
            expected = Failure(status, "upstream_error", "upstream_error", words)
            assert failure_of(told) == expected, profile
            assert told.text == ("Hello" if stream else "")


def test_upstream_that_is_not_there_is_the_same_failure_in_every_profile(
    web: BackendApi, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with gateway(tmp_path, web, upstream_base_url=nobody) as process:
        told = everywhere(process, "Hi", alice(web))
    words = "cannot connect to the upstream: connection refused"
    fails_everywhere(told, Failure(502, "upstream_error", "upstream_unreachable", words))


SLOW = (
    "#plain[headers_delay=5]",
    "#silence[seconds=10]",
    "#silence[seconds=10,transport=socket_flat]",
    "#silence[seconds=10,transport=socket_nested]",
    "#byte_by_byte",
    "#random_pieces",
)


def test_slow_upstream_is_waited_for_in_every_profile(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    with ThreadPoolExecutor(len(SLOW)) as pool:
        told = pool.map(lambda said: everywhere(bridge, said, alice(web), at_once=12), SLOW)
        for answers in told:
            says_everywhere(answers, "Hello world!")


UPLOADS: dict[str, tuple[dict[str, Any], str]] = {
    "put": (
        {"endpoint": "blob_put", "status": 403},
        "the upstream's file store answered 403 to an upload",
    ),
    "status": (
        {"endpoint": "file_uploaded", "answer": "failed"},
        "the upstream did not accept an uploaded file",
    ),
}


@pytest.mark.parametrize("step", UPLOADS)
def test_failed_upload_is_the_same_failure_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, step: str
) -> None:
    entry, words = UPLOADS[step]
    web.script({**entry, "times": len(WAYS)})
    told = everywhere(bridge, picture(PNG + step.encode()), alice(web))
    fails_everywhere(told, Failure(502, "upstream_error", "upstream_error", words))
    assert web.count("conversation") == 0


def test_upload_is_taken_once_and_again_when_it_has_gone(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    said = picture(PNG + b"kept")
    assert ask(bridge, said, alice(web)).text == "Hello world!"
    says_everywhere(everywhere(bridge, said, alice(web)), "Hello world!")
    assert web.count("file_create") == 1
    web.script({"endpoint": "file_uploaded", "status": 404})
    says_everywhere(everywhere(bridge, said, alice(web), at_once=1), "Hello world!")
    assert web.count("file_create") == 2
    assert web.problems == []


def file(data: bytes, mime: str, name: str) -> list[dict[str, Any]]:
    return [{"type": "file", "file": {"file_data": data_url(data, mime), "filename": name}}]


def linked(server: Server) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{server.port}/otter.png"
    return [{"type": "image_url", "image_url": {"url": url}}]


def test_files_of_a_question_are_taken_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, pictures: Server
) -> None:
    taken = {
        "image/png": picture(PNG + b"base64"),
        "image/png by URL": linked(pictures),
        "application/octet-stream": file(bytes(range(256)), "application/x-odd", "odd.xyz"),
    }
    for kind, said in taken.items():
        says_everywhere(everywhere(bridge, said, alice(web)), "Hello world!")
        [attached] = web.calls("conversation")[-1].json["messages"][-1]["metadata"]["attachments"]
        assert attached["mimeType"] == kind.partition(" ")[0]
    assert pictures.requests
    assert web.problems == []


def test_unusable_file_of_a_question_is_the_same_failure_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, large_files: Server
) -> None:
    unusable = [
        (picture(PNG[:40]), "invalid_image", "this image cannot be used: it is cut short"),
        (
            picture(LARGE),
            "invalid_url",
            "this data url cannot be read: it holds more than 20971520 bytes",
        ),
        (
            linked(large_files),
            "url_fetch_failed",
            "fetching this url failed: the file is larger than 20971520 bytes",
        ),
    ]
    for said, code, words in unusable:
        told = everywhere(bridge, said, alice(web), at_once=2)
        fails_everywhere(told, Failure(400, "invalid_request_error", code, words))
        place = f"messages[0].content[{len(said) - 1}]"
        assert all(str((t.error or {})["param"]).startswith(place) for t in told.values())
    assert web.log == []


def owner(web: BackendApi, name: str) -> Account:
    """A further account of the upstream's."""
    account = Account(name, f"rt-{name}-0123456789", {})
    account.issue()
    web.accounts[name] = account
    return account


def test_expired_token_is_renewed_once_in_every_profile(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    for number, way in enumerate(WAYS):
        account = owner(web, f"carol-{number}")
        token = account.refresh_token
        assert one(bridge, "Hi", token, way).status == 200
        web.revoke(account.name)
        told = one(bridge, "Hi", token, way)
        assert (told.status, told.text, told.finish) == (200, "Hello world!", "stop")
        told = one(bridge, "#token_expired_401", token, way)
        assert failure_of(told) == REFUSALS["token_expired_401"][0]
    assert web.count("oauth_token") == 2 * len(WAYS)


_REFUSED = Failure(
    401,
    "invalid_request_error",
    "invalid_api_key",
    "the refresh token is not accepted by its issuer: get a new one",
)
_NOT_HAD = Failure(
    503,
    "service_unavailable_error",
    "unavailable",
    "an access token for this model's upstream cannot be had now",
)
EXCHANGES: dict[str, tuple[dict[str, Any], Failure]] = {
    "400": ({"answer": "400"}, _REFUSED),
    "html": ({"answer": "html", "status": 403}, _NOT_HAD),
    "no-token": ({"answer": "no_token"}, _NOT_HAD),
    "not-json": ({"answer": "not_json"}, _NOT_HAD),
    "timeout": ({"answer": "timeout"}, _NOT_HAD),
}


@pytest.mark.parametrize("trouble", EXCHANGES)
def test_failed_exchange_is_the_same_failure_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, trouble: str
) -> None:
    entry, expected = EXCHANGES[trouble]
    account = owner(web, f"dave-{trouble}")
    web.script({"endpoint": "oauth_token", "times": 0, **entry})
    fails_everywhere(everywhere(bridge, "Hi", account.refresh_token, at_once=12), expected)
    assert web.count("oauth_token") == 1
    assert web.count("conversation") == 0


def test_forbidden_gpt_is_the_same_failure_in_every_profile(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    words = "the GPT {} does not exist, or the upstream account may not use it"
    kind = "invalid_request_error"
    for model, name in (("closed-gpt", "g-forbidden-club"), ("g-missing", "g-missing")):
        told = everywhere(bridge, "Hi", alice(web), model=model)
        fails_everywhere(told, Failure(404, kind, "model_not_found", words.format(name)))
    assert web.count("conversation") == 0
