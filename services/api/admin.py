"""The admin API: keys, accounts, usage, settings and health, behind a key of its own.

Without `auth.admin_key` none of its routes exists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from services.api.admin_door import AdminDoor
from services.api.admin_operations import Operation, decode_query, describe
from services.api.admin_views import (
    AccountBook,
    AccountList,
    AccountView,
    CreatedKey,
    KeyList,
    KeyView,
    NewAccount,
    UsageList,
    account_view,
    key_view,
    masked,
)
from services.api.body import read_body
from services.config import Settings
from services.core.errors import InvalidRequest
from services.dialects.json_body import decode_json
from services.keys import KeyChanges, NewKey, UsageQuery, UsageStore
from services.keys.editor import KeyEditor

BASE = "/admin/api"
_NO_STORE = {"Cache-Control": "no-store"}


class Admin:
    """The operations' views. `pools` gives the names of the pools that there may be, `health` the
    report of the health route.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeyEditor,
        usage: UsageStore,
        accounts: AccountBook,
        pools: Callable[[], Collection[str]],
        health: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._usage = usage
        self._accounts = accounts
        self._pools = pools
        self._health = health

    def create_key(self, body: NewKey) -> CreatedKey:
        secret, record = self._keys.create(body)
        return CreatedKey(secret, key_view(record))

    def list_keys(self) -> KeyList:
        return KeyList(tuple(key_view(record) for record in self._keys.records()))

    def show_key(self, id: str) -> KeyView:
        return key_view(self._keys.get(id))

    def change_key(self, body: KeyChanges, id: str) -> KeyView:
        return key_view(self._keys.change(id, body))

    def revoke_key(self, id: str) -> KeyView:
        return key_view(self._keys.revoke(id))

    def list_accounts(self) -> AccountList:
        return AccountList(tuple(account_view(a) for a in self._accounts.accounts()))

    def add_account(self, body: NewAccount) -> AccountView:
        if body.provider not in self._pools():
            raise InvalidRequest(
                "no such provider takes accounts; those that do: "
                + (", ".join(sorted(self._pools())) or "none"),
                param="provider",
            )
        return account_view(self._accounts.add(body.provider, body.setting()))

    def remove_account(self, id: str) -> AccountView:
        return account_view(self._accounts.remove(id))

    def reset_account(self, id: str) -> AccountView:
        return account_view(self._accounts.reset(id))

    def disable_account(self, id: str) -> AccountView:
        return account_view(self._accounts.disable(id))

    def show_usage(self, query: UsageQuery) -> UsageList:
        rows = tuple(self._usage.rows(query))
        asked = {row.key for row in rows}
        names = {r.id: r.name for r in self._keys.records() if r.id in asked} if any(asked) else {}
        return UsageList(rows, names)

    def show_config(self) -> Any:
        return masked(self._settings)

    def show_health(self) -> Any:
        return self._health()

    def operations(self) -> tuple[Operation, ...]:
        key, account = "/keys/<id>", "/accounts/<id>"
        return (
            Operation("GET", "/keys", "List all keys", self.list_keys, KeyList),
            Operation(
                "POST", "/keys", "Make a key", self.create_key, CreatedKey, NewKey, status=201
            ),
            Operation("GET", key, "Show a key", self.show_key, KeyView),
            Operation("PATCH", key, "Change a key", self.change_key, KeyView, KeyChanges),
            Operation("DELETE", key, "Revoke a key", self.revoke_key, KeyView),
            Operation("GET", "/accounts", "List accounts", self.list_accounts, AccountList),
            Operation(
                "POST",
                "/accounts",
                "Add an account",
                self.add_account,
                AccountView,
                NewAccount,
                status=201,
            ),
            Operation("DELETE", account, "Remove an account", self.remove_account, AccountView),
            Operation(
                "POST", f"{account}/reset", "Back into service", self.reset_account, AccountView
            ),
            Operation(
                "POST", f"{account}/disable", "Out of service", self.disable_account, AccountView
            ),
            Operation(
                "GET", "/usage", "Sums by group", self.show_usage, UsageList, query=UsageQuery
            ),
            Operation("GET", "/config", "Settings without secrets", self.show_config, None),
            Operation("GET", "/health", "Health and its reasons", self.show_health, None),
        )


def blueprint(settings: Settings, admin: Admin) -> Blueprint:
    """The admin routes; none without an admin key."""
    door = AdminDoor(settings.auth.admin_key)
    bp = Blueprint("admin", __name__, url_prefix=BASE)
    if not door.exists:
        return bp
    operations = admin.operations()
    document = msgspec.json.encode(describe(operations, BASE))

    @bp.before_request
    def check() -> None:
        door.check(request.headers)

    @bp.get("/openapi.json")
    def openapi() -> Response:
        return Response(document, mimetype="application/json")

    for operation in operations:
        bp.add_url_rule(
            operation.path,
            endpoint=operation.name,
            view_func=_view(operation, settings),
            methods=[operation.method],
        )
    return bp


def _view(operation: Operation, settings: Settings) -> Callable[..., Response]:
    """Decode what the operation takes, call it, encode what it gives."""
    server = settings.server
    for kind in (operation.body, operation.query):
        if kind is not None:  # now, since msgspec may crash where threads are the first to use it
            msgspec.json.Decoder(kind)

    def view(**values: Any) -> Response:
        if operation.body is not None:
            body = read_body(request, server.slow_body_timeout)
            values["body"] = decode_json(body, operation.body)
        if operation.query is not None:
            values["query"] = decode_query(request.args.to_dict(), operation.query)
        answer = msgspec.json.encode(operation.view(**values))
        return Response(answer, operation.status, _NO_STORE, mimetype="application/json")

    return view
