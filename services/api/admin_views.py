"""What the admin API shows and takes, and the accounts it is handed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from services.config.settings import AccountSetting, hide_url_secrets
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
    @property
    def source(self) -> str: ...


class AccountBook(Protocol):
    """The accounts of all providers. Those that change one raise `Unavailable` while the store is
    away.
    """

    def accounts(self) -> Sequence[Account]: ...

    def add(self, name: str, setting: AccountSetting) -> Account:
        """Add an account to a pool, or change it there."""
        ...

    def remove(self, account_id: str) -> Account:
        """Remove one that was added. Raises `NotFound`, and `InvalidRequest` for another."""
        ...

    def reset(self, account_id: str) -> Account:
        """Back into service, failures forgotten. Raises `NotFound`."""
        ...

    def disable(self, account_id: str) -> Account:
        """Out of service until it is reset. Raises `NotFound`."""
        ...


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
        return AccountSetting(
            token=Secret(self.token),
            account=self.account,
            weight=self.weight,
            concurrent=self.concurrent,
            name=self.name,
        )


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
        account.id,
        account.provider,
        account.name,
        account.state,
        account.reason,
        account.until,
        account.source,
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
