"""What the admin API shows and takes, and the accounts it is handed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from services.config.kinds import hide_url_secrets
from services.core.errors import NotFound
from services.core.models import Secret
from services.keys import KeyRecord, Limits, UsageRow


class Account(Protocol):
    """An upstream account, without its secrets.

    `state` is such as "ready", "cooling" or "disabled"; `reason` says why, in neutral words;
    `until` is when that ends by itself, in epoch seconds.
    """

    @property
    def id(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def until(self) -> float | None: ...


class AccountBook(Protocol):
    """The accounts of all providers. Those that change one raise `Unavailable` while the store is
    away.
    """

    def accounts(self) -> Sequence[Account]: ...

    def reset(self, account_id: str) -> Account:
        """Back into service, failures forgotten. Raises `NotFound`."""
        ...

    def disable(self, account_id: str) -> Account:
        """Out of service until it is reset. Raises `NotFound`."""
        ...


class NoAccounts:
    """The account book of a service without accounts."""

    def accounts(self) -> Sequence[Account]:
        return ()

    def reset(self, account_id: str) -> Account:
        raise NotFound("there is no such account", param="id")

    disable = reset


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


def account_view(account: Account) -> AccountView:
    return AccountView(
        account.id, account.provider, account.name, account.state, account.reason, account.until
    )


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
