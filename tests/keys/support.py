"""Admission control and what stands around it, on a real store."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from services.accounts.pool import ask_store
from services.config import GatewayKeySetting
from services.core.errors import GatewayError
from services.core.events import Finish, Text, Usage, WireEvent
from services.core.requests import ChatRequest, Message
from services.keys import (
    Admission,
    AdmissionControl,
    KeyLookup,
    KeyRecord,
    Limits,
    NewKey,
    RequestUsage,
    UsageRecorder,
    UsageStore,
)
from services.keys.editor import KeyEditor
from services.keys.limiter import LEASE_SECONDS
from services.store import Store

MODEL = "small"
CHAT = ChatRequest(MODEL, (Message("user", "four bytes a token, so this is about ten"),))


class FernetVault:
    """What the real vault does, with one key of its own."""

    def __init__(self) -> None:
        self._fernet = Fernet(Fernet.generate_key())

    def encrypt(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, text: str) -> str:
        try:
            return self._fernet.decrypt(text.encode()).decode()
        except InvalidToken as exc:
            raise ValueError("not encrypted here") from exc


def client(store: Store) -> Any:
    """The store's client without its types, which are of two minds."""
    return store.client


class Desk:
    """One worker's worth of parts."""

    def __init__(
        self,
        store: Store,
        settings_keys: Sequence[GatewayKeySetting] = (),
        listed: Collection[str] = (MODEL,),
        vault: FernetVault | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.store = store
        self.vault = vault or FernetVault()
        self.book = KeyLookup(store, settings_keys)
        self.editor = KeyEditor(store, self.book, self.vault)
        self.usage = UsageStore(store)
        self.turns: list[RequestUsage] = []
        self.recorder = UsageRecorder(self.usage, listed, self.turns.extend)
        self.control = AdmissionControl(
            store, self.book, self.recorder, self.vault, lease_seconds=lease_seconds
        )

    def admit(self, presented: str) -> Admission:
        """A request that goes upstream at once."""
        admission = self.control.admit(presented)
        try:
            ask_store(self.store, admission)
        except GatewayError:
            admission.done("error")
            raise
        return admission

    def key(self, name: str = "bot", **limits: int) -> tuple[str, KeyRecord]:
        """A new key with these limits."""
        return self.editor.create(NewKey(name=name, limits=Limits(**limits)))


def answer(tokens: int = 10) -> Iterator[list[WireEvent]]:
    """An answer that says two pieces and its usage."""
    yield [Text("one ")]
    yield []
    yield [Text("two"), Finish("stop")]
    yield [Usage(tokens - 2, 2, tokens)]


def away_from_midnight() -> None:
    """Days of UTC begin and end: not within the next seconds."""
    left = 86_400 - time.time() % 86_400
    if left < 10:
        time.sleep(left + 0.1)


def away_from_the_minutes_end() -> None:
    """Minutes of the clock begin and end: not within the next seconds."""
    left = 60 - time.time() % 60
    if left < 5:
        time.sleep(left + 0.1)
