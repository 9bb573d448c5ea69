"""What is kept of a refresh token, and how long its access token serves."""

from __future__ import annotations

import base64
import binascii
import math

import msgspec

from services.accounts.refreshers import Granted
from services.core.models import Secret

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


def split_account(text: str) -> tuple[str, str | None]:
    """`token,account-id` as its two parts; the second names a workspace of the upstream."""
    token, _, account = text.partition(",")
    return token.strip(), account.strip() or None
