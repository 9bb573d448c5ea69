"""Conversations that may be continued: who began them, and with which message they ended."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from services.core.errors import InvalidRequest
from services.providers.base import Cache

REMEMBERED = 7 * 86400.0
"""Seconds for which a conversation can be continued."""

_ID = re.compile(r"[\w-]{1,100}", re.ASCII)


class Continued(msgspec.Struct, frozen=True):
    """A conversation to go on with, after the message `message_id`."""

    id: str
    message_id: str


class _Record(msgspec.Struct):
    owner: str
    message_id: str


class Conversations:
    """Remembers in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def remember(self, conversation: Continued, owner: str) -> None:
        record = msgspec.json.encode(_Record(owner, conversation.message_id))
        self._cache.set(_key(conversation.id), record, REMEMBERED)

    def asked_for(self, source: Mapping[str, msgspec.Raw], owner: str) -> Continued | None:
        """The one that a request's `conversation_id` names, if any.

        Raises `InvalidRequest` with status 404 unless `owner` began it.
        """
        name = text_field(source, "conversation_id")
        if not name:
            return None
        stored = self._cache.get(_key(name)) if _ID.fullmatch(name) else None
        try:
            record = msgspec.json.decode(stored or b"", type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError):
            record = None
        if record is None or record.owner != owner:
            raise InvalidRequest(
                "no such conversation: it was not begun with this key, or too long ago",
                param="conversation_id",
                code="conversation_not_found",
                status=404,
            )
        return Continued(name, record.message_id)


def text_field(source: Mapping[str, msgspec.Raw], name: str) -> str:
    """A field of the request's body that must be text; "" where it is absent or null.

    Raises `InvalidRequest`.
    """
    raw = source.get(name)
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str | None) or ""
    except msgspec.DecodeError as exc:
        raise InvalidRequest(f"{name} must be text", param=name) from exc


def _key(name: str) -> str:
    return f"backend_api:conversation:{name}"
