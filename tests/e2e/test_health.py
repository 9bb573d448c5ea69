"""Whether the service says how it is: to load balancers, and to those who list its models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from emulators.openai_compat import OpenAICompat
from services.keys import usage
from tests.canaries import ADMIN_KEY, MARK, UPSTREAM_KEY
from tests.gateway import KEY, ROOT, GatewayProcess, custom, free_port, question, wait_for

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
PROVIDER = '''
"""A provider whose list of models fails while a file beside it is there."""

from pathlib import Path

from services.core.events import Finish, Text
from services.core.models import ModelCard
from services.providers.base import Provider, Route


class Listing(Provider):
    name = "listing"

    def models(self):
        yield ModelCard("first-of-the-list", "listing", 0)
        if Path(__file__).with_name("away").exists():
            raise OSError("the list is away")

    def route(self, model):
        return Route(model) if model == "first-of-the-list" else None

    def stream(self, request, route, credential):
        yield [Text("hello"), Finish("stop")]


def build(context):
    return Listing()
'''


CALLERS_TOKEN = f"sk-{MARK}-of-the-caller-0123"
UPSTREAM_WORDS = "The server had an error"
PLACES = 32
WAITING = 40
FAULTS_OF_REQUESTS = {
    "#400 x": 400,
    "#404 x": 404,
    "#413 x": 413,
    "#422 x": 422,
    "#context x": 400,
    "#error-200 x": 502,
}


def health(process: GatewayProcess) -> tuple[int, dict[str, Any]]:
    answer = requests.get(f"{process.url}/health", timeout=10)
    return answer.status_code, answer.json()


def admins_health(process: GatewayProcess) -> dict[str, Any]:
    told: dict[str, Any] = process.admin("GET", "/health")
    return told


@contextlib.contextmanager
def service(folder: Path, *entries: dict[str, Any], **auth: Any) -> Iterator[GatewayProcess]:
    settings = {
        "auth": {"keys": [KEY], "admin_key": ADMIN_KEY, **auth},
        "providers": {"custom": [{"prefix": "up", **entry} for entry in entries]},
    }
    with GatewayProcess(folder, settings) as process:
        yield process


@pytest.fixture
def picky() -> Iterator[OpenAICompat]:
    """An upstream that takes one key only."""
    with OpenAICompat(keys=[UPSTREAM_KEY]) as upstream:
        yield upstream


def test_callers_bad_token_and_bad_requests_leave_the_service_healthy(
    picky: OpenAICompat, tmp_path: Path
) -> None:
    with service(tmp_path, {"base_url": picky.base_url}, keys=[], passthrough=True) as process:
        bad, good = ({"Authorization": f"Bearer {key}"} for key in (CALLERS_TOKEN, UPSTREAM_KEY))
        for stream in (False, True):
            assert process.post(question("hi", stream=stream), headers=bad).status_code == 401
            assert health(process)[0] == 200
        for words, status in FAULTS_OF_REQUESTS.items():
            assert process.post(question(words), headers=good).status_code == status
        assert process.post(question("hi", "nobody-has-it"), headers=good).status_code == 404
        assert process.post(b"x" * (33 * 1024 * 1024), headers=good).status_code == 413
        status, told = health(process)
        assert (status, told["status"], told["reasons"]) == (200, "ok", [])


@pytest.mark.parametrize(
    ("words", "kind"),
    [("#500 x", "failed"), ("#html502 x", "failed"), ("#cut x", "protocol")],
)
def test_upstreams_own_failure_makes_the_service_down_until_it_answers(
    upstream: OpenAICompat, tmp_path: Path, words: str, kind: str
) -> None:
    entry = {"base_url": upstream.base_url}
    with service(tmp_path, entry, keys=[], passthrough=True, admin_key=ADMIN_KEY) as process:
        process.post(question(words, stream=True))
        status, told = health(process)
        assert (status, told["status"]) == (503, "down")
        assert told["reasons"] == [f"custom: {kind}"]
        assert process.post(question("hi")).status_code == 200
        assert health(process)[0] == 200


def test_upstreams_words_are_for_the_operator_only(upstream: OpenAICompat, tmp_path: Path) -> None:
    with service(tmp_path, {"base_url": upstream.base_url, "api_key": UPSTREAM_KEY}) as process:
        process.post(question("#500 x"))
        assert UPSTREAM_WORDS not in str(health(process)[1])
        told = admins_health(process)["providers"]["custom"]
        assert UPSTREAM_WORDS in told["upstreams"]["custom/up"]


def test_operators_refused_key_makes_the_service_down(picky: OpenAICompat, tmp_path: Path) -> None:
    entry = {"base_url": picky.base_url, "api_key": f"sk-{MARK}-refused-0123456789"}
    with service(tmp_path, entry) as process:
        assert process.post(question("hi")).status_code == 503
        status, told = health(process)
        assert (status, told["reasons"]) == (503, ["custom: unauthorized"])


def test_pool_whose_accounts_are_all_refused_makes_the_service_down(
    picky: OpenAICompat, tmp_path: Path
) -> None:
    accounts = [f"sk-{MARK}-refused-{n}-0123456789" for n in range(2)]
    with service(tmp_path, {"base_url": picky.base_url, "accounts": accounts}) as process:
        assert process.post(question("hi")).status_code == 503
        status, told = health(process)
        assert (status, told["reasons"]) == (503, ["custom: unavailable"])


def test_keys_own_refused_credential_is_not_the_services_fault(
    picky: OpenAICompat, tmp_path: Path
) -> None:
    with service(tmp_path, {"base_url": picky.base_url, "api_key": UPSTREAM_KEY}) as process:
        own = {"custom": f"sk-{MARK}-of-the-key-0123456789"}
        made = process.admin("POST", "/keys", {"name": "with its own", "provider_keys": own})
        headers = {"Authorization": f"Bearer {made['secret']}"}
        assert process.post(question("hi"), headers=headers).status_code == 503
        assert health(process)[0] == 200


def test_model_without_an_account_is_not_the_upstreams_fault(
    picky: OpenAICompat, tmp_path: Path
) -> None:
    with service(tmp_path, {"base_url": picky.base_url}) as process:
        assert process.post(question("hi")).status_code == 503
        assert health(process)[0] == 200


def test_one_dead_upstream_of_two_leaves_the_service_degraded(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    dead = {"prefix": "dead", "base_url": f"http://127.0.0.1:{free_port()}/v1"}
    with service(tmp_path, {"base_url": upstream.base_url}, dead) as process:
        assert process.post(question("hi", "dead/m")).status_code == 502
        status, told = health(process)
        assert (status, told["status"]) == (200, "degraded")
        assert told["reasons"] == ["custom: unreachable, 1 of 2 upstreams"]
        assert list(admins_health(process)["providers"]["custom"]["upstreams"]) == ["custom/dead"]


class OpenStreams:
    """Streams that have begun and go on until `close`."""

    def __init__(self, process: GatewayProcess) -> None:
        self._process = process
        self._answers: list[tuple[requests.Response, Iterator[bytes]]] = []

    def open(self, number: int) -> None:
        """Begin so many more, one after the other; fails if one has to wait."""
        for _ in range(number):
            body = question("#silent:90 hello", stream=True)
            answer = self._process.post(body, stream=True, timeout=10)
            lines = answer.iter_lines()  # holds the connection
            self._answers.append((answer, lines))
            assert next(lines).startswith(b"data: ")

    def close(self) -> None:
        for answer, _ in self._answers:
            answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_few_places(upstream: OpenAICompat, folder: Path, workers: int = 1) -> GatewayProcess:
    settings = custom(upstream.base_url)
    return GatewayProcess(
        folder, settings | {"process_threads": PLACES, "process_workers": workers}
    )


def probe(process: GatewayProcess, path: str) -> int:
    return requests.get(process.url + path, timeout=3).status_code


@pytest.mark.parametrize("workers", [1, 2])
def test_probes_are_answered_while_streams_take_every_place_and_others_wait(
    upstream: OpenAICompat, tmp_path: Path, workers: int
) -> None:
    with (
        with_few_places(upstream, tmp_path, workers) as process,
        OpenStreams(process) as streams,
        ThreadPoolExecutor(WAITING) as pool,
    ):
        streams.open(PLACES * workers)
        waiting = [pool.submit(process.post, question("#echo hi")) for _ in range(WAITING)]
        for path in ("/health", "/healthz", "/ready") * 3:
            assert probe(process, path) == 200
        assert not any(answer.done() for answer in waiting)
        streams.close()
        assert [answer.result().status_code for answer in waiting] == [200] * WAITING


def test_idle_connections_take_no_place(upstream: OpenAICompat, tmp_path: Path) -> None:
    with with_few_places(upstream, tmp_path) as process, contextlib.ExitStack() as stack:
        for _ in range(PLACES + 1):
            idle = stack.enter_context(requests.Session())
            assert idle.get(f"{process.url}/v1/models", headers=AUTHORIZED, timeout=5).ok
        assert process.post(question("#echo hi"), timeout=5).status_code == 200


@pytest.fixture
def more_providers(tmp_path: Path) -> Path:
    """A folder whose modules are providers of any service started with it as its PYTHONPATH."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "listing.py").write_text(PROVIDER)
    extend = f"import services.providers\nservices.providers.__path__.append({str(folder)!r})\n"
    (folder / "sitecustomize.py").write_text(extend)
    return folder


