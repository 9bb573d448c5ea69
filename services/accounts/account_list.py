"""The accounts of a pool, from a provider's settings and from a file of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from services.accounts.records import split_account
from services.accounts.vault import VaultError, hashed, read_private
from services.config.account_setting import AccountSetting
from services.core.models import Secret


class Account(msgspec.Struct, frozen=True):
    """An account of a pool. `id` stays the same as long as its token does, and shows nothing.

    `source` is where it comes from: the settings, or the store, where the admin API puts them.
    """

    id: str
    name: str
    token: Secret
    workspace: str | None
    weight: int
    concurrent: int
    source: Literal["settings", "store"] = "settings"


class AccountsError(Exception):
    """The accounts cannot be read; the text says where, and shows no token."""


def accounts_of(
    provider: str, settings: Sequence[AccountSetting], file: str = ""
) -> tuple[Account, ...]:
    """The accounts of `settings` and of `file`, each once. Raises `AccountsError`."""
    named = [*settings, *(_read(Path(file).expanduser()) if file else ())]
    accounts: dict[str, Account] = {}
    for place, setting in enumerate(named, start=1):
        account = account_of(provider, setting, setting.name or f"account {place}")
        accounts.setdefault(account.id, account)
    return tuple(accounts.values())


def account_of(pool: str, setting: AccountSetting, name: str) -> Account:
    """The account of `setting`, under `name`, in a pool."""
    token, workspace = split_account(setting.token.reveal())
    return Account(
        hashed("account", pool, token, setting.account or workspace or "")[:16],
        name,
        Secret(token),
        setting.account or workspace,
        setting.weight,
        setting.concurrent,
    )


def _read(path: Path) -> list[AccountSetting]:
    """A JSON list of what the settings hold, or a token a line; `#` begins a comment line."""
    try:
        text = read_private(path)
    except VaultError as exc:
        raise AccountsError(str(exc)) from None
    if not text.lstrip().startswith("["):
        lines = [line.strip() for line in text.splitlines()]
        return [AccountSetting(token=Secret(line)) for line in lines if line and line[0] != "#"]
    try:
        return [_setting(item) for item in json.loads(text)]
    except (ValueError, TypeError) as exc:
        position = f"line {exc.lineno}" if isinstance(exc, json.JSONDecodeError) else "an entry"
        raise AccountsError(f"{path}: {position} is not as it should be") from None


def _setting(item: object) -> AccountSetting:
    fields = {"token": item} if isinstance(item, str) else item
    return msgspec.convert(fields, AccountSetting, dec_hook=_secret)


def _secret(kind: type, raw: object) -> Secret:
    if kind is Secret and isinstance(raw, str) and raw:
        return Secret(raw)
    raise ValueError("expected non-empty text")
