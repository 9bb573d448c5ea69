"""Token records: what the store keeps of a refresh token, encrypted, under the token's hash."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import logging
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from redis.client import Pipeline

from services.accounts.token_endpoint import Granted, Reason, TokenFailure
from services.accounts.vault import Vault
from services.core.models import Secret
from services.store import Store, StoreScript

log = logging.getLogger(__name__)

ACCESS_PREFIX = "eyJ"
"""Begins every JWT: an access token, to be sent as it is."""
MARGIN = 300.0
"""Seconds before its end from which an access token is no longer used."""
LONGEST_USE = 8 * 86400.0
UNKNOWN_LIFETIME = 3600.0
"""Of an access token whose end nobody tells; seconds, as all here."""


class Claims(msgspec.Struct, frozen=True):
    exp: float | None = None


class TokenRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One refresh token as it is now. Times are epoch seconds by our own clock.

    `refresh` is the newest of its line, the only one to be exchanged. `access` serves until
    `until`. `forced` is when an exchange was last made because the upstream refused `access`.
    `root` stands alone: this token is one of the line kept under that name.
    """

    refresh: str = ""
    access: str = ""
    issued: float = 0.0
    until: float = 0.0
    forced: float = 0.0
    root: str = ""

    def __repr__(self) -> str:
        return f"TokenRecord(issued={self.issued}, until={self.until})"

    def serves(self, now: float, not_this: str | None = None) -> bool:
        """Whether `access` can be used now, and is another than `not_this`."""
        return bool(self.access) and now < self.until and self.access != not_this


def record_of(granted: Granted, used: Secret, now: float, forced: float) -> TokenRecord:
    """The record after an exchange of `used`. An access token that has ended by our clock serves
    nobody, but the refresh token that came with it counts.
    """
    access = granted.access.reveal()
    ends = expiry(access)
    lifetime = ends - now if ends is not None else granted.expires_in or UNKNOWN_LIFETIME
    usable = min(max(lifetime - MARGIN, lifetime / 2), LONGEST_USE)
    newest = granted.refresh or used
    return TokenRecord(newest.reveal(), access, now, now + max(usable, 0.0), forced)


def expiry(access: str) -> float | None:
    """`exp` of a JWT in epoch seconds, its signature unchecked; None for what has none."""
    parts = access.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        ends = msgspec.json.decode(payload, type=Claims).exp
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
    return ends if ends is not None and math.isfinite(ends) else None


def is_access_token(text: str) -> bool:
    return text.startswith(ACCESS_PREFIX)


KEPT = 400 * 86400
"""Seconds for which a refresh token nobody uses is remembered: its line may have moved on from
the one that its owner has.
"""

_RELEASE = StoreScript("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")


class Found(msgspec.Struct, frozen=True):
    """What the store knows of a token; `owner` is the lock we now hold, if we asked and got it."""

    record: TokenRecord | None
    failure: TokenFailure | None
    owner: str | None = None


