"""A refresh token in, an access token out: one exchange for all processes, however many ask.

Known tokens come from memory, then from the store. Whoever finds none there takes a lock in the
store and exchanges; the others wait for what comes of it. A refresh token that the endpoint
replaced is stored before the access token that came with it is used, and found again by the one
its owner has. While the store is away each process helps itself.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from services.accounts.token_endpoint import Refresher, TokenFailure
from services.accounts.token_store import (
    Found,
    TokenFiles,
    TokenRecord,
    TokenStore,
    is_access_token,
    record_of,
)
from services.accounts.vault import hashed
from services.core.models import Secret
from services.store import StoreAway

log = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY_SECONDS = 60.0
LOCK_SECONDS = 20.0
"""Longer than any exchange may take; a holder that dies holds up the others no longer."""
PATIENCE = 25.0
FORCED_EVERY = 30.0
"""Seconds in which an access token that the upstream refuses is replaced once, not for ever."""
_FIRST_NAP, _LONGEST_NAP = 0.05, 0.4
_EARLIEST, _LATEST = 0.80, 0.95
"""The part of a token's time after which it is renewed: spread, so that many do not meet."""
IDLE_AFTER = 30 * 86400.0
RETRY_AFTER = 300.0
LONGEST_RUN = 10.0
"""Seconds after which a run leaves the rest to the next one: a worker that ends waits for it."""
_BATCH = 50
MOST_REMEMBERED = 20_000


