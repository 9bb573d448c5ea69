"""Gateway keys: who holds one, what it may do, how much it may do, and what it has done."""

from services.keys.admission import Admission, Served
from services.keys.book import KeyBook
from services.keys.gatekeeper import Gatekeeper
from services.keys.ledger import Ledger, Turn
from services.keys.records import KeyChanges, KeyRecord, Limits, NewKey, Vault
from services.keys.usage import UsageBook, UsageQuery, UsageRow

__all__ = [
    "Admission",
    "Gatekeeper",
    "KeyBook",
    "KeyChanges",
    "KeyRecord",
    "Ledger",
    "Limits",
    "NewKey",
    "Served",
    "Turn",
    "UsageBook",
    "UsageQuery",
    "UsageRow",
    "Vault",
]
