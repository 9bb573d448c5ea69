"""A plain client of the `backend-api` emulator, for its own tests."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import requests

from emulators.backend_api import BackendApi

TIMEOUT = 5


def payload(text: str = "Hi", model: str = "gpt-4", **fields: Any) -> dict[str, Any]:
    """A conversation request that is right in every respect."""
    body: dict[str, Any] = {
        "action": "next",
        "messages": [message(text)],
        "parent_message_id": str(uuid.uuid4()),
        "model": model,
        "timezone_offset_min": -480,
        "suggestions": [],
        "history_and_training_disabled": False,
        "conversation_mode": {"kind": "primary_assistant"},
        "force_paragen": False,
        "force_rate_limit": False,
    }
    return {**body, **fields}


def message(text: str = "Hi", role: str = "user", **fields: Any) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]}
    body = {"id": str(uuid.uuid4()), "author": {"role": role}, "content": content, "metadata": {}}
    return {**body, **fields}


def bearer(upstream: BackendApi, account: str = "alice") -> dict[str, str]:
    return {"Authorization": f"Bearer {upstream.accounts[account].access_token}"}


def call(upstream: BackendApi, method: str, path: str, **options: Any) -> requests.Response:
    """A request as alice, unless `headers` say otherwise."""
    headers = options.pop("headers", bearer(upstream))
    timeout = options.pop("timeout", TIMEOUT)
    return requests.request(
        method, upstream.url + path, headers=headers, timeout=timeout, **options
    )


def say(upstream: BackendApi, text: str = "Hi", **fields: Any) -> requests.Response:
    body = payload(text, **fields)
    return call(upstream, "POST", "/backend-api/conversation", json=body, stream=True)


def sse_data(body: bytes) -> list[str]:
    """The data of every SSE event, by the standard."""
    blocks = re.split(r"\n\n+", body.decode().replace("\r\n", "\n"))
    lines = ([line for line in block.split("\n") if line.startswith("data:")] for block in blocks)
    joined = ("\n".join(line[5:].removeprefix(" ") for line in data) for data in lines)
    return [data for data in joined if data]


def decoded(data: list[str]) -> list[dict[str, Any]]:
    """Those data that are JSON."""
    return [json.loads(item) for item in data if item.startswith("{")]


def told(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(who, content type, final text) of each message of the assistant and the tools, in order."""
    messages: dict[str, dict[str, Any]] = {}
    for event in events:
        found = event.get("message") or {}
        if found.get("author", {}).get("role") in ("assistant", "tool"):
            messages[found["id"]] = found
    return [_summary(found) for found in messages.values()]


def _summary(found: dict[str, Any]) -> tuple[str, str, str]:
    content, author = found["content"], found["author"]
    parts = "".join(part for part in content.get("parts", ()) if isinstance(part, str))
    text = parts or content.get("text") or content.get("result") or ""
    return author["name"] or author["role"], content["content_type"], text


def read(response: requests.Response) -> list[dict[str, Any]]:
    """The events of a whole SSE answer that ends in `[DONE]`."""
    data = sse_data(response.content)
    assert data[-1] == "[DONE]"
    return decoded(data)
