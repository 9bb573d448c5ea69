"""What a model is to a caller, and to whom the upstream credential of a request belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class ModelCard(msgspec.Struct, frozen=True):
    """One row of `/v1/models`. `created` is epoch seconds; `extra` are further fields to show."""

    id: str
    owned_by: str
    created: int
    extra: Mapping[str, Any] | None = None


class Secret:
    """A string that never shows itself in a repr, a log line or an exception; `reveal()` is the
    only way out.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        tail = self._value[-4:] if len(self._value) >= 16 else ""
        return f"Secret(…{tail})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class Credential(msgspec.Struct, frozen=True):
    """What a provider sends upstream. `from_caller`: the caller's own, so its refusal is the
    caller's business.

    `account` names a workspace of the upstream, where it has such a thing. `owner` is our own name
    for the upstream account, where it has one that outlives its tokens; `holder` is the gateway
    key that asks with it, where several may.
    """

    token: Secret | None = None
    account: str | None = None
    from_caller: bool = False
    owner: str = ""
    holder: str = ""


class CallLimit(msgspec.Struct, frozen=True):
    """How many calls a minute an upstream account may get; `account` is our name for it."""

    provider: str
    account: str
    per_minute: int


class Caller(msgspec.Struct, frozen=True):
    """Who asks: a holder of one of our keys, or someone who brings an upstream credential.

    `key_id` stays with the key; its `key_name` may be another key's later. `credential` is what the
    caller brought for the upstream, if anything.
    """

    key_name: str | None = None
    credential: Credential | None = None
    key_id: str = ""
