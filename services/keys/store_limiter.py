"""Limits counted in the store, so that they hold across workers and machines to the request.

One script reads the record, checks everything and counts, in one round trip. Minutes are moving
windows: never more than the limit in any 60 seconds. A refused request is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.keys.records import Limits
from services.keys.standing import Standing, Verdict
from services.store import ScriptCall, Store, StoreScript

LEASE_SECONDS = 60.0
"""How long the place of a request lasts if its worker dies; renewed while that lives."""


class StoreLimiter:
    """Every method raises `StoreAway`."""

    def __init__(self, store: Store, lease_seconds: float = LEASE_SECONDS) -> None:
        self._store = store
        self._lease = int(lease_seconds * 1000)

    def admitting(self, digest: bytes, lease: str) -> ScriptCall:
        """The script that takes a place under all limits of the key, as `lease`; `verdict` reads
        its answer. It leaves a key at `refusal` for a moment if the request is not let in.
        """
        names = [key_name(self._store, digest, part) for part in _PARTS]
        return ScriptCall(_ADMIT, [*names, self.refusal(digest, lease)], [lease, self._lease])

    def refusal(self, digest: bytes, lease: str) -> str:
        """Where it is noted for a moment that a request is refused."""
        return key_name(self._store, digest, f"refused:{lease}")

    @staticmethod
    def verdict(answer: Any) -> Verdict | None:
        """What the script of `admitting` answered; None if there is no such key."""
        if answer is None:
            return None
        record, refused, retry, *used = answer
        counts, seconds = used[:4], [milliseconds / 1000 for milliseconds in used[4:]]
        standing = Standing(*counts, *seconds)
        return Verdict(record, refused.decode(), retry / 1000, standing)

    def settle(self, digest: bytes, lease: str, tokens: int, limits: Limits) -> None:
        """Give the place back and count the answer's tokens."""
        names = [key_name(self._store, digest, part) for part in ("state", "tokens", "leases")]
        flags = (int(limits.tokens_per_minute is not None), int(limits.tokens_per_day is not None))
        self._store.run_script(_SETTLE, names, (lease, tokens, *flags))

    def renew(self, leases: Mapping[str, bytes]) -> None:
        """Keep the places of requests that are still under way: their keys' digests by lease."""
        calls = [
            ScriptCall(_RENEW, [key_name(self._store, digest, "leases")], (lease, self._lease))
            for lease, digest in leases.items()
        ]
        self._store.run_scripts(calls)


_ADMIT = StoreScript.beside(__file__, "admit.lua")
_SETTLE = StoreScript.beside(__file__, "settle.lua")
_RENEW = StoreScript.beside(__file__, "renew.lua")
_PARTS = ("record", "state", "requests", "tokens", "leases")


def key_name(store: Store, digest: bytes, part: str) -> str:
    """Where a part of what is known of a key lies; all parts in one slot of a cluster."""
    return store.key("key", f"{{{digest.hex()}}}", part)
