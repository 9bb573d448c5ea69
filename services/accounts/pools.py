"""The pools of all providers: the accounts of the settings, and those added while the service runs,
which lie encrypted in the store, for all workers.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.accounts.pool import Account, AccountView, Pool, account_of
from services.accounts.vault import Vault, VaultError, read_private
from services.config import Settings
from services.config.settings import AccountSetting
from services.core.errors import InvalidRequest, NotFound, Unavailable
from services.core.models import Secret
from services.store import Store, StoreAway

log = logging.getLogger(__name__)


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


class Pools:
    """The pools by name: the provider's, or `provider/prefix` where one provider has several.

    `of_settings` are those of the settings; `refresh` adds what lies in the store.
    """

    def __init__(
        self,
        of_settings: Mapping[str, Sequence[Account]],
        store: Store,
        vault: Vault,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._of_settings = dict(of_settings)
        self._store = store
        self._vault = vault
        self._clock = clock
        self._key = store.key("accounts", "added")
        self._stored: dict[bytes, bytes] = {}
        self._pools = {
            name: Pool(name, accounts, store, clock) for name, accounts in of_settings.items()
        }

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        store: Store,
        vault: Vault,
        clock: Callable[[], float] = time.time,
    ) -> Pools:
        """From `accounts` and `accounts_file` of each provider's settings, where they have such.

        Raises `AccountsError`.
        """
        accounts: dict[str, Sequence[Account]] = {}
        for name, group in settings.providers.items():
            entries = (
                [(f"{name}/{e.prefix}", e) for e in group]
                if isinstance(group, list | tuple)
                else [(name, group)]
            )
            for pool, entry in entries:
                given = getattr(entry, "accounts", ())
                accounts[pool] = accounts_of(pool, given, getattr(entry, "accounts_file", ""))
        return cls(accounts, store, vault, clock)

    def of(self, name: str) -> Pool | None:
        """The pool of this name, if it has accounts."""
        pool = self._pools.get(name)
        return pool if pool else None

    def refresh(self) -> None:
        """Take up what was added or removed elsewhere. Raises `StoreAway`."""
        stored: Any = self._store.run(lambda c: c.hgetall(self._key))
        if stored != self._stored:
            self._take_up(dict(stored))

    def accounts(self) -> list[AccountView]:
        """All accounts as they stand; while the store is away, as far as this process knows."""
        return [view for pool in self._pools.values() for view in pool.view()]

    def add(self, name: str, setting: AccountSetting) -> AccountView:
        """Add an account to the pool `name`; one that is there already is changed. The other
        workers hear of it within seconds. Raises `Unavailable` while the store is away.
        """
        account = account_of(name, setting, setting.name)
        record = _Stored(
            name,
            account.token.reveal(),
            account.workspace,
            account.weight,
            account.concurrent,
            setting.name,
        )
        text = self._vault.encrypt(msgspec.json.encode(record).decode())
        try:
            self._store.run(lambda c: c.hset(self._key, account.id, text))
            self.refresh()
        except StoreAway as exc:
            raise _away() from exc
        return self._view(account.id)

    def remove(self, account_id: str) -> AccountView:
        """Remove an account that was added; it as it stood. Raises `NotFound`, `InvalidRequest` for
        one of the settings, and `Unavailable` while the store is away.
        """
        view = self._view(account_id)
        if view.source != "store":
            raise InvalidRequest("this account is one of the settings: remove it there", param="id")
        try:
            self._store.run(lambda c: c.hdel(self._key, account_id))
            self.refresh()
        except StoreAway as exc:
            raise _away() from exc
        return view

    def reset(self, account_id: str) -> AccountView:
        """Back into service, faults forgotten. Raises `NotFound`, and `Unavailable` while the
        store is away and other workers cannot be told.
        """
        return self._changed(account_id, Pool.reset)

    def disable(self, account_id: str) -> AccountView:
        """Out of service until it is reset. Raises as `reset`."""
        return self._changed(account_id, Pool.disable)

    def extend_open(self) -> None:
        """Raises `StoreAway`."""
        for pool in self._pools.values():
            pool.extend_open()

    def _take_up(self, stored: dict[bytes, bytes]) -> None:
        added = self._decrypted(stored)
        for name in {*self._pools, *added}:
            accounts = {a.id: a for a in (*added.get(name, ()), *self._of_settings.get(name, ()))}
            if name in self._pools:
                self._pools[name].use(tuple(accounts.values()))
            else:
                self._pools[name] = Pool(name, tuple(accounts.values()), self._store, self._clock)
        self._stored = stored

    def _decrypted(self, stored: Mapping[bytes, bytes]) -> dict[str, list[Account]]:
        """The added accounts by pool. One that was encrypted with another key is left out."""
        pools: dict[str, list[Account]] = {}
        for key, text in sorted(stored.items()):
            name = key.decode()
            try:
                record = _STORED.decode(self._vault.decrypt(text.decode()))
            except (ValueError, msgspec.DecodeError):
                log.warning("account unreadable account=%s: add it again", name)
                continue
            account = Account(
                name,
                record.name or f"account {name[:4]}",
                Secret(record.token),
                record.workspace,
                record.weight,
                record.concurrent,
                "store",
            )
            pools.setdefault(record.pool, []).append(account)
        return pools

    def _changed(self, account_id: str, change: Callable[[Pool, str], bool]) -> AccountView:
        if not change(self._pool_with(account_id), account_id):
            raise _away()
        return self._view(account_id)

    def _view(self, account_id: str) -> AccountView:
        views = self._pool_with(account_id).view()
        return next(view for view in views if view.id == account_id)

    def _pool_with(self, account_id: str) -> Pool:
        for pool in self._pools.values():
            if account_id in pool:
                return pool
        raise NotFound("there is no such account", param="id")


class _Stored(msgspec.Struct):
    """An added account as it lies in the store, once decrypted."""

    pool: str
    token: str
    workspace: str | None
    weight: int
    concurrent: int
    name: str


_STORED = msgspec.json.Decoder(_Stored)


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
        return [
            msgspec.convert(
                {"token": item} if isinstance(item, str) else item, AccountSetting, dec_hook=_secret
            )
            for item in json.loads(text)
        ]
    except (ValueError, TypeError) as exc:
        position = f"line {exc.lineno}" if isinstance(exc, json.JSONDecodeError) else "an entry"
        raise AccountsError(f"{path}: {position} is not as it should be") from None


def _secret(kind: type, raw: object) -> Secret:
    if kind is Secret and isinstance(raw, str) and raw:
        return Secret(raw)
    raise ValueError("expected non-empty text")


def _away() -> Unavailable:
    return Unavailable("the store is away: the other workers cannot be told")
