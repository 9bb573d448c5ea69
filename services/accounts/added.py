"""Accounts added while the service runs: in the store, for all workers, encrypted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from services.accounts.account_list import Account, account_of
from services.accounts.vault import Vault
from services.config.account_setting import AccountSetting
from services.core.models import Secret
from services.store import Store

log = logging.getLogger(__name__)


class _Stored(msgspec.Struct):
    """An account as it lies in the store, once decrypted."""

    pool: str
    token: str
    workspace: str | None
    weight: int
    concurrent: int
    name: str


_STORED = msgspec.json.Decoder(_Stored)


class AddedAccounts:
    """Every method that asks the store raises `StoreAway`."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault
        self._name = store.key("accounts", "added")

    def read(self) -> dict[bytes, bytes]:
        """What lies there, by account id; the same as long as nothing changes."""
        found: Any = self._store.run(lambda c: c.hgetall(self._name))
        return dict(found)

    def decrypted(self, stored: Mapping[bytes, bytes]) -> dict[str, list[Account]]:
        """The accounts in it by pool. One that was encrypted with another key is left out."""
        pools: dict[str, list[Account]] = {}
        for name, text in sorted(stored.items()):
            try:
                record = _STORED.decode(self._vault.decrypt(text.decode()))
            except (ValueError, msgspec.DecodeError):
                log.warning("account unreadable account=%s: add it again", name.decode())
                continue
            account = Account(
                name.decode(),
                record.name or f"account {name.decode()[:4]}",
                Secret(record.token),
                record.workspace,
                record.weight,
                record.concurrent,
                "store",
            )
            pools.setdefault(record.pool, []).append(account)
        return pools

    def put(self, pool: str, setting: AccountSetting) -> str:
        """Add an account, or change the one that has this token; its id."""
        account = account_of(pool, setting, setting.name)
        record = _Stored(
            pool,
            account.token.reveal(),
            account.workspace,
            account.weight,
            account.concurrent,
            setting.name,
        )
        text = self._vault.encrypt(msgspec.json.encode(record).decode())
        self._store.run(lambda c: c.hset(self._name, account.id, text))
        return account.id

    def drop(self, account_id: str) -> bool:
        """Take an account out; whether it was there."""
        return bool(self._store.run(lambda c: c.hdel(self._name, account_id)))
