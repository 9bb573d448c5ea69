"""Look keys up: those of the settings first, then those in the store, through a short memory.

While the store is away, keys seen within the last hour still open the gateway; the others cannot
be told from wrong ones, and get a 503 rather than a 401, which would make a relay drop us.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from services.config import GatewayKeySetting
from services.core.errors import Unavailable
from services.keys.limiter import key_name
from services.keys.records import PREFIX, KeyRecord, digest_of, read_record
from services.store import Store, StoreAway

FRESH_SECONDS = 5.0
"""How long a change made elsewhere may go unnoticed."""

KNOWN_SECONDS = 3600.0
MOST_REMEMBERED = 4096


class Remembered(msgspec.Struct, frozen=True):
    """What this process knows of a digest; times are `time.monotonic()`. `record` None: no key."""

    raw: bytes | None
    record: KeyRecord | None
    fresh_until: float
    known_until: float


class KeyLookup:
    """The keys of this gateway, for the request path. Shared by all requests of a worker.

    `store` None: only those of the settings.
    """

    def __init__(
        self,
        store: Store | None,
        settings_keys: Sequence[GatewayKeySetting] = (),
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        self._store = store
        self._fresh = fresh_seconds
        self._memory: OrderedDict[bytes, Remembered] = OrderedDict()
        self._of_settings = _from_settings(settings_keys)

    @property
    def of_settings(self) -> tuple[KeyRecord, ...]:
        """The keys that stand in the settings."""
        return tuple(self._of_settings.values())

    def recognise(self, presented: str) -> KeyRecord | None:
        """The record of the key that a caller presents; None if it is no living key of ours.

        Raises `Unavailable` when that cannot be known now.
        """
        digest = digest_of(presented)
        if presented.startswith(PREFIX):
            return self.find(digest)
        return self.find_in_settings(digest)

    def find(self, digest: bytes) -> KeyRecord | None:
        """The same, by the key's digest. At most one round trip, and none for `FRESH_SECONDS`."""
        of_settings = self._of_settings.get(digest)
        if of_settings is not None:
            return of_settings
        known = self.recall(digest)
        if known is not None and time.monotonic() < known.fresh_until:
            return known.record
        if self._store is None:
            return None
        name = key_name(self._store, digest, "record")
        try:
            raw: Any = self._store.run(lambda c: c.hget(name, "record"))
        except StoreAway as exc:
            return self.last_known(digest, exc)
        return self.learn(digest, raw)

    def find_in_settings(self, digest: bytes) -> KeyRecord | None:
        """The record of a key of the settings."""
        return self._of_settings.get(digest)

    def recall(self, digest: bytes) -> Remembered | None:
        """What this process remembers."""
        return self._memory.get(digest)

    def learn(self, digest: bytes, raw: bytes | None) -> KeyRecord | None:
        """Remember what the store says; the record, if its key is alive."""
        now = time.monotonic()
        known = self._memory.get(digest)
        record = known.record if known is not None and known.raw == raw else living(raw)
        self._memory[digest] = Remembered(raw, record, now + self._fresh, now + KNOWN_SECONDS)
        self._memory.move_to_end(digest)
        while len(self._memory) > MOST_REMEMBERED:
            self._memory.popitem(last=False)
        return record

    def last_known(self, digest: bytes, away: StoreAway) -> KeyRecord | None:
        """What was known last, within the hour. Raises `Unavailable` if nothing was."""
        known = self._memory.get(digest)
        if known is None or time.monotonic() > known.known_until:
            raise Unavailable(
                "this API key cannot be checked at the moment", retry_after=5
            ) from away
        return known.record

    def forget(self, digest: bytes) -> None:
        """Ask the store again at the next chance."""
        self._memory.pop(digest, None)


def living(raw: bytes | None) -> KeyRecord | None:
    """The stored record, unless there is none or its key is revoked."""
    record = read_record(raw) if raw else None
    return record if record is not None and record.revoked is None else None


def _from_settings(settings: Sequence[GatewayKeySetting]) -> dict[bytes, KeyRecord]:
    """The keys of the settings, by digest: without limits, and not to be changed here."""
    names = Counter(setting.name for setting in settings)
    return dict(_record_of(setting, names[setting.name] > 1) for setting in settings)


def _record_of(setting: GatewayKeySetting, is_namesake: bool) -> tuple[bytes, KeyRecord]:
    """Keys that nobody named go by their last characters, which several may share."""
    text = setting.key.reveal()
    digest = digest_of(text)
    identity = f"settings:{setting.name}" + (f":{digest.hex()[:8]}" if is_namesake else "")
    hint = text[-4:] if len(text) >= 16 else ""
    record = KeyRecord(
        identity, setting.name, hint, 0.0, profile=setting.profile, source="settings"
    )
    return digest, record
