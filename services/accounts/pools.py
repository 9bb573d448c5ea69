"""The pools of all providers: the accounts of the settings, and those that were added since."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from services.accounts.account_list import Account, accounts_of
from services.accounts.added import AddedAccounts
from services.accounts.pool import AccountView, Pool
from services.accounts.vault import Vault
from services.config import Settings
from services.config.account_setting import AccountSetting
from services.core.errors import InvalidRequest, NotFound, Unavailable
from services.store import Store, StoreAway


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
        self._clock = clock
        self._added = AddedAccounts(store, vault)
        self._stored: dict[bytes, bytes] = {}
        self._pools = {name: self._pool(name, accounts) for name, accounts in of_settings.items()}

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
            for pool, entry in _entries(name, group):
                given = getattr(entry, "accounts", ())
                accounts[pool] = accounts_of(pool, given, getattr(entry, "accounts_file", ""))
        return cls(accounts, store, vault, clock)

    def of(self, name: str) -> Pool | None:
        """The pool of this name, if it has accounts."""
        pool = self._pools.get(name)
        return pool if pool else None

    def refresh(self) -> None:
        """Take up what was added or removed elsewhere. Raises `StoreAway`."""
        stored = self._added.read()
        if stored != self._stored:
            self._take_up(stored)

    def carry_on(self, before: Pools) -> None:
        """Know what `before` knows by itself: faults, and added accounts if the store cannot be
        asked for them.
        """
        if before._stored and not self._stored:
            self._take_up(before._stored)
        for name, pool in self._pools.items():
            if name in before._pools:
                pool.carry_on(before._pools[name])

    def accounts(self) -> list[AccountView]:
        """All accounts as they stand; while the store is away, as far as this process knows."""
        return [view for pool in self._pools.values() for view in pool.view()]

    def add(self, name: str, setting: AccountSetting) -> AccountView:
        """Add an account to the pool `name`; one that is there already is changed. The other
        workers hear of it within seconds. Raises `Unavailable` while the store is away.
        """
        try:
            account_id = self._added.put(name, setting)
            self.refresh()
        except StoreAway as exc:
            raise _away() from exc
        return self._view(account_id)

    def remove(self, account_id: str) -> AccountView:
        """Remove an account that was added; it as it stood. Raises `NotFound`, `InvalidRequest` for
        one of the settings, and `Unavailable` while the store is away.
        """
        view = self._view(account_id)
        if view.source != "store":
            raise InvalidRequest("this account is one of the settings: remove it there", param="id")
        try:
            self._added.drop(account_id)
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
        added = self._added.decrypted(stored)
        for name in {*self._pools, *added}:
            accounts = {a.id: a for a in (*added.get(name, ()), *self._of_settings.get(name, ()))}
            if name in self._pools:
                self._pools[name].use(tuple(accounts.values()))
            else:
                self._pools[name] = self._pool(name, tuple(accounts.values()))
        self._stored = stored

    def _pool(self, name: str, accounts: Sequence[Account]) -> Pool:
        return Pool(name, accounts, self._store, self._clock)

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


def _entries(name: str, group: object) -> list[tuple[str, object]]:
    """The pools that a provider's settings may describe, by name."""
    if isinstance(group, list | tuple):
        return [(f"{name}/{entry.prefix}", entry) for entry in group]
    return [(name, group)]


def _away() -> Unavailable:
    return Unavailable("the store is away: the other workers cannot be told")