@pytest.fixture
def with_a_list(
    openai_upstream: OpenAICompat, more_providers: Path, tmp_path: Path
) -> Iterator[GatewayProcess]:
    settings = custom(openai_upstream.base_url, models=["emu-small"])
    path = f"{more_providers}:{ROOT}"
    with GatewayProcess(tmp_path / "service", settings, PYTHONPATH=path) as process:
        yield process


def model_names(process: GatewayProcess) -> list[str]:
    answer = requests.get(f"{process.url}/v1/models", headers=AUTHORIZED, timeout=10)
    assert answer.status_code == 200, answer.text
    return [card["id"] for card in answer.json()["data"]]


def figures(process: GatewayProcess) -> str:
    return requests.get(f"{process.url}/metrics", timeout=10).text


def test_provider_that_cannot_list_its_models_takes_no_others_away(
    with_a_list: GatewayProcess, more_providers: Path
) -> None:
    assert model_names(with_a_list) == ["emu-small", "first-of-the-list"]
    (more_providers / "away").touch()
    assert [model_names(with_a_list) for _ in range(3)] == [["emu-small"]] * 3
    told = [line for line in with_a_list.log_text().splitlines() if "models not listed" in line]
    assert len(told) == 1
    assert "provider=listing" in told[0]
    (more_providers / "away").unlink()
    assert model_names(with_a_list) == ["emu-small", "first-of-the-list"]


def test_usage_is_counted_while_a_provider_cannot_list_its_models(
    with_a_list: GatewayProcess, more_providers: Path
) -> None:
    (more_providers / "away").touch()
    for model in ("emu-small", "first-of-the-list"):
        assert with_a_list.post(question("#echo hi", model)).status_code == 200
    counted = 'causeway_turns_total{model="emu-small",outcome="ok",provider="custom"} 1.0'
    wait_for(lambda: counted in figures(with_a_list), 5, "the count")


def test_model_keeps_its_name_in_the_usage_when_it_is_not_listed_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usage, "REFRESH_SECONDS", 0.0)
    names = ["one", "two"]
    known = usage.ListedModels(lambda: names)
    assert "two" in known
    names.remove("two")
    assert "two" in known
    assert "three" not in known
