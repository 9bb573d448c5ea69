"""Secrets at rest: what lies in the store is encrypted with a key that does not.

The key is a private file of the data folder, made once by whichever process comes first, or one
from the settings, which machines that share a store must share too.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from services.core.models import Secret

KEY_FILE = Path("data") / "secret.key"


class VaultError(Exception):
    """The key cannot be used; the text says what to do and holds no part of it."""


class Vault:
    """Encrypts with the first of `keys`; decrypts with any, so that keys can be replaced.

    A key is 32 bytes in URL-safe base64. Raises `VaultError` for what is none.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise VaultError("there is no secret key")
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            raise VaultError(
                "a secret key is not 32 bytes in URL-safe base64; make one with: "
                "head -c 32 /dev/urandom | base64 | tr +/ -_"
            ) from None  # the original would show the key in a traceback's context

    def encrypt(self, text: str) -> str:
        """`text` as a printable token, different each time."""
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, text: str) -> str:
        """What was encrypted. Raises `ValueError` for what none of our keys has made."""
        try:
            return self._fernet.decrypt(text).decode()
        except InvalidToken:
            raise ValueError("not encrypted with any of our keys") from None


def open_vault(folder: Path, configured: Secret | None = None) -> Vault:
    """The vault with the `configured` keys (several with commas between), else with those in
    `folder`/data/secret.key, one a line. Makes that file if there is none. Raises `VaultError`.
    """
    if configured is not None:
        return Vault([key.strip() for key in configured.reveal().split(",") if key.strip()])
    path = folder.expanduser() / KEY_FILE
    try:
        if not path.exists():
            _make(path)
        return Vault(_read_private(path).split())
    except OSError as exc:
        raise VaultError(f"cannot use {path}: {exc.strerror}") from exc


def hashed(*parts: str) -> str:
    """SHA-256 in hex of `parts`: the name that a secret goes by."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def read_private(path: Path) -> str:
    """The text of a file with secrets. Raises `VaultError` if others can read it."""
    try:
        return _read_private(path)
    except OSError as exc:
        raise VaultError(f"cannot read {path}: {exc.strerror}") from exc


def _make(path: Path) -> None:
    """Write a whole file beside it, then link it into place: who comes second finds it whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    key = base64.urlsafe_b64encode(secrets.token_bytes(32))
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(key + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()


def _read_private(path: Path) -> str:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise VaultError(f"{path} is not a file")
        if mode & 0o077:
            raise VaultError(f"{path} holds secrets and can be used by others: chmod 600 {path}")
        return file.read().decode("utf-8", "replace")