class TokenStore:
    """The token records of all processes. `digest` is the hash of the token asked for.

    Every method may raise `StoreAway`. A lock is a key with the name of who holds it; it goes away
    by itself when its holder has died.
    """

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault

    def find(self, digest: str) -> Found:
        """What is known, in one round trip."""
        names = [self._name(digest, "record"), self._name(digest, "failed")]
        [[record, failed]] = self._store.pipeline(lambda p: p.mget(names))
        return Found(self._record(record), _failure(failed))

    def find_and_lock(self, digest: str, seconds: float) -> Found:
        """The same, and the right to exchange this token for `seconds` if nobody else has it.

        The lock comes first, so that its holder sees all that the one before has written.
        """
        owner = secrets.token_hex(8)

        def fill(pipe: Pipeline) -> None:
            pipe.set(self._name(digest, "lock"), owner, nx=True, px=int(seconds * 1000))
            pipe.mget([self._name(digest, "record"), self._name(digest, "failed")])

        got, (record, failed) = self._store.pipeline(fill)
        return Found(self._record(record), _failure(failed), owner if got else None)

    def release(self, digest: str, owner: str) -> None:
        """Give the lock back, unless it has passed to somebody else."""
        name = self._name(digest, "lock")
        self._store.run_script(_RELEASE, [name], [owner])

    def save(
        self,
        digest: str,
        record: TokenRecord,
        aliases: Iterable[str] = (),
        due: float | None = None,
        used: float | None = None,
    ) -> None:
        """Keep `record`; when this returns, the new token is safe. `aliases` are the hashes of
        further tokens of its line, `due` is when to renew it, `used` when somebody last used it.
        """
        sealed = _sealed(self._vault, record)
        pointer = _sealed(self._vault, TokenRecord(root=digest))

        def fill(pipe: Pipeline) -> None:
            pipe.set(self._name(digest, "record"), sealed, ex=KEPT)
            pipe.delete(self._name(digest, "failed"))
            for alias in aliases:
                pipe.set(self._name(alias, "record"), pointer, ex=KEPT)
            if due is not None:
                pipe.zadd(self._due, {digest: due})
            if used is not None:
                pipe.zadd(self._used, {digest: used}, gt=True)

        self._store.pipeline(fill)

    def save_failure(self, digest: str, failure: TokenFailure) -> None:
        """Have nobody try this token for a while."""
        name, seconds = self._name(digest, "failed"), failure.retry_after
        self._store.run(lambda c: c.set(name, failure.reason, px=max(1, int(seconds * 1000))))

    def due(self, now: float, most: int) -> list[str]:
        """Up to `most` digests whose time to be renewed has come, the longest due first."""
        [digests] = self._store.pipeline(
            lambda p: p.zrangebyscore(self._due, "-inf", now, start=0, num=most)
        )
        return [digest.decode() for digest in digests]

    def postpone(self, digest: str, due: float | None) -> None:
        """Renew it at `due`; None: never, until somebody uses it again."""
        if due is None:
            self._store.pipeline(lambda p: (p.zrem(self._due, digest), p.zrem(self._used, digest)))
        else:
            self._store.run(lambda c: c.zadd(self._due, {digest: due}, xx=True))

    def note_used(self, used: Mapping[str, float]) -> None:
        """Remember when tokens were last used, later times winning."""
        if used:
            self._store.run(lambda c: c.zadd(self._used, dict(used), gt=True))

    def last_used(self, digests: list[str]) -> list[float | None]:
        """When each was last used, as far as anybody knows."""
        if not digests:
            return []
        [scores] = self._store.pipeline(lambda p: p.zmscore(self._used, digests))
        return [None if score is None else float(score) for score in scores]

    @property
    def _due(self) -> str:
        return self._store.key("tokens", "due")

    @property
    def _used(self) -> str:
        return self._store.key("tokens", "used")

    def _name(self, digest: str, part: str) -> str:
        return self._store.key("token", f"{{{digest}}}", part)

    def _record(self, sealed: bytes | None) -> TokenRecord | None:
        return None if sealed is None else _opened(self._vault, sealed.decode())


class TokenFiles:
    """Records that the store has missed while it was away: encrypted files in `folder`, for all
    workers of this machine, and there after a restart. `digest` as in `TokenStore`.
    """

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder = folder
        self._vault = vault

    @contextlib.contextmanager
    def locked(self, digest: str, patience: float) -> Iterator[None]:
        """Hold a token against the other workers. Raises `TokenFailure` after `patience` seconds.
        Without a folder that can be written to, nobody is kept out.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / f"{digest}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as exc:
            log.error("tokens cannot be kept folder=%s reason=%s", self._folder, exc.strerror)
            yield
            return
        try:
            deadline = time.monotonic() + patience
            while not _lock(lock):
                if time.monotonic() > deadline:
                    raise TokenFailure("busy", 1.0)
                time.sleep(0.05)  # a wait in flock would stop all greenlets
            yield
        finally:
            os.close(lock)

    def read(self, digest: str) -> TokenRecord | None:
        try:
            sealed = (self._folder / digest).read_text()
        except OSError:
            return None
        return _opened(self._vault, sealed)

    def write(self, digest: str, record: TokenRecord) -> None:
        """Keep `record`; a folder that cannot be written to is logged."""
        draft = self._folder / f".{digest}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(_sealed(self._vault, record))
                file.flush()
                os.fsync(descriptor)
            draft.replace(self._folder / digest)
        except OSError as exc:
            log.error("token not kept folder=%s reason=%s", self._folder, exc.strerror)

    def names(self) -> list[str]:
        """The digests of all records."""
        with contextlib.suppress(OSError):
            return [path.name for path in self._folder.iterdir() if path.name.isalnum()]
        return []

    def remove(self, digest: str) -> None:
        (self._folder / digest).unlink(missing_ok=True)
        (self._folder / f"{digest}.lock").unlink(missing_ok=True)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sealed(vault: Vault, record: TokenRecord) -> str:
    return vault.encrypt(msgspec.json.encode(record).decode())


def _opened(vault: Vault, sealed: str) -> TokenRecord | None:
    """A record that another key or another version wrote is as good as none."""
    try:
        return msgspec.json.decode(vault.decrypt(sealed), type=TokenRecord)
    except (ValueError, msgspec.DecodeError):
        log.warning("token record unreadable: was the secret key replaced?")
        return None


def _failure(stored: Any) -> TokenFailure | None:
    """The failure whose reason was stored."""
    if stored is None:
        return None
    try:
        return TokenFailure(msgspec.convert(stored.decode(), Reason))
    except msgspec.ValidationError:
        return TokenFailure("failing")
