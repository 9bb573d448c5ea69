"""Refresh endpoints (official JSON, form, bearer) and arkose tokens of the `backend-api` emulator.

Scripted answers besides the general ones: `400` (invalid_grant), `rotated` (this once), `no_token`
(200 without a token), `not_json` (200 with plain text).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from .backend_api_records import Account
from .backend_api_visit import Visit

INVALID_GRANT = {"error": "invalid_grant", "error_description": "Unknown or invalid refresh token."}


def official(visit: Visit) -> None:
    """POST /oauth/token: JSON with `grant_type`, `client_id`, `redirect_uri`, `refresh_token`."""
    body = visit.json_body()
    if body is None:
        return
    for key in ("client_id", "redirect_uri"):
        if not isinstance(body.get(key), str):
            visit.problem(f"{key} is missing")
    if body.get("grant_type") != "refresh_token":
        visit.problem("grant_type is not refresh_token")
    _refresh(visit, str(body.get("refresh_token", "")))


def form(visit: Visit) -> None:
    """POST /applelogin: form field `refresh_token`."""
    fields = parse_qs(visit.request.body.decode("utf-8", "replace"))
    _refresh(visit, fields.get("refresh_token", [""])[0])


def bearer(visit: Visit) -> None:
    """POST /ninja/refresh: no body, the refresh token as bearer."""
    if visit.request.body:
        visit.problem("a body was sent")
    _refresh(visit, visit.request.bearer)


def arkose(visit: Visit) -> None:
    """POST /arkose/<kind>/api/arkose/token: `kind` is ok, 500, empty or slow (3 s)."""
    if visit.request.body.decode("utf-8", "replace") != "type=gpt-4":
        visit.problem("the form is not type=gpt-4")
    kind = visit.args["kind"]
    if kind == "500":
        visit.reply.send(500, "no session")
    elif kind == "empty":
        visit.reply.json(200, {"token": ""})
    elif visit.reply.hang(3.0 if kind == "slow" else 0.0):
        token = f"arkose-{visit.state.new_uuid()}|r=emulated"
        visit.state.arkose_tokens.add(token)
        visit.reply.json(200, {"token": token})


def _refresh(visit: Visit, refresh_token: str) -> None:
    with visit.state.lock:
        status, body = _outcome(visit, refresh_token)
    if isinstance(body, str):
        visit.reply.send(status, body)
    else:
        visit.reply.json(status, body)


def _outcome(visit: Visit, refresh_token: str) -> tuple[int, dict[str, Any] | str]:
    answer = visit.entry.get("answer")
    accounts = visit.state.accounts.values()
    account = next((a for a in accounts if a.refresh_token == refresh_token), None)
    if account is None or answer == "400":
        return 400, INVALID_GRANT
    visit.call.account = account.name
    if answer == "no_token":
        return 200, {"message": "ok"}
    if answer == "not_json":
        return 200, "ok"
    lifetime = visit.entry.get("lifetime", 864000)
    body = {"access_token": account.issue(lifetime), "expires_in": lifetime, "token_type": "Bearer"}
    if answer == "rotated" or visit.state.rotate_refresh:
        body["refresh_token"] = _rotate(account)
    return 200, body


def _rotate(account: Account) -> str:
    account.rotations += 1
    account.refresh_token = f"rt-{account.name}-{account.rotations}"
    return account.refresh_token
