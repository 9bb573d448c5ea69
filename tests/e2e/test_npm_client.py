"""The official npm client against the real service: the same answers, the right exceptions."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulators.openai_answer import CHINESE
from emulators.openai_compat import OpenAICompat
from tests.gateway import KEY, GatewayProcess, custom, free_port

FOLDER = Path(__file__).parent / "npm"


@pytest.fixture(scope="module")
def process(
    openai_upstream: OpenAICompat, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway with one upstream that answers and one that is gone."""
    settings = custom(openai_upstream.base_url, models=["emu-small"])
    gone = {"prefix": "gone", "base_url": f"http://127.0.0.1:{free_port()}/v1", "api_key": "sk-x"}
    settings["providers"]["custom"].append(gone)
    settings["server"] = {"commit_window": 1}  # pictures take longer here
    with GatewayProcess(tmp_path_factory.mktemp("npm"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def node() -> str:
    """The program that runs the client."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not on PATH: Node.js 20 or newer runs the npm client")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("the npm client is not there: bin/test installs it where npm is on PATH")
    return path


@pytest.fixture(scope="module")
def report(node: str, process: GatewayProcess) -> dict[str, Any]:
    """What the client saw."""
    done = subprocess.run(
        [node, str(FOLDER / "client.mjs"), f"{process.url}/v1", KEY],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_models_are_listed_and_retrieved(report: dict[str, Any]) -> None:
    assert report["models"] == ["emu-small"]
    assert report["retrieved"] == "up/any-other"


def test_chat_is_answered_with_usage(report: dict[str, Any]) -> None:
    chat = report["chat"]
    assert (chat["text"], chat["reason"]) == ("你好 👋", "stop")
    assert chat["model"] == "up/emu-small"
    assert isinstance(chat["created"], int)
    assert chat["usage"]["total_tokens"] > chat["usage"]["completion_tokens"] > 0
    assert chat["requestID"].startswith("req_")


def test_tool_calls_are_joined(report: dict[str, Any]) -> None:
    names = [name for name, _ in report["tools"]]
    assert names == ["get_weather", "get_time"]
    assert report["tools"][0][1]["city"] == "北京"


def test_stream_is_told_whole_with_one_role_one_finish_and_usage(report: dict[str, Any]) -> None:
    stream = report["stream"]
    assert stream["failure"] is None
    assert stream["text"] == CHINESE
    assert (stream["roles"], stream["reasons"]) == (["assistant"], ["stop"])
    assert stream["usage"]["total_tokens"] > 0
    assert set(stream["models"]) == {"up/emu-small"}


@pytest.mark.parametrize(
    ("name", "kind", "status", "code", "words"),
    [
        ("400", "BadRequestError", 400, None, "400 "),
        ("400 ours", "BadRequestError", 400, "invalid_value", "400 n must be a whole number"),
        ("401", "AuthenticationError", 401, "invalid_api_key", "401 incorrect API key provided"),
        ("401 stream", "AuthenticationError", 401, "invalid_api_key", "401 incorrect API key"),
        ("404", "NotFoundError", 404, "model_not_found", "404 the model nobody does not exist"),
        ("429", "RateLimitError", 429, "rate_limit_exceeded", "429 "),
        ("429 stream", "RateLimitError", 429, "rate_limit_exceeded", "429 "),
        ("500", "InternalServerError", 502, "upstream_error", "502 "),
        ("500 stream", "InternalServerError", 502, "upstream_error", "502 "),
        ("refused", "InternalServerError", 502, "upstream_unreachable", "502 "),
        ("refused stream", "InternalServerError", 502, "upstream_unreachable", "502 "),
        ("cut", "InternalServerError", 502, "upstream_protocol_error", "502 "),
        ("picture 429", "RateLimitError", 429, "image_generate_fail", "429 "),
        ("picture text", "BadRequestError", 400, "image_generate_fail", "400 the model made no"),
    ],
)
def test_failure_is_the_right_exception_with_its_words(
    report: dict[str, Any], name: str, kind: str, status: int, code: str | None, words: str
) -> None:
    failure = report["errors"][name]
    assert (failure["kind"], failure["status"]) == (kind, status)
    assert code is None or failure["code"] == code
    assert failure["message"].startswith(words)
    assert len(failure["message"]) > 10
    assert "status code (no body)" not in failure["message"]
    assert failure["requestID"].startswith("req_")


def test_retry_after_arrives_as_a_header(report: dict[str, Any]) -> None:
    for name in ("429", "429 stream"):
        assert report["errors"][name]["retryAfter"] == "7"
    assert report["errors"]["400"]["retryAfter"] is None


def test_parameter_at_fault_is_named(report: dict[str, Any]) -> None:
    assert report["errors"]["400 ours"]["param"] == "n"
    assert report["errors"]["404"]["param"] == "model"


def test_cut_stream_raises_after_its_text(report: dict[str, Any]) -> None:
    cut = report["cut"]
    assert cut["text"].startswith("The quick")
    assert cut["reasons"] == []
    assert cut["usage"] is None
    assert cut["failure"]["isApiError"]
    assert cut["failure"]["code"] == "upstream_protocol_error"
