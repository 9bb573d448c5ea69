"""What the upstream tells about a GPT, which a request to it must repeat."""

from __future__ import annotations

from collections.abc import Callable, Generator
from urllib.parse import quote

import msgspec

from services.core.errors import ModelNotFound, UpstreamRefused
from services.core.events import Event
from services.core.models import Credential, Secret
from services.providers.backend_api.calls import Calls
from services.providers.base import Cache

REMEMBERED = 86400.0
"""Seconds for which the information is kept."""

GptsToken = Callable[[], Secret | None]
"""Gives the operator's access token for looking up GPTs, if there is one."""


_NOT_THIS_ACCOUNT = (401, 403, 404)
"""Statuses after which the caller's own account may still see the GPT."""


class _Display(msgspec.Struct):
    id: str


class _Info(msgspec.Struct):
    gizmo: _Display


class Gizmo(msgspec.Struct, frozen=True):
    """`info` is the whole answer, as JSON."""

    id: str
    info: msgspec.Raw


def gizmo_with(
    name: str, calls: Calls, cache: Cache, lookup: Calls | None
) -> Generator[list[Event], None, Gizmo]:
    """The GPT with this id, asked for with the operator's `lookup` account, or else the caller's.

    What was learnt with a caller's account is kept for that account alone. Raises `ModelNotFound`.
    """
    shared = f"backend_api:gizmo:{name}"
    if lookup is not None:
        try:
            return (yield from _gizmo(name, lookup, cache, shared))
        except UpstreamRefused as exc:
            if exc.upstream_status not in _NOT_THIS_ACCOUNT:
                raise
    try:
        return (yield from _gizmo(name, calls, cache, f"{shared}:{calls.owner}"))
    except UpstreamRefused as exc:
        if exc.upstream_status not in (403, 404):
            raise
        raise _unknown(name) from exc


def _gizmo(name: str, calls: Calls, cache: Cache, key: str) -> Generator[list[Event], None, Gizmo]:
    stored = cache.get(key)
    known = _read(name, stored) if stored else None
    if known is not None:
        return known
    raw = yield from calls.ask("GET", f"gizmos/{quote(name, safe='')}", msgspec.Raw)
    found = _read(name, bytes(raw))
    if found is None:
        raise _unknown(name)
    cache.set(key, bytes(raw), REMEMBERED)
    return found


def operator_credential(token: GptsToken) -> Credential | None:
    """The credential for looking up GPTs, if the operator gave one."""
    secret = token()
    return Credential(secret) if secret else None


def _read(name: str, data: bytes) -> Gizmo | None:
    try:
        info = msgspec.json.decode(data, type=_Info)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Gizmo(info.gizmo.id or name, msgspec.Raw(data))


def _unknown(name: str) -> ModelNotFound:
    return ModelNotFound(
        f"the GPT {name} does not exist, or the upstream account may not use it", param="model"
    )
