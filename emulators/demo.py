"""`bin/serve --demo`: upstreams that need no key and no network, and settings that lead to them.

A real small model answers as `demo-llm`; beside it stand the scripted upstreams. All are children
of the calling process, which may become another program meanwhile, and end with it. What they
print is in `data/demo/`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from . import demo_text

PATIENCE = 60.0
"""Seconds for all upstreams to come up; a slow disk takes long to read the model."""

UNUSED = ("CAUSEWAY_CONFIG", "UPSTREAM_BASE_URL", "SERVER_PROXIES")
"""What the demo sets aside: it brings its own settings and upstreams, on this machine."""

SCRIPTED_MODELS = ["emu-small", "emu-large"]
_LISTENING = re.compile(r"listening on (\S+)\n")
_TOKEN = re.compile(r"access token (\S+)\n")


class DemoError(Exception):
    """An upstream did not come up; the text says which and why."""


class Demo:
    """The running upstreams, and what to tell about them once the gateway answers."""

    def __init__(self, root: Path, folder: Path, facts: demo_text.Facts) -> None:
        self._root = root
        self._folder = folder
        self._facts = facts

    def introduce(self, host: str, port: int, prefix: str = "", key: str = "") -> None:
        """Have a child show the introduction as soon as somebody answers there. With `key`, one
        that the gateway asks for, the commands read it from a file of the demo.
        """
        url = demo_text.address(host, port) + prefix
        key_file = _written(self._folder / "key", key) if key else None
        process = subprocess.Popen(
            [sys.executable, "-m", "emulators.demo_text", url],
            cwd=self._root,
            stdin=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(demo_text.introduction(url, self._facts, key_file))


def start_demo(root: Path, given: Mapping[str, str], environ: MutableMapping[str, str]) -> Demo:
    """Start the upstreams, write their settings, and let `environ` point at them. `given` is what
    the operator has set, here or elsewhere; `environ` wins over it.

    Raises `DemoError`. The model may be missing, where its wheels have no build.
    """
    unused = [name for name in UNUSED if given.get(name)]
    environ["SERVER_PROXIES"] = ""
    folder = Path(environ.get("SERVER_DATA_DIR") or root) / "data" / "demo"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    has_web = (root / "services" / "providers" / "backend_api").is_dir()
    model = _Upstream(root, folder, "demo_llm", "--threads", "1")
    names = [word for name in SCRIPTED_MODELS for word in ("--model", name)]
    scripted = _Upstream(root, folder, "openai_compat", *names)
    web = _Upstream(root, folder, "backend_api", "--seed", "1") if has_web else None

    custom = [_entry("scripted", scripted.said(_LISTENING, deadline), SCRIPTED_MODELS)]
    why_not = ""
    try:
        custom.insert(0, _entry("demo", model.said(_LISTENING, deadline), ["demo-llm"]))
    except DemoError as exc:
        why_not = str(exc)
    settings: dict[str, Any] = {"log_level": "INFO", "providers": {"custom": custom}}
    settings["auth"] = {"anonymous": not given.get("AUTH_KEYS")}
    if web is not None:
        # a variable, since it wins over a real upstream's in .env, which must not get this token
        environ["UPSTREAM_BASE_URL"] = web.said(_LISTENING, deadline)
        environ["DALLE_PROMPT_PREFIX"] = "#dalle "  # the word that has this upstream draw
        settings["providers"]["backend_api"] = {
            "access_token": web.said(_TOKEN, deadline),
            "calls_per_minute": 0,
        }
        settings["use_pandora_file_server"] = False
    config = _written(folder / "config.json", json.dumps(settings, indent=2))
    environ["CAUSEWAY_CONFIG"] = str(config)
    return Demo(root, folder, demo_text.Facts(not why_not, why_not, has_web, unused))


class _Upstream:
    """An emulator as a child. It prints to a file: a pipe would lose its reader when the calling
    process becomes the server.
    """

    def __init__(self, root: Path, folder: Path, name: str, *options: str) -> None:
        self._name = name
        self._output = folder / f"{name}.log"
        command = [sys.executable, "-m", "emulators", name, "--port", "0", "--stop-with-parent"]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *options],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the server; the rest follows it
            )

    def said(self, wanted: re.Pattern[str], deadline: float) -> str:
        """What `wanted` finds in its output. Raises `DemoError` if it ends or takes too long."""
        while True:
            waiting = self._process.poll() is None and time.monotonic() < deadline
            text = self._output.read_text(encoding="utf-8", errors="replace")
            if found := wanted.search(text):
                return found[1]
            if not waiting:
                break
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        last = text.strip().rpartition("\n")[2] or "it took too long"
        raise DemoError(f"{self._name} did not start: {last}")


def _entry(prefix: str, url: str, models: list[str]) -> dict[str, Any]:
    """One of `providers.custom`; none of these models draws. With a key of its own, it never gets
    the caller's.
    """
    return {"prefix": prefix, "base_url": url, "api_key": "none", "models": models, "draws": []}


def _written(path: Path, text: str) -> Path:
    """A file that only this user can read."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path.resolve()
