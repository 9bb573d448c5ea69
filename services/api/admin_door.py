"""The admin key: its own door, which no gateway key opens."""

from __future__ import annotations

import hashlib
import hmac

from werkzeug.datastructures import Headers

from services.api.auth import presented_credential
from services.core.errors import Unauthorized
from services.core.models import Secret


class AdminDoor:
    """Checks the admin key, sent as `Authorization: Bearer KEY` like any other."""

    def __init__(self, key: Secret | None) -> None:
        self._digest = _digest(key.reveal()) if key is not None else None

    @property
    def exists(self) -> bool:
        return self._digest is not None

    def check(self, headers: Headers) -> None:
        """Raise `Unauthorized` unless the headers carry the admin key; takes the same time
        whatever they carry.
        """
        presented = _digest(presented_credential(headers))
        if self._digest is None or not hmac.compare_digest(presented, self._digest):
            raise Unauthorized("this needs the admin key, as Authorization: Bearer KEY")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
