"""What these tests share: a question through the gateway, and what came of it, in either form."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import requests

from emulators.backend_api import BackendApi
from tests.gateway import KEY, GatewayProcess, question

OWN_LINK = re.compile(r"http://127\.0\.0\.1:\d+/(images|files)/[\w-]+\.(\w+)")
COMMIT_WINDOW = 3.0
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
"""One transparent pixel."""


_WATCHER = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = args[1] if event == "socket.connect" else args[0]
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(f"{event} {address!r}\\n")
sys.addaudithook(watch)
"""


def watched(folder: Path) -> dict[str, str]:
    """The environment of processes that note in `seen.txt` whom they look up and connect to."""
    (folder / "sitecustomize.py").write_text(_WATCHER)
    return {"PYTHONPATH": str(folder), "SEEN": str(folder / "seen.txt")}


def settings_for(web: BackendApi, **more: Any) -> dict[str, Any]:
    """A gateway before `web`: callers bring tokens of their own. Groups in `more` are merged."""
    settings: dict[str, Any] = {
        "auth": {"keys": [KEY], "passthrough": True},
        "use_pandora_file_server": False,
        "upstream_base_url": web.url,
        "refresh_ToAccess": {
            "enableOai": True,
            "oauth_token_url": f"{web.url}/oauth/token",
            "oauth_client_id": "a-client",
        },
        "server": {
            "commit_window": COMMIT_WINDOW,
            "keepalive_interval": 1,
            "connect_timeout": 2,
            "first_byte_timeout": 20,
            "idle_timeout": 8,
        },
        "providers": {"backend_api": {"calls_per_minute": 0}},
    }
    for key, value in more.items():
        old = settings.get(key)
        settings[key] = old | value if isinstance(old, dict) else value
    return settings


@contextlib.contextmanager
def gateway(
    folder: Path, web: BackendApi, environ: dict[str, str] | None = None, **more: Any
) -> Iterator[GatewayProcess]:
    """A gateway before `web`, running; `more` as for `settings_for`."""
    with GatewayProcess(folder, settings_for(web, **more), **(environ or {})) as process:
        yield process


def alice(web: BackendApi) -> str:
    """An account's access token."""
    return web.accounts["alice"].access_token


class Told(NamedTuple):
    """What a caller got. `text` is without the notice of an error; `chunks` are a stream's."""

    status: int
    seconds: float
    text: str
    finish: str | None
    error: dict[str, Any] | None
    done: bool
    chunks: Sequence[dict[str, Any]]
    headers: Any

    @property
    def linked(self) -> str:
        """The text with our own links made alike."""
        return OWN_LINK.sub(r"URL.\2", self.text)

    @property
    def links(self) -> list[str]:
        """Our own links in the text, each once, in their order."""
        return list(dict.fromkeys(found[0] for found in OWN_LINK.finditer(self.text)))


def ask(
    bridge: GatewayProcess,
    said: Any,
    token: str,
    *,
    stream: bool = True,
    model: str = "gpt-4-s",
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> Told:
    """One turn. `said` is the user's content; `token` the caller's key or upstream token."""
    body = question(said, model=model, stream=stream, **fields)
    began = time.monotonic()
    sent = {"Authorization": f"Bearer {token}", **(headers or {})}
    reply = bridge.post(body, headers=sent)
    return read(reply, time.monotonic() - began)


def draw(bridge: GatewayProcess, token: str, prompt: str = "an otter", **fields: Any) -> Any:
    """A request for a picture; the bare answer."""
    return bridge.post(
        {"model": "gpt-4-s", "prompt": prompt, **fields},
        "/v1/images/generations",
        headers={"Authorization": f"Bearer {token}"},
    )


def read(reply: requests.Response, seconds: float = 0.0) -> Told:
    """A chat answer in whichever form it came."""
    if "text/event-stream" in reply.headers.get("Content-Type", ""):
        return _streamed(reply, seconds)
    body = reply.json()
    choice = body["choices"][0] if reply.status_code == 200 else {}
    return Told(
        reply.status_code,
        seconds,
        choice.get("message", {}).get("content") or "",
        choice.get("finish_reason"),
        body.get("error"),
        reply.status_code == 200,
        (),
        reply.headers,
    )


def _streamed(reply: requests.Response, seconds: float) -> Told:
    text = reply.content.decode()
    assert text.endswith("\n\n")
    frames = text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    data = [frame[6:] for frame in frames]
    done = data[-1] == "[DONE]"
    chunks = [json.loads(frame) for frame in (data[:-1] if done else data)]
    error = next((chunk["error"] for chunk in chunks if chunk.get("error")), None)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and "error" not in chunk]
    return Told(
        reply.status_code,
        seconds,
        "".join(choice["delta"].get("content") or "" for choice in choices),
        next((c["finish_reason"] for c in choices if c["finish_reason"]), None),
        error,
        done,
        chunks,
        reply.headers,
    )


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes = PNG, mime: str = "image/png") -> list[dict[str, Any]]:
    """The content of a message with a picture."""
    return [
        {"type": "text", "text": "What is in it?"},
        {"type": "image_url", "image_url": {"url": data_url(data, mime)}},
    ]


def message(text: str, **fields: Any) -> dict[str, Any]:
    """An upstream event: one message with the whole of its text so far."""
    content = {"content_type": "text", "parts": [text]}
    about = {"id": "m1", "author": {"role": "assistant"}, "status": "in_progress"}
    said = {**about, "content": content, "metadata": {}, "recipient": "all", **fields}
    return {"message": said, "conversation_id": "c1", "error": None}


def say(web: BackendApi, *events: Any, times: int = 1, end: str = "data: [DONE]\n\n") -> None:
    """Script the next answers: events as JSON, or as text as they are."""
    texts = [e if isinstance(e, str) else json.dumps(e) for e in events]
    body = "".join(f"data: {text}\n\n" for text in texts) + end
    entry = {"endpoint": "conversation", "status": 200, "body": body, "times": times}
    web.script({**entry, "content_type": "text/event-stream"})
