"""What a worker has once, whichever settings serve, and what comes anew with each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from services.accounts import Credentials, open_vault
from services.config import Settings
from services.gateway import Gateway
from services.jobs import BackgroundQueue, Schedule
from services.keys import Gatekeeper, KeyBook, Ledger, UsageBook
from services.keys.limiter import LEASE_SECONDS
from services.keys.listed import ListedModels
from services.metrics import Metrics
from services.store import Store
from services.transport import Transport


class Serving(msgspec.Struct, frozen=True, eq=False):
    """What one application is made of, as far as the others need to know. `routes` are its URL
    rules.
    """

    settings: Settings
    routes: frozenset[str]
    gateway: Gateway
    credentials: Credentials
    schedule: Schedule
    upstreams: Transport

    def close(self) -> None:
        """After its last answer."""
        self.schedule.stop()
        self.upstreams.close()


class Lasting:
    """The store, the counters, the doorkeeper: shared by the applications that follow each other
    in a worker, so that nothing they know is lost between two.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises `VaultError` and, for a store's URL that cannot be, `ValueError`."""
        self.store = Store.from_settings(settings)
        self.store.probe()  # the log says at the start why it is away
        self.vault = open_vault(settings.server.folder, settings.store.secret_key)
        self.background = BackgroundQueue()
        self.metrics = Metrics(
            lambda: self.serving.routes,
            under_way=lambda: self.gatekeeper.under_way,
            accounts=lambda: (
                (a.provider, a.state) for a in self.serving.credentials.pools.accounts()
            ),
            store_is_up=lambda: self.store.status.state == "ok",
        )
        self.book, self.usage = KeyBook(self.store), UsageBook(self.store)
        self._listed = _Listed()
        ledger = Ledger(self.usage, self._listed, self.metrics.turns)
        self.gatekeeper = Gatekeeper(self.store, self.book, ledger, self.vault)
        self._writing = Schedule(self.store)
        self._writing.every(1.0, "count-usage", ledger.flush, everywhere=True)
        self._writing.every(1.0, "write-metrics", self.metrics.tick, everywhere=True)
        self._writing.every(
            LEASE_SECONDS / 6, "renew-leases", self.gatekeeper.renew_leases, everywhere=True
        )
        self._writing.start()
        self.problems = 0
        """In the configuration file as it is now, which is refused for them."""
        self._serving: Serving | None = None

    def write(self) -> None:
        """Write what the requests so far have left to be counted."""
        for name in self._writing.names:
            self._writing.run(name)

    def close(self) -> None:
        """At the end of the worker: write for a last time."""
        self._writing.stop()
        self.write()

    @property
    def serving(self) -> Serving:
        """Who answers the requests that come now."""
        assert self._serving is not None, "the first application is not made yet"
        return self._serving

    def begin(self, serving: Serving) -> None:
        """Nobody serves before the first application does."""
        if self._serving is None:
            self.use(serving)

    def use(self, serving: Serving) -> None:
        """From now on requests go there; it takes over what only this process knows."""
        if self._serving is not None:
            serving.credentials.carry_on(self._serving.credentials)
        self.book.of_settings = KeyBook(None, serving.settings.auth.keys).of_settings
        self._listed.now = ListedModels(lambda: (c.id for c in serving.gateway.models()))
        self._serving = serving
        self.metrics.forget_routes()


class _Listed(Collection[str]):
    """The models on offer, of whoever serves."""

    now: Collection[str] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.now

    def __iter__(self) -> Iterator[str]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)
