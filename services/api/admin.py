"""The admin API: keys, accounts, usage, settings and health, behind a key of its own.

Without `auth.admin_key` none of its routes exists.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response, request
from msgspec import Meta
from werkzeug.datastructures import Headers

from services.accounts import pool
from services.accounts.pools import Pools
from services.api.auth import presented_credential
from services.api.body import read_body
from services.api.openapi import Operation, decode_query, describe
from services.config import Settings
from services.config.settings import AccountSetting, hide_url_secrets
from services.core.errors import InvalidRequest, Unauthorized
from services.core.models import Secret
from services.dialects.json_body import decode_json
from services.keys import KeyChanges, KeyRecord, Limits, NewKey, UsageQuery, UsageRow, UsageStore
from services.keys.editor import KeyEditor

BASE = "/admin/api"
_NO_STORE = {"Cache-Control": "no-store"}


class AdminDoor:
    """Checks the admin key, sent as `Authorization: Bearer KEY` like any other."""

    def __init__(self, key: Secret | None) -> None:
        self._digest = _digest(key.reveal()) if key is not None else None

    @property
    def exists(self) -> bool:
        return self._digest is not None

    def check(self, headers: Headers) -> None:
        """Raise `Unauthorized` unless the headers carry the admin key; takes the same time
        whatever they carry.
        """
        presented = _digest(presented_credential(headers))
        if self._digest is None or not hmac.compare_digest(presented, self._digest):
            raise Unauthorized("this needs the admin key, as Authorization: Bearer KEY")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class KeyView(msgspec.Struct, frozen=True):
    """A key as the operator sees it. `key` is masked; `provider_keys` names providers only."""

    id: str
    name: str
    key: str
    source: str
    created: float
    revoked: float | None
    limits: Limits
    models: tuple[str, ...]
    profile: str
    always_usage: bool
    provider_keys: tuple[str, ...]


class CreatedKey(msgspec.Struct, frozen=True):
    """A new key: `secret` is the key itself, which is shown this once."""

    secret: str
    key: KeyView


class KeyList(msgspec.Struct, frozen=True):
    data: tuple[KeyView, ...]


class AccountView(msgspec.Struct, frozen=True):
    """An upstream account. `until` is in epoch seconds."""

    id: str
    provider: str
    name: str
    state: str
    reason: str
    until: float | None
    source: str


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An account to add. `provider` is such as "backend_api" or "custom/relay"; `token` is a
    refresh token, access token or key of the upstream; the rest is as in the settings.
    """

    provider: Annotated[str, Meta(min_length=1, max_length=200)]
    token: Annotated[str, Meta(min_length=1, max_length=16_384)]
    name: Annotated[str, Meta(max_length=100)] = ""
    account: Annotated[str, Meta(max_length=200)] = ""
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    concurrent: Annotated[int, Meta(ge=0, le=10_000)] = 0

    def setting(self) -> AccountSetting:
        values = msgspec.structs.asdict(self) | {"token": Secret(self.token)}
        del values["provider"]
        return AccountSetting(**values)


class AccountList(msgspec.Struct, frozen=True):
    data: tuple[AccountView, ...]


class UsageList(msgspec.Struct, frozen=True):
    """`names` gives the names of the keys in `data`."""

    data: tuple[UsageRow, ...]
    names: dict[str, str]


def key_view(record: KeyRecord) -> KeyView:
    prefix = "sk-cw-" if record.source == "store" else ""
    return KeyView(
        id=record.id,
        name=record.name,
        key=f"{prefix}…{record.hint}",
        source=record.source,
        created=record.created,
        revoked=record.revoked,
        limits=record.limits,
        models=record.models,
        profile=record.profile,
        always_usage=record.always_usage,
        provider_keys=tuple(sorted(record.provider_keys)),
    )


def account_view(account: pool.AccountView) -> AccountView:
    return msgspec.convert(account, AccountView, from_attributes=True)


