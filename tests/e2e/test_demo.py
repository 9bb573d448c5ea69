"""`bin/serve --demo` as a newcomer types it: the printed commands work, a real model answers."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
import requests

from tests.gateway import ROOT, free_port, wait_for

QUESTION: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Say hello."}
]
FIXED = {"max_tokens": 24, "temperature": 0, "seed": 7}


class Demo:
    """The running demo and what it printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.output = folder / "output.txt"
        command = ["bin/serve", "--demo", "--port", self.url.rpartition(":")[2]]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--data", str(folder)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_for(self._listens, 90, "the demo")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return requests.get(f"{self.url}/ready", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def commands(self) -> list[str]:
        """The printed curl commands."""
        text = self.output.read_text()
        return re.findall(r"^curl (?:.*\\\n)*.*$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    running = Demo(tmp_path_factory.mktemp("demo"))
    yield running
    family = psutil.Process(running.process.pid).children(recursive=True)
    os.kill(running.process.pid, signal.SIGTERM)
    running.process.wait(40)
    assert psutil.wait_procs(family, timeout=15)[1] == []


def run(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0
    return done.stdout


def test_printed_commands_work_as_printed(demo: Demo) -> None:
    plain, streamed, models = demo.commands()
    answer = json.loads(run(plain))
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0
    lines = [line for line in run(streamed).splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0][6:])["choices"][0]["delta"]["role"] == "assistant"
    assert {"demo-llm", "emu-small"} <= {m["id"] for m in json.loads(run(models))["data"]}


def test_request_of_the_readme_is_answered_by_the_real_model(demo: Demo) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```sh\n(curl .*?)```$", text, re.MULTILINE | re.DOTALL)
    answer = json.loads(run(command.replace("http://127.0.0.1:8080", demo.url)))
    assert answer["model"] == "demo-llm"
    assert answer["choices"][0]["message"]["content"]


def test_real_answer_is_the_model_servers_own(demo: Demo) -> None:
    settings = json.loads((demo.folder / "data" / "demo.json").read_text())
    (entry,) = [e for e in settings["providers"]["custom"] if e["prefix"] == "demo"]
    with (
        openai.OpenAI(base_url=entry["base_url"], api_key="none") as direct,
        openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none") as through,
    ):
        own = direct.chat.completions.create(model="demo-llm", messages=QUESTION, **FIXED)  # type: ignore[call-overload]
        chunks = list(
            through.chat.completions.create(  # type: ignore[call-overload]
                model="demo-llm",
                messages=QUESTION,
                stream=True,
                stream_options={"include_usage": True},
                **FIXED,
            )
        )
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert streamed
    assert reasons[-1] == own.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    usage = chunks[-1].usage
    assert usage.prompt_tokens == own.usage.prompt_tokens
    assert 0 < usage.completion_tokens <= FIXED["max_tokens"]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_scripted_upstream_answers_beside_it(demo: Demo) -> None:
    body = {"model": "emu-small", "messages": [{"role": "user", "content": "#echo hello"}]}
    answer = requests.post(f"{demo.url}/v1/chat/completions", json=body, timeout=20).json()
    assert answer["choices"][0]["message"]["content"] == "hello"
