"""Whose credential an upstream gets: tokens that renew themselves, and pools of accounts."""

from services.accounts.account_list import Account, AccountsError
from services.accounts.credentials import Credentials
from services.accounts.failover import with_failover
from services.accounts.failures import TokenFailure
from services.accounts.pool import AccountView, Pool
from services.accounts.pools import Pools
from services.accounts.tokens import TokenManager
from services.accounts.vault import Vault, VaultError, open_vault
from services.config.account_setting import AccountSetting

__all__ = [
    "Account",
    "AccountSetting",
    "AccountView",
    "AccountsError",
    "Credentials",
    "Pool",
    "Pools",
    "TokenFailure",
    "TokenManager",
    "Vault",
    "VaultError",
    "open_vault",
    "with_failover",
]
