"""What is known of a gateway key. The key itself is shown once and kept nowhere: a record lies
under the SHA-256 of its key, which needs no salt because our keys are 256 random bits.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from services.config.settings import ProfileName

PREFIX = "sk-cw-"
"""Begins every key made here, so that no other credential costs a look into the store."""

PerMinute = Annotated[int, Meta(ge=1, le=100_000)]
PerDay = Annotated[int, Meta(ge=1, le=10**12)]
Tokens = Annotated[int, Meta(ge=1, le=10**12)]
Streams = Annotated[int, Meta(ge=1, le=100_000)]
KeyName = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"^[^\s\x00-\x1f][^\x00-\x1f]*$")
]
ModelPattern = Annotated[str, Meta(min_length=1, max_length=200)]
Patterns = Annotated[tuple[ModelPattern, ...], Meta(max_length=200)]
ProviderName = Annotated[str, Meta(min_length=1, max_length=50)]
ProviderKey = Annotated[str, Meta(min_length=1, max_length=16_384)]


class Vault(Protocol):
    """Encrypts what must not lie in the store in clear. `decrypt` raises `ValueError` for what
    it did not encrypt.
    """

    def encrypt(self, text: str) -> str: ...

    def decrypt(self, text: str) -> str: ...


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much a key may do; null is without limit.

    A minute is any 60 seconds; a day is one of UTC. Tokens count once an answer is over, both
    ways together. `concurrent_streams` are answers under way, streamed or not.
    """

    requests_per_minute: PerMinute | None = None
    tokens_per_minute: Tokens | None = None
    requests_per_day: PerDay | None = None
    tokens_per_day: Tokens | None = None
    concurrent_streams: Streams | None = None

    @property
    def any(self) -> bool:
        return self != NO_LIMITS

    @property
    def after(self) -> bool:
        """Whether the end of an answer has to be told to the limits."""
        return bool(self.tokens_per_minute or self.tokens_per_day or self.concurrent_streams)


NO_LIMITS = Limits()


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key. Times are epoch seconds; `hint` is the key's end, to know it again by.

    `models` are the names it may use, `*` standing for any text; none means all. `profile` is an
    output profile, empty for the service's own. `always_usage`: its streams end with token counts
    though nobody asked, as relays need. `provider_keys` are its own upstream credentials by
    provider, encrypted.
    """

    id: str
    name: str
    hint: str
    created: float
    limits: Limits = NO_LIMITS
    models: tuple[str, ...] = ()
    profile: str = ""
    always_usage: bool = False
    provider_keys: Mapping[str, str] = msgspec.field(default_factory=dict)
    revoked: float | None = None
    source: Literal["store", "settings"] = "store"

    def allows(self, model: str) -> bool:
        """Whether this key may use `model`."""
        return not self.models or any(_matches(pattern, model) for pattern in self.models)


def _matches(pattern: str, model: str) -> bool:
    if "*" not in pattern:
        return pattern == model
    return fnmatchcase(model, pattern.replace("[", "[[]").replace("?", "[?]"))


_STORED = msgspec.json.Decoder(KeyRecord)
"""Built here, since msgspec may crash where threads decode a type for the first time at once."""


def read_record(raw: bytes) -> KeyRecord:
    """A record as it lies in the store."""
    return _STORED.decode(raw)


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key is to be. `provider_keys` are in clear here."""

    name: KeyName
    limits: Limits = NO_LIMITS
    models: Patterns = ()
    profile: ProfileName = ""
    always_usage: bool = False
    provider_keys: dict[ProviderName, ProviderKey] = {}


class LimitChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits to change; null takes one away."""

    requests_per_minute: PerMinute | None | UnsetType = UNSET
    tokens_per_minute: Tokens | None | UnsetType = UNSET
    requests_per_day: PerDay | None | UnsetType = UNSET
    tokens_per_day: Tokens | None | UnsetType = UNSET
    concurrent_streams: Streams | None | UnsetType = UNSET


class KeyChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields to change. `provider_keys` adds to those there; null takes one away."""

    limits: LimitChanges | UnsetType = UNSET
    models: Patterns | UnsetType = UNSET
    profile: ProfileName | UnsetType = UNSET
    always_usage: bool | UnsetType = UNSET
    provider_keys: dict[ProviderName, ProviderKey | None] | UnsetType = UNSET


def new_key() -> str:
    """A fresh key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def new_id() -> str:
    """A fresh name for a record; says nothing about its key."""
    return f"key_{secrets.token_hex(8)}"


def digest_of(key: str) -> bytes:
    """What a record lies under."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def changed(record: KeyRecord, changes: KeyChanges, vault: Vault) -> KeyRecord:
    """`record` with `changes` applied."""
    fields = {
        name: value
        for name in ("models", "profile", "always_usage")
        if (value := getattr(changes, name)) is not UNSET
    }
    if changes.limits is not UNSET:
        wanted = msgspec.structs.asdict(changes.limits)
        set_now = {name: value for name, value in wanted.items() if value is not UNSET}
        fields["limits"] = msgspec.structs.replace(record.limits, **set_now)
    if changes.provider_keys is not UNSET:
        fields["provider_keys"] = _merged(record.provider_keys, changes.provider_keys, vault)
    return msgspec.structs.replace(record, **fields)


def _merged(
    present: Mapping[str, str], changes: Mapping[str, str | None], vault: Vault
) -> dict[str, str]:
    kept = {name: value for name, value in present.items() if name not in changes}
    return kept | {name: vault.encrypt(key) for name, key in changes.items() if key}
