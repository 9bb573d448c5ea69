"""Whose account a credential is: the key under which we remember what belongs to it."""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec

from services.core.models import Credential


class _Claims(msgspec.Struct):
    sub: str
    iss: str = ""


def owner_of(credential: Credential) -> str:
    """A hash that stays the same when the account's access token is renewed.

    Where the account has a name of ours, that counts. Else the token's subject is read without
    checking its signature. That is safe, since the upstream checks it in every call that uses what
    is found under this key.
    """
    if credential.owner:
        return _hashed(credential.owner, credential)
    assert credential.token is not None
    token = credential.token.reveal()
    claims = _claims(token)
    who = f"{claims.iss}\n{claims.sub}" if claims else token
    return _hashed(who, credential)


def _hashed(who: str, credential: Credential) -> str:
    return hashlib.sha256(f"{who}\n{credential.account or ''}".encode()).hexdigest()[:32]


def _claims(token: str) -> _Claims | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=_Claims)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
