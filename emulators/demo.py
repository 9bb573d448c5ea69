"""`bin/serve --demo`: upstreams that need no key and no network, and settings that lead to them.

A real small model answers as `demo-llm`; beside it stand the scripted upstreams. All are children
of this process and end with it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

DEFAULT_ADDRESS = ("127.0.0.1", "8080")
_LISTENING = re.compile(r"listening on (\S+)")
_TOKEN = re.compile(r"access token (\S+)")

INTRODUCTION = """
Causeway is starting with built-in upstreams: no key, no network.
  real:      demo-llm, SmolLM2-135M-Instruct on this machine's CPU{missing}
  scripted:  scripted/emu-small, an OpenAI-compatible upstream{web}

Once it listens, a moment from now, in another terminal:

curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a causeway?"}}]}}'

curl -sN {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

curl -s {url}/v1/models
"""
WEB = """
             gpt-4-s, a ChatGPT-web style one: write #code, #browsing or #dalle to it"""


MISSING = " (not running: its wheels have no build for this machine)"


def start_demo(root: Path, environ: MutableMapping[str, str]) -> None:
    """Start the upstreams, write their settings, and let `environ` point at them."""
    model = _start(root, "demo_llm", "--threads", "1")
    scripted = _start(root, "openai_compat")
    web = _start(root, "backend_api", "--seed", "1") if _has_web_provider(root) else []
    if not scripted:
        sys.exit("the scripted upstream did not start")
    folder = Path(environ.get("SERVER_DATA_DIR") or root) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "demo.json"
    settings.touch(mode=0o600)
    settings.write_text(json.dumps(_settings(_url(model), _url(scripted), web), indent=2))
    environ["CAUSEWAY_CONFIG"] = str(settings)
    _introduce(environ, has_model=bool(model), has_web=bool(web))


def _start(root: Path, name: str, *options: str) -> list[str]:
    """What the emulator printed up to the line that it is ready; nothing if it cannot run here."""
    command = [sys.executable, "-m", "emulators", name, "--port", "0", "--stop-with-parent"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if _LISTENING.search(line) and name != "backend_api":
            break
        if _TOKEN.search(line):
            break
    return lines if any(_LISTENING.search(line) for line in lines) else []


def _has_web_provider(root: Path) -> bool:
    return (root / "services" / "providers" / "backend_api").is_dir()


def _url(lines: list[str]) -> str:
    return next((m[1] for line in lines if (m := _LISTENING.search(line))), "")


def _settings(model: str, scripted: str, web: list[str]) -> dict[str, Any]:
    custom = [{"prefix": "scripted", "base_url": scripted, "models": ["emu-small"]}]
    if model:
        custom.insert(0, {"prefix": "demo", "base_url": model, "models": ["demo-llm"]})
    settings: dict[str, Any] = {"log_level": "WARNING", "providers": {"custom": custom}}
    if web:
        token = next(m[1] for line in web if (m := _TOKEN.search(line)))
        settings["upstream_base_url"] = _url(web)
        settings["use_pandora_file_server"] = False
        settings["providers"]["backend_api"] = {"access_token": token}
    return settings


def _introduce(environ: MutableMapping[str, str], *, has_model: bool, has_web: bool) -> None:
    host = environ.get("SERVER_HOST") or DEFAULT_ADDRESS[0]
    port = environ.get("SERVER_PORT") or DEFAULT_ADDRESS[1]
    print(
        INTRODUCTION.format(
            url=f"http://{host}:{port}",
            model="demo-llm" if has_model else "scripted/emu-small",
            missing="" if has_model else MISSING,
            web=WEB if has_web else "",
        ),
        flush=True,
    )
