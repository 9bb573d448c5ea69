"""How one-api and new-api read an upstream, as far as it decides what their users see.

Each rule is theirs, written anew: one-api of 2025-02, new-api of 2025 and 2026.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import requests

ONE_API_LINE = 64 * 1024
"""Go's bufio.Scanner with its default buffer: a line of this many bytes ends the reading."""

ONE_API_BAN_TYPES = {
    "insufficient_quota",
    "authentication_error",
    "permission_error",
    "forbidden",
}
ONE_API_BAN_CODES = {"invalid_api_key", "account_deactivated"}
ONE_API_BAN_WORDS = (
    "credit",
    "balance",
    "permission denied",
    "organization has been disabled",
    "your access was terminated",
    "violation of our policies",
    "api key expired",
    "已欠费",
)
NEW_API_BAN_CODES = ONE_API_BAN_CODES | {"billing_not_active"}
NEW_API_BAN_WORDS = (
    *ONE_API_BAN_WORDS,
    "your credit balance is too low",
    "this organization has been disabled.",
    "you exceeded your current quota",
    "permission denied",
    "the security token included in the request is invalid",
    "operation not allowed",
    "your account is not authorized",
)


class Call(msgspec.Struct):
    """Go's typed decoding: a number must be what its field says, null is nothing."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: dict[str, Any] | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    role: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    index: int
    delta: Delta
    finish_reason: str | None = None


class Counted(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Chunk(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Counted | None = None


class Message(msgspec.Struct):
    role: str
    content: str
    reasoning_content: str | None = None


class WholeChoice(msgspec.Struct):
    index: int
    message: Message
    finish_reason: str


class Whole(msgspec.Struct):
    """`content` is a string: null or a list fails one-api's test of a channel."""

    id: str
    object: str
    created: int
    model: str
    choices: list[WholeChoice]
    usage: Counted


class ErrorObject(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | int | None


class ErrorAnswer(msgspec.Struct):
    error: ErrorObject


class Relayed:
    """What a relay made of a stream: the data it `forwarded`, the `text` and `usage` it counted."""

    def __init__(self) -> None:
        self.forwarded: list[str] = []
        self.text = ""
        self.usage: Counted | None = None
        self.finishes: list[str] = []
        self.undecodable: list[str] = []

    def add(self, chunk: Chunk) -> None:
        for choice in chunk.choices:
            self.text += choice.delta.content or ""
            self.finishes += [choice.finish_reason] if choice.finish_reason else []
        self.usage = chunk.usage or self.usage

    @property
    def errors(self) -> list[Any]:
        """The errors that reach the client."""
        decoded = [json.loads(data) for data in self.forwarded if data != "[DONE]"]
        return [chunk["error"] for chunk in decoded if chunk.get("error")]


def one_api_stream(answer: requests.Response) -> Relayed:
    """one-api's stream handler over an answer."""
    assert answer.status_code in (200, 201)
    assert not answer.headers["Content-Type"].startswith("application/json")
    relayed = Relayed()
    for line in answer.content.split(b"\n"):
        if len(line) >= ONE_API_LINE:
            break
        if len(line) < 6 or not line.startswith(b"data: "):
            continue
        data = line[6:].decode()
        if data.startswith("[DONE]"):
            relayed.forwarded.append(data)
            continue
        try:
            chunk = msgspec.json.decode(data, type=Chunk)
        except msgspec.DecodeError as exc:
            relayed.forwarded.append(data)
            relayed.undecodable.append(f"{exc}: {data}")
            continue
        if not chunk.choices and chunk.usage is None:
            continue
        relayed.forwarded.append(data)
        relayed.add(chunk)
    return relayed


def new_api_stream(answer: requests.Response, asked_usage: bool) -> Relayed:
    """new-api's: it stops at [DONE], holds the last data line back, reads usage from that alone,
    and drops it when the caller asked for no usage and it has some.
    """
    relayed, last, ended = Relayed(), "", "eof"
    for line in answer.content.decode().split("\n"):
        if not line.startswith("data:") or ended == "done":
            continue
        data = line.removeprefix("data:").strip()
        if data.startswith("[DONE]"):
            ended = "done"
            continue
        if last:
            relayed.forwarded.append(last)
            relayed.add(msgspec.json.decode(last, type=Chunk))
        last = data
    relayed.usage = None
    if last:
        chunk = msgspec.json.decode(last, type=Chunk)
        if chunk.usage is None or asked_usage:
            relayed.forwarded.append(last)
            relayed.add(chunk)
        relayed.usage = chunk.usage
    return relayed


def read_error(answer: requests.Response) -> ErrorObject:
    """The error of a failed answer, which both decode by type. Raises if it is of another shape."""
    error = msgspec.json.decode(answer.content, type=ErrorAnswer).error
    assert error.message, "people would see an empty message"
    return error


def one_api_bans(status: int, error: ErrorObject) -> bool:
    """Whether one-api disables the channel."""
    return (
        status == 401
        or error.type in ONE_API_BAN_TYPES
        or error.code in ONE_API_BAN_CODES
        or any(words in error.message.lower() for words in ONE_API_BAN_WORDS)
    )


def new_api_bans(status: int, error: ErrorObject) -> bool:
    """Whether new-api disables the channel."""
    return (
        status == 401
        or error.type in ONE_API_BAN_TYPES
        or error.code in NEW_API_BAN_CODES
        or any(words in error.message.lower() for words in NEW_API_BAN_WORDS)
    )


def one_api_retries(status: int) -> bool:
    """Whether one-api asks another channel."""
    return status == 429 or status // 100 == 5 or status not in (200, 400)


def new_api_retries(status: int) -> bool:
    """Whether new-api asks another channel."""
    return status in (307, 429) or (status // 100 == 5 and status not in (504, 524))
