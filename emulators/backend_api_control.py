"""The control plane of the `backend-api` emulator, for tests in another process.

`GET /_ctl/log?endpoint=…`, `GET /_ctl/state`, `POST /_ctl/reset`, `POST /_ctl/script` (one entry
or a list of them) and `POST /_ctl/set`: `{"rotate_refresh": …, "temporary_download_status": …,
"revoke": [token, …], "expire": account}`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .backend_api_records import StoredFile
from .backend_api_scenarios import SCENES
from .backend_api_state import State
from .backend_api_visit import Visit


def log(visit: Visit) -> None:
    """The recorded calls, oldest first."""
    wanted = visit.request.param("endpoint")
    calls = list(visit.state.calls)
    visit.reply.json(200, [c.as_dict() for c in calls if wanted in ("", c.endpoint)])


def script(visit: Visit) -> None:
    """Queue answers; 400 for an unknown scenario."""
    entries = visit.request.json()
    entries = entries if isinstance(entries, list) else [entries]
    try:
        add_script(visit.state, entries)
    except ValueError as exc:
        visit.reply.json(400, {"error": str(exc)})
        return
    visit.reply.json(200, {"queued": len(entries)})


def add_script(state: State, entries: list[dict[str, Any]]) -> None:
    """Queue answers. Raises ValueError for an unknown scenario."""
    for entry in entries:
        if entry.get("scenario", "plain") not in SCENES:
            raise ValueError(f"no such scenario: {entry['scenario']}")
    state.script(*entries)


def change(visit: Visit) -> None:
    """Set switches, revoke or expire tokens."""
    wanted = visit.request.json()
    with visit.state.lock:
        for key in ("rotate_refresh", "temporary_download_status"):
            setattr(visit.state, key, wanted.get(key, getattr(visit.state, key)))
        visit.state.revoked.update(wanted.get("revoke", ()))
        if "expire" in wanted:
            visit.state.accounts[wanted["expire"]].access_tokens[:] = []
            visit.state.accounts[wanted["expire"]].issue(-60)
    visit.reply.json(200, {"ok": True})


def reset(visit: Visit) -> None:
    """Forget everything."""
    visit.state.reset()
    visit.reply.json(200, {"ok": True})


def show(visit: Visit) -> None:
    """Accounts with their tokens, files, conversations, counters, waiting scripts, problems."""
    state = visit.state
    with state.lock:
        body = {
            "accounts": {
                name: {**asdict(account), "access_token": account.access_token}
                for name, account in state.accounts.items()
            },
            "files": {key: _file(file) for key, file in state.files.items()},
            "conversations": {
                key: asdict(conversation) | {"messages": sorted(conversation.messages)}
                for key, conversation in state.conversations.items()
            },
            "counters": dict(state.counters),
            "scripts": {key: list(queue) for key, queue in state.scripts.items() if queue},
            "revoked": sorted(state.revoked),
            "problems": [problem for call in state.calls for problem in call.problems],
            "scenarios": sorted(SCENES),
        }
    visit.reply.json(200, body)


def _file(file: StoredFile) -> dict[str, Any]:
    fields = {key: value for key, value in vars(file).items() if key != "content"}
    return {**fields, "size": len(file.content)}
