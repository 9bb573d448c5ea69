"""A gateway before pools of accounts, one of each kind, and the ways to spoil their accounts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import requests

from emulators.backend_api import BackendApi
from emulators.openai_compat import OpenAICompat
from tests.canaries import ADMIN_KEY, MARK
from tests.gateway import KEY, GatewayProcess, free_port, question

UP_TOKENS = (f"sk-first-{MARK}-0123456789", f"sk-second-0123456789-{MARK}")
WORDS = "Your credit balance is too low: permission denied, this account was deactivated."
RETRY_AFTER = 90
ALWAYS = 6
"""Accounts that one request may try."""
STATUSES = {"expired": 401, "unpaid": 402, "banned": 403, "quota": 429}


def settings_for(up: OpenAICompat, web: BackendApi) -> dict[str, Any]:
    """Pools of two accounts, two answers at a time each; one pool's upstream is gone."""
    tokens = [web.accounts[name].refresh_token for name in ("alice", "bob")]
    gone = {"prefix": "gone", "base_url": f"http://127.0.0.1:{free_port()}/v1"}
    return {
        "auth": {"keys": [KEY], "admin_key": ADMIN_KEY},
        "use_pandora_file_server": False,
        "upstream_base_url": web.url,
        "refresh_ToAccess": {"oauth_token_url": f"{web.url}/oauth/token", "oauth_client_id": "a"},
        "server": {"commit_window": 3, "keepalive_interval": 1, "connect_timeout": 2},
        "providers": {
            "backend_api": {"calls_per_minute": 0, "accounts": twice_at_once(tokens)},
            "custom": [
                {
                    "prefix": "up",
                    "base_url": up.base_url,
                    "models": ["emu-small"],
                    "accounts": twice_at_once(UP_TOKENS),
                },
                {**gone, "accounts": twice_at_once(UP_TOKENS)},
            ],
        },
    }


def twice_at_once(tokens: Sequence[str]) -> list[dict[str, Any]]:
    return [{"token": token, "concurrent": 2} for token in tokens]


class Pool:
    """One pool of the gateway; `name` as the admin API calls it."""

    def __init__(self, process: GatewayProcess, name: str, model: str) -> None:
        self.process = process
        self.name = name
        self.model = model

    def ask(self, said: str = "hello", *, stream: bool = False, **fields: Any) -> requests.Response:
        options = {"stream_options": {"include_usage": True}} if stream else {}
        body = question(said, self.model, stream=stream, **options, **fields)
        answer: requests.Response = self.process.post(body)
        return answer

    def begin(self, said: str) -> Iterator[bytes]:
        """The lines of a stream that has begun."""
        body = question(said, self.model, stream=True)
        answer = self.process.post(body, stream=True)
        assert answer.status_code == 200
        lines: Iterator[bytes] = answer.iter_lines(chunk_size=1)
        assert next(lines)
        return lines

    def admin(self, method: str, path: str) -> Any:
        answer = requests.request(
            method,
            f"{self.process.url}/admin/api/accounts{path}",
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
            timeout=10,
        )
        assert answer.ok, answer.text
        return answer.json()

    def accounts(self) -> list[dict[str, Any]]:
        return [a for a in self.admin("GET", "")["data"] if a["provider"] == self.name]

    def states(self) -> list[str]:
        return sorted(account["state"] for account in self.accounts())

    def each(self, action: str) -> None:
        """Do this to every account: reset or disable."""
        for account in self.accounts():
            self.admin("POST", f"/{account['id']}/{action}")

    def spoil(self, fault: str) -> None:
        """Have the upstream answer so to whichever account asks, until it is made well."""
        raise NotImplementedError

    def spoil_one(self) -> None:
        """Have the upstream know one account no more."""
        raise NotImplementedError

    def make_well(self) -> None:
        raise NotImplementedError

    def asked(self) -> int:
        """Chats that have reached the upstream."""
        raise NotImplementedError


class UpPool(Pool):
    """Keys of an OpenAI-compatible upstream."""

    slow = "#long:40 #tps:20"

    def __init__(self, process: GatewayProcess, up: OpenAICompat) -> None:
        super().__init__(process, "custom/up", "emu-small")
        self._up = up

    def spoil(self, fault: str) -> None:
        status = {"expired": 401, "unpaid": 402, "banned": 403, "quota": 429}[fault]
        error = {"message": WORDS, "type": "insufficient_quota", "code": "account_deactivated"}
        headers = {"Retry-After": str(RETRY_AFTER)} if status == 429 else {}
        entry = {"status": status, "body": {"error": error}, "headers": headers}
        self._up.script({**entry, "times": ALWAYS})

    def spoil_one(self) -> None:
        self._up.keys = frozenset(UP_TOKENS[1:])

    def overload(self) -> None:
        """It is the upstream that cannot, whoever asks."""
        headers = {"Retry-After": str(RETRY_AFTER)}
        self._up.script({"status": 503, "body": {"error": {"message": WORDS}}, "headers": headers})

    def spoil_in_the_middle(self) -> None:
        begun = json.dumps({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})
        error = json.dumps({"error": {"message": WORDS, "code": "account_deactivated"}})
        steps = [{"send": f"data: {begun}\n\n"}, {"pause": 0.1}, {"send": f"data: {error}\n\n"}]
        self._up.script({"steps": steps})

    def make_well(self) -> None:
        self._up.keys = frozenset()
        self._up.reset()

    def asked(self) -> int:
        return len(self._up.calls)


class WebPool(Pool):
    """Refresh tokens of a backend-api upstream."""

    slow = "#long[size=2000,events=60,delay=0.035]"

    def __init__(self, process: GatewayProcess, web: BackendApi) -> None:
        super().__init__(process, "backend_api", "gpt-4-s")
        self._web = web

    def spoil(self, fault: str) -> None:
        detail: dict[str, Any] = {"code": "account_deactivated", "message": WORDS}
        status = {"expired": 401, "unpaid": 402, "banned": 403, "quota": 429}[fault]
        if fault == "expired":
            detail["code"] = "token_expired"
        if fault == "quota":
            detail = {"code": "model_cap_exceeded", "message": WORDS, "clears_in": RETRY_AFTER}
        body = {"endpoint": "conversation", "status": status, "body": {"detail": detail}}
        self._web.script({**body, "times": 0})

    def spoil_one(self) -> None:
        """One access token is refused, and its refresh token with it."""
        self._web.revoke("alice")
        self._web.accounts["alice"].refresh_token = "rt-another"

    def spoil_in_the_middle(self) -> None:
        self._web.script("error_after_text")

    def spoil_the_refresh_endpoint(self, answer: dict[str, Any]) -> None:
        """No access token is good any more, and the way to another one answers so."""
        for name in ("alice", "bob"):
            self._web.revoke(name)
        self._web.script({"endpoint": "oauth_token", **answer, "times": 0})

    def make_well(self) -> None:
        state = self._web.state
        with state.lock:
            state.scripts.clear()
            state.revoked.clear()

    def asked(self) -> int:
        return len(self._web.calls("conversation"))
