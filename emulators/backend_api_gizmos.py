"""Gizmo info and workspaces of the `backend-api` emulator."""

from __future__ import annotations

from typing import Any

from .backend_api_visit import Visit


def gizmo_info(gizmo_id: str) -> dict[str, Any]:
    """What GET gizmos/<id> answers; the whole of it belongs in `conversation_mode.gizmo`."""
    short = "-".join(gizmo_id.split("-")[:2])
    return {
        "gizmo": {
            "id": short,
            "short_url": gizmo_id,
            "author": {"user_id": "user-emulated", "display_name": "Otter Works"},
            "display": {
                "name": f"Gizmo {gizmo_id}",
                "description": "Knows everything about otters",
                "prompt_starters": ["What do otters eat?"],
            },
            "tags": ["public"],
            "version": 3,
        },
        "tools": [{"id": "gzm_cnf_1~gzm_tool_1", "type": "browser", "settings": None}],
        "files": [],
    }


def show(visit: Visit) -> None:
    """GET gizmos/<id>: any id is known unless it contains `forbidden` (403) or `missing` (404)."""
    if visit.account() is None:
        return
    gizmo_id = visit.args["gizmo_id"]
    if "forbidden" in gizmo_id:
        visit.detail(403, "gizmo_forbidden", "You do not have access to this GPT.")
    elif "missing" in gizmo_id or not gizmo_id.startswith("g-"):
        visit.detail(404, "gizmo_not_found", "This GPT was not found.")
    else:
        visit.reply.json(200, visit.state.gizmos.get(gizmo_id) or gizmo_info(gizmo_id))


def check_accounts(visit: Visit) -> None:
    """GET accounts/check: the caller's workspaces with their plans, and which is the default."""
    account = visit.account()
    if account is None:
        return
    entries: dict[str, Any] = {
        key: {"account": {"account_id": key, "plan_type": plan, "is_deactivated": False}}
        for key, plan in account.workspaces.items()
    }
    visit.reply.json(200, {"accounts": entries, "account_ordering": list(entries)})
