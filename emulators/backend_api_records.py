"""The things the `backend-api` emulator keeps: accounts, files, conversations, calls."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

from .http_request import Request
from .http_server import Exchange

LIFETIME = 10 * 24 * 3600.0


@dataclass
class Account:
    """One user. `workspaces` maps an account id to its plan; the last access token is current."""

    name: str
    refresh_token: str
    workspaces: dict[str, str]
    access_tokens: list[str] = field(default_factory=list)
    rotations: int = 0

    @property
    def access_token(self) -> str:
        return self.access_tokens[-1]

    def issue(self, lifetime: float = LIFETIME) -> str:
        """A new access token, valid for `lifetime` seconds; negative: expired already."""
        now = int(time.time())
        serial = len(self.access_tokens) + 1
        claims = {"sub": self.name, "iat": now, "exp": now + int(lifetime), "jti": str(serial)}
        parts: tuple[dict[str, Any], ...] = ({"alg": "none", "typ": "JWT"}, claims)
        self.access_tokens.append(".".join(map(_base64url, parts)) + ".unsigned")
        return self.access_token


@dataclass
class StoredFile:
    """A blob. `refused` is the status its download link answers instead of 200."""

    file_id: str
    owner: str
    name: str
    content_type: str = "application/octet-stream"
    content: bytes = b""
    declared_size: int = 0
    use_case: str = ""
    stored: bool = False
    uploaded: bool = False
    refused: int = 0
    signature: str = ""


@dataclass
class Confirmation:
    """An action waiting for its `always_allow`; `scenario` names how the turn goes on."""

    target_message_id: str
    operation_hash: str
    scenario: str


@dataclass
class Conversation:
    """`sandbox` maps paths to file ids, `confirmations` message ids to waiting actions."""

    conversation_id: str
    owner: str
    temporary: bool = False
    hidden: bool = False
    messages: set[str] = field(default_factory=set)
    sandbox: dict[str, str] = field(default_factory=dict)
    confirmations: dict[str, Confirmation] = field(default_factory=dict)
    ticket: str = ""


@dataclass
class Call:
    """One request, its endpoint and what was wrong with it; `exchange` tells how it ended."""

    endpoint: str
    request: Request
    exchange: Exchange
    prefix: str = ""
    account: str = ""
    scenario: str = ""
    conversation_id: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """The decoded body, None where it is no JSON."""
        try:
            return self.request.json()
        except ValueError:
            return None

    def as_dict(self) -> dict[str, Any]:
        """For the control plane; bodies that are no text are given by their size."""
        body = self.json
        if body is None and self.request.body:
            body = self.request.body[:2000].decode("utf-8", "backslashreplace")
        return {
            "endpoint": self.endpoint,
            "method": self.request.method,
            "path": self.request.path,
            "query": self.request.query,
            "prefix": self.prefix,
            "headers": dict(self.request.headers),
            "size": len(self.request.body),
            "body": body,
            "account": self.account,
            "scenario": self.scenario,
            "conversation_id": self.conversation_id,
            "problems": self.problems,
            "status": self.exchange.status,
            "at": self.request.at,
            "finished_at": self.exchange.finished_at,
            "aborted_at": self.exchange.aborted_at,
        }


def expired(token: str) -> bool:
    claims = token.split(".")[1]
    padded = claims + "=" * (-len(claims) % 4)
    expiry: float = json.loads(base64.urlsafe_b64decode(padded))["exp"]
    return expiry < time.time()


def _base64url(value: dict[str, Any]) -> str:
    data = json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