class TokenManager:
    """Access tokens for refresh tokens. One per worker, shared by all its requests."""

    def __init__(
        self,
        store: TokenStore,
        refresher: Refresher,
        files: TokenFiles,
        *,
        clock: Callable[[], float] = time.time,
        memory_seconds: float = MEMORY_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
        patience: float = PATIENCE,
        on_exchange: Callable[[bool], None] = lambda ok: None,
    ) -> None:
        self._store = store
        self._refresher = refresher
        self._files = files
        self._clock = clock
        self._lock_seconds = lock_seconds
        self._patience = patience
        self._on_exchange = on_exchange
        self._memory = TokenMemory(memory_seconds)
        self._locks = NamedLocks()

    def access(self, token: Secret, not_this: Secret | None = None) -> Secret:
        """The access token for `token`, which may be one itself.

        `not_this` is one that the upstream has just refused: get another. Raises `TokenFailure`.
        """
        text = token.reveal()
        if is_access_token(text):
            return token
        refused = not_this.reveal() if not_this is not None else None
        digest = self._memory.root(hashed(text))
        now = self._clock()
        known = self._memory.fresh(digest, now)
        if known is None or not known.serves(now, refused):
            with self._locked(digest):
                known = self._obtain(digest, token, refused)
        self._memory.note_used(self._memory.root(digest), now)
        return Secret(known.access)

    def renew(self, digest: str) -> None:
        """Exchange a known token ahead of its time, unless somebody is at it.

        Raises `TokenFailure` and `StoreAway`.
        """
        with self._locked(digest):
            found = self._store.find_and_lock(digest, self._lock_seconds)
            if found.owner is None:
                return
            try:
                if found.record is None or not found.record.refresh:
                    self._store.postpone(digest, None)
                else:
                    self._exchange(digest, Secret(found.record.refresh), found.record)
            finally:
                self._release(digest, found.owner)

    def save_missed(self) -> None:
        """Give the store what it missed while it was away, and tell it which tokens are used.

        Raises `StoreAway`; what is not saved then is kept for the next time.
        """
        self._save_unsaved()
        self._store.note_used(self._memory.take_used())

    @contextlib.contextmanager
    def _locked(self, digest: str) -> Iterator[None]:
        try:
            with self._locks.hold(digest, self._patience):
                yield
        except TimeoutError:
            raise TokenFailure("busy", 1.0) from None

    def _obtain(self, digest: str, token: Secret, refused: str | None) -> TokenRecord:
        """It is our turn in this process: what came before us may have settled it."""
        now = self._clock()
        known = self._memory.fresh(digest, now)
        if known is not None and known.serves(now, refused):
            return known
        failure = self._memory.failure(digest, now)
        if failure is not None:
            raise failure
        try:
            return self._obtain_with_all(digest, token, refused)
        except StoreAway:
            return self._obtain_alone(digest, token, refused)

    def _obtain_with_all(self, digest: str, token: Secret, refused: str | None) -> TokenRecord:
        """From the store, or by an exchange in turn with all other processes."""
        self._save_unsaved()
        found = self._store.find(digest)
        if found.record is not None and found.record.root:
            self._memory.learn_root(digest, found.record.root)
            digest = found.record.root
            found = self._store.find(digest)
        record = self._settled(digest, found, refused)
        if record is not None:
            return record
        deadline = time.monotonic() + self._patience
        nap = _FIRST_NAP
        while time.monotonic() < deadline:
            record = self._try_in_turn(digest, token, refused)
            if record is not None:
                return record
            time.sleep(nap * random.uniform(0.7, 1.3))  # noqa: S311  # only spreads them
            nap = min(1.5 * nap, _LONGEST_NAP)
        raise TokenFailure("busy", 1.0)

    def _try_in_turn(self, digest: str, token: Secret, refused: str | None) -> TokenRecord | None:
        """Look again, and exchange if it falls to us; None while somebody else is at it."""
        found = self._store.find_and_lock(digest, self._lock_seconds)
        try:
            record = self._settled(digest, found, refused)
            if record is None and found.owner is not None:
                known = _newer(found.record, self._memory.any(digest))
                record = self._exchange_for_caller(digest, token, known, refused)
            return record
        finally:
            if found.owner is not None:
                self._release(digest, found.owner)

    def _obtain_alone(self, digest: str, token: Secret, refused: str | None) -> TokenRecord:
        """Without the store: from memory, however old, or what a worker of this machine has got,
        or by an exchange of our own.
        """
        known = self._memory.any(digest)
        if known is not None and known.serves(self._clock(), refused):
            return known
        with self._files.locked(digest, self._patience):
            known = _newer(self._files.read(digest), known)
            if known is not None and known.serves(self._clock(), refused):
                self._memory.hold(digest, known, self._clock())
                return known
            return self._exchange_for_caller(digest, token, known, refused)

    def _settled(self, digest: str, found: Found, refused: str | None) -> TokenRecord | None:
        """The record if it serves, None if an exchange is needed. Raises a failure just had."""
        now = self._clock()
        own = self._memory.any(digest)
        record = _newer(found.record, own)
        if record is not None and record.serves(now, refused):
            if record is own and record != found.record:  # the store has lost it
                self._save(digest, record, now)
            self._memory.hold(digest, record, now)
            return record
        if found.failure is not None:
            raise found.failure
        return None

    def _exchange_for_caller(
        self, digest: str, token: Secret, known: TokenRecord | None, refused: str | None
    ) -> TokenRecord:
        """Exchange the newest token of this line; have nobody repeat what fails."""
        now = self._clock()
        forced = known is not None and known.access != "" and known.access == refused
        if known is not None and forced and now - known.forced < FORCED_EVERY:
            raise TokenFailure("refused", FORCED_EVERY)  # a fresh one was refused as well
        newest = Secret(known.refresh) if known is not None and known.refresh else token
        try:
            return self._exchange(digest, newest, known, now if forced else None, used=now)
        except TokenFailure as failure:
            if failure.reason != "unconfigured":
                self._memory.note_failure(digest, failure, now)
                with contextlib.suppress(StoreAway):
                    self._store.save_failure(digest, failure)
            raise

    def _exchange(
        self,
        digest: str,
        newest: Secret,
        known: TokenRecord | None,
        forced: float | None = None,
        used: float | None = None,
    ) -> TokenRecord:
        """The one place where a refresh token is spent. Raises `TokenFailure`."""
        before = known.forced if known is not None else 0.0
        try:
            granted = self._refresher.exchange(newest)
        except TokenFailure as failure:
            log.warning("token exchange failed token=%s reason=%s", newest, failure.reason)
            if failure.reason != "unconfigured":
                self._on_exchange(False)
            raise
        self._on_exchange(True)
        now = self._clock()
        record = record_of(granted, newest, now, before if forced is None else forced)
        log.info("token exchanged token=%s rotated=%s", newest, granted.refresh is not None)
        self._memory.hold(digest, record, now)
        try:
            self._save(digest, record, used)
        except StoreAway:
            self._files.write(digest, record)
        if not record.serves(now):
            raise TokenFailure("nonsense")
        return record

    def _save(self, digest: str, record: TokenRecord, used: float | None) -> None:
        name = hashed(record.refresh)
        aliases = () if name == digest else (name,)
        part = random.uniform(_EARLIEST, _LATEST)  # noqa: S311  # only spreads them
        due = record.issued + part * (record.until - record.issued)
        self._store.save(digest, record, aliases, due, used)

    def _save_unsaved(self) -> None:
        """Give the store what it missed. Raises `StoreAway`; what is not saved then stays."""
        for digest in self._files.names():
            with self._files.locked(digest, self._patience):
                record = self._files.read(digest)
                if record is not None:
                    stored = self._store.find(digest).record
                    if stored is None or stored.issued < record.issued:
                        self._save(digest, record, None)
                self._files.remove(digest)

    def _release(self, digest: str, owner: str) -> None:
        with contextlib.suppress(StoreAway):
            self._store.release(digest, owner)


