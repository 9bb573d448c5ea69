"""One call to the `backend-api` emulator while it is being answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .backend_api_records import Account, Call
from .backend_api_state import Entry, State
from .http_server import Reply, Request

HTML_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head>"
    '<body><h1>Access denied</h1><p id="ray">Ray 84f0</p></body></html>\n'
)
HTML_TYPE = "text/html; charset=UTF-8"
TOKEN_EXPIRED = {
    "detail": {
        "message": "Could not parse your authentication token. Please try signing in again.",
        "type": "invalid_request_error",
        "param": None,
        "code": "token_expired",
    }
}


@dataclass
class Visit:
    """`args` are parts of the path, `entry` the scripted answer, `base` this server's address."""

    state: State
    request: Request
    reply: Reply
    call: Call
    base: str
    args: dict[str, str] = field(default_factory=dict)
    entry: Entry = field(default_factory=dict)

    def account(self) -> Account | None:
        """The caller; answers 401 and gives None where the bearer is no valid access token."""
        account = self.state.account_of(self.request.bearer)
        if account is None:
            self.reply.json(401, TOKEN_EXPIRED)
            return None
        self.call.account = account.name
        return account

    def problem(self, text: str) -> None:
        """Note something a client should not have sent."""
        self.call.problems.append(text)

    def detail(self, status: int, code: str, message: str) -> None:
        """The upstream's usual error body."""
        self.reply.json(status, {"detail": {"code": code, "message": message}})

    def json_body(self) -> dict[str, Any] | None:
        """The request's JSON object; answers 422 and gives None where it is none."""
        body = self.call.json
        if isinstance(body, dict):
            return body
        self.problem("the body is no JSON object")
        self.reply.json(422, {"detail": [{"loc": ["body"], "msg": "value is not a valid dict"}]})
        return None


def answered_by_script(visit: Visit) -> bool:
    """Whether the scripted entry gave the answer.

    Keys: `delay` seconds first; `answer` html, timeout (hangs `seconds`, default 60, then cuts),
    cut, reset; or `status` with `body` (text or JSON) and `content_type`. Other names are the
    endpoint's own.
    """
    entry, reply = visit.entry, visit.reply
    if not reply.hang(entry.get("delay", 0)):
        return True
    match entry.get("answer"):
        case "html":
            reply.send(entry.get("status", 403), HTML_PAGE, content_type=HTML_TYPE)
        case "timeout":
            if reply.hang(entry.get("seconds", 60)):
                reply.cut()
        case "cut":
            reply.cut()
        case "reset":
            reply.reset()
        case _ if "status" in entry:
            _send_scripted(reply, entry)
        case _:
            return False
    return True


def _send_scripted(reply: Reply, entry: Entry) -> None:
    body = entry.get("body", {"detail": "scripted answer"})
    if isinstance(body, str):
        reply.send(entry["status"], body, content_type=entry.get("content_type", "text/plain"))
    else:
        reply.json(entry["status"], body)
