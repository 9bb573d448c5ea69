"""Gateway keys: who holds one, what it may do, how much it may do, and what it has done."""

from services.keys.admission import Admission, AdmissionControl, Served
from services.keys.lookup import KeyLookup
from services.keys.records import KeyChanges, KeyRecord, Limits, NewKey, Vault
from services.keys.usage import (
    RequestUsage,
    UsageQuery,
    UsageRecorder,
    UsageRow,
    UsageStore,
)

__all__ = [
    "Admission",
    "AdmissionControl",
    "KeyChanges",
    "KeyLookup",
    "KeyRecord",
    "Limits",
    "NewKey",
    "RequestUsage",
    "Served",
    "UsageQuery",
    "UsageRecorder",
    "UsageRow",
    "UsageStore",
    "Vault",
]