def masked(value: Any) -> Any:
    """Settings as JSON values, secrets and the secret parts of URLs left out."""
    if isinstance(value, Secret):
        return repr(value)
    if isinstance(value, str):
        return hide_url_secrets(value)
    if isinstance(value, msgspec.Struct):
        return {name: masked(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(name): masked(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [masked(item) for item in value]
    return value


class Admin:
    """The operations' views. `pools` gives the names of the pools that there may be, `health` the
    report of the health route.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeyEditor,
        usage: UsageStore,
        accounts: Pools,
        pools: Callable[[], Collection[str]],
        health: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._usage = usage
        self._accounts = accounts
        self._pools = pools
        self._health = health

    def operations(self) -> tuple[Operation, ...]:
        key, account = "/keys/<id>", "/accounts/<id>"
        return (
            Operation("GET", "/keys", self.list_keys),
            Operation("POST", "/keys", self.create_key, 201),
            Operation("GET", key, self.show_key),
            Operation("PATCH", key, self.change_key),
            Operation("DELETE", key, self.revoke_key),
            Operation("GET", "/accounts", self.list_accounts),
            Operation("POST", "/accounts", self.add_account, 201),
            Operation("DELETE", account, self.remove_account),
            Operation("POST", f"{account}/reset", self.reset_account),
            Operation("POST", f"{account}/disable", self.disable_account),
            Operation("GET", "/usage", self.show_usage),
            Operation("GET", "/config", self.show_config),
            Operation("GET", "/health", self.show_health),
        )

    def list_keys(self) -> KeyList:
        """List all keys"""
        return KeyList(tuple(key_view(record) for record in self._keys.records()))

    def create_key(self, body: NewKey) -> CreatedKey:
        """Make a key"""
        secret, record = self._keys.create(body)
        return CreatedKey(secret, key_view(record))

    def show_key(self, id: str) -> KeyView:
        """Show a key"""
        return key_view(self._keys.get(id))

    def change_key(self, body: KeyChanges, id: str) -> KeyView:
        """Change a key"""
        return key_view(self._keys.change(id, body))

    def revoke_key(self, id: str) -> KeyView:
        """Revoke a key"""
        return key_view(self._keys.revoke(id))

    def list_accounts(self) -> AccountList:
        """List accounts"""
        return AccountList(tuple(account_view(a) for a in self._accounts.accounts()))

    def add_account(self, body: NewAccount) -> AccountView:
        """Add an account"""
        if body.provider not in self._pools():
            raise InvalidRequest(
                "no such provider takes accounts; those that do: "
                + (", ".join(sorted(self._pools())) or "none"),
                param="provider",
            )
        return account_view(self._accounts.add(body.provider, body.setting()))

    def remove_account(self, id: str) -> AccountView:
        """Remove an account"""
        return account_view(self._accounts.remove(id))

    def reset_account(self, id: str) -> AccountView:
        """Back into service"""
        return account_view(self._accounts.reset(id))

    def disable_account(self, id: str) -> AccountView:
        """Out of service"""
        return account_view(self._accounts.disable(id))

    def show_usage(self, query: UsageQuery) -> UsageList:
        """Sums by group"""
        rows = tuple(self._usage.rows(query))
        asked = {row.key for row in rows}
        names = {r.id: r.name for r in self._keys.records() if r.id in asked} if any(asked) else {}
        return UsageList(rows, names)

    def show_config(self) -> Any:
        """Settings without secrets"""
        return masked(self._settings)

    def show_health(self) -> Any:
        """Health and its reasons"""
        return self._health()


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
    body_kind, query_kind = operation.kind("body"), operation.kind("query")
    for kind in (body_kind, query_kind):
        if kind is not None:  # now, since msgspec may crash where threads are the first to use it
            msgspec.json.Decoder(kind)

    def view(**values: Any) -> Response:
        if body_kind is not None:
            body = read_body(request, settings.server.slow_body_timeout)
            values["body"] = decode_json(body, body_kind)
        if query_kind is not None:
            values["query"] = decode_query(request.args.to_dict(), query_kind)
        answer = msgspec.json.encode(operation.view(**values))
        return Response(answer, operation.status, _NO_STORE, mimetype="application/json")

    return view