def _newer(stored: TokenRecord | None, own: TokenRecord | None) -> TokenRecord | None:
    """Our own record counts only if it is newer than the store's, which may have lost its data."""
    if stored is None or own is None:
        return stored or own
    return own if own.issued > stored.issued else stored


class Renewal:
    """The scheduled job: `run` renews what is due."""

    def __init__(
        self, tokens: TokenManager, store: TokenStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._tokens = tokens
        self._store = store
        self._clock = clock

    def run(self) -> int:
        """Renew all that is due; how many were. Raises `StoreAway`."""
        ends = time.monotonic() + LONGEST_RUN
        renewed = 0
        tried: set[str] = set()
        while time.monotonic() < ends:
            digests = self._store.due(self._clock(), _BATCH)
            if tried.issuperset(digests):  # nothing left but what others are at
                break
            tried.update(digests)
            used = self._store.last_used(digests)
            for digest, when in zip(digests, used, strict=True):
                if time.monotonic() < ends:
                    renewed += self._renew(digest, when)
        return renewed

    def _renew(self, digest: str, used: float | None) -> bool:
        now = self._clock()
        if used is not None and now - used > IDLE_AFTER:
            self._store.postpone(digest, None)
            return False
        try:
            self._tokens.renew(digest)
        except TokenFailure as failure:
            again = now + RETRY_AFTER * random.uniform(1.0, 1.5)  # noqa: S311  # only spreads
            self._store.postpone(digest, None if failure.is_the_tokens else again)
            return False
        return True


class _Held(msgspec.Struct, frozen=True):
    """`fresh_until`: when to ask the store again, which may know something newer."""

    record: TokenRecord
    fresh_until: float


class TokenMemory:
    """Records and failures by digest. All times are epoch seconds by the caller's clock."""

    def __init__(self, fresh_seconds: float) -> None:
        self._fresh = fresh_seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._failed: OrderedDict[str, tuple[TokenFailure, float]] = OrderedDict()
        self._roots: OrderedDict[str, str] = OrderedDict()
        self._used: dict[str, float] = {}

    def fresh(self, digest: str, now: float) -> TokenRecord | None:
        """The record, if it was read or made a short while ago."""
        held = self._held.get(digest)
        return held.record if held is not None and now < held.fresh_until else None

    def any(self, digest: str) -> TokenRecord | None:
        """The record, however old."""
        held = self._held.get(digest)
        return held.record if held is not None else None

    def hold(self, digest: str, record: TokenRecord, now: float) -> None:
        """Remember `record`; a failure before it is over."""
        with self._lock:
            self._failed.pop(digest, None)
            _put(self._held, digest, _Held(record, now + self._fresh))

    def root(self, digest: str) -> str:
        """The name under which this token's line is kept: its own, or that of its first."""
        return self._roots.get(digest, digest)

    def learn_root(self, digest: str, root: str) -> None:
        with self._lock:
            _put(self._roots, digest, root)

    def failure(self, digest: str, now: float) -> TokenFailure | None:
        """The failure within the last seconds, as a new exception."""
        failure, until = self._failed.get(digest, (None, 0.0))
        if failure is None or now >= until:
            return None
        return TokenFailure(failure.reason, until - now)

    def note_failure(self, digest: str, failure: TokenFailure, now: float) -> None:
        with self._lock:
            _put(self._failed, digest, (failure, now + failure.retry_after))

    def note_used(self, digest: str, now: float) -> None:
        self._used[digest] = now

    def take_used(self) -> dict[str, float]:
        """Which tokens were used since the last time, and when."""
        with self._lock:
            used, self._used = self._used, {}
        return used


def _put(memory: OrderedDict[str, T], name: str, value: T) -> None:
    memory[name] = value
    memory.move_to_end(name)
    while len(memory) > MOST_REMEMBERED:
        memory.popitem(last=False)


class _Lock:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.interested = 0


class NamedLocks:
    """Locks by name; a name that nobody waits for takes no memory."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, _Lock] = {}

    @contextlib.contextmanager
    def hold(self, name: str, patience: float) -> Iterator[None]:
        """Hold the lock of `name`. Raises `TimeoutError` after `patience` seconds without it."""
        with self._guard:
            entry = self._locks.setdefault(name, _Lock())
            entry.interested += 1
        try:
            if not entry.lock.acquire(timeout=patience):
                raise TimeoutError
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            with self._guard:
                entry.interested -= 1
                if not entry.interested:
                    del self._locks[name]
