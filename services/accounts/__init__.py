"""Whose credential an upstream gets: tokens that renew themselves, and pools of accounts."""

from services.accounts.credentials import Credentials
from services.accounts.pools import AccountsError, Pools
from services.accounts.vault import Vault, VaultError, open_vault

__all__ = ["AccountsError", "Credentials", "Pools", "Vault", "VaultError", "open_vault"]
