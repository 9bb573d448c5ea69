"""Who is calling, decided in one place and before any body is read.

`Authorization: Bearer X`, `x-api-key: X` and `api-key: X` mean the same. X is one of our keys, or
else, with passthrough on, the caller's own credential for the upstream. A holder of one of our
keys may bring an upstream credential in `X-Upstream-Authorization`.
"""

from __future__ import annotations

import hashlib
import hmac

from werkzeug.datastructures import Headers

from services.config import Settings, passthrough_enabled
from services.core.errors import Unauthorized
from services.core.models import Caller, Credential, Secret

_MAX_CREDENTIAL = 16 * 1024


class Authenticator:
    """Decides who a request's headers belong to."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [(_digest(k.key.reveal()), k.name) for k in settings.auth.keys]
        self._passthrough = passthrough_enabled(settings)

    def caller(self, headers: Headers) -> Caller:
        """The caller. Raises `Unauthorized`."""
        presented = presented_credential(headers)
        key_name = self._key_name(presented) if presented else None
        if key_name is not None:
            own = _readable(_without_scheme(headers.get("X-Upstream-Authorization", "")))
            return Caller(key_name, _credential(own) if own else None)
        if self._passthrough:
            return Caller(None, _credential(presented) if presented else None)
        if not presented:
            raise Unauthorized("no API key: send it as Authorization: Bearer KEY")
        raise Unauthorized("incorrect API key provided")

    def _key_name(self, presented: str) -> str | None:
        """The name of the key, comparing with every one in constant time."""
        digest = _digest(presented)
        found: str | None = None
        for known, name in self._keys:
            if hmac.compare_digest(known, digest):
                found = name
        return found


def presented_credential(headers: Headers) -> str:
    """The credential a request carries, or an empty string."""
    value = _without_scheme(headers.get("Authorization", ""))
    value = value or headers.get("X-Api-Key", "") or headers.get("Api-Key", "")
    return _readable(value.strip())


def _readable(value: str) -> str:
    if len(value) > _MAX_CREDENTIAL or not value.isprintable():
        raise Unauthorized("the API key is not readable")
    return value


def _without_scheme(value: str) -> str:
    scheme, _, rest = value.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def _credential(token: str) -> Credential:
    return Credential(Secret(token), from_caller=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
