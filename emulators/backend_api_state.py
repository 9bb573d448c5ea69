"""What the `backend-api` emulator remembers, and the answers scripted for it."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter, defaultdict, deque
from typing import Any

from .backend_api_records import Account, Call, Conversation, StoredFile, expired
from .backend_api_tickets import Tickets

LOG_SIZE = 5000
Entry = dict[str, Any]


class State:
    """All of the emulator's memory; every change is made under `lock`."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        self.calls: deque[Call] = deque(maxlen=LOG_SIZE)
        self.reset()

    def reset(self) -> None:
        """Forget everything but the seed; tokens issued before are unknown afterwards."""
        with self.lock:
            self.random.seed(self.seed)
            self.calls.clear()
            self.counters: Counter[str] = Counter()
            self.scripts: defaultdict[str, deque[Entry]] = defaultdict(deque)
            self.accounts = {name: self._new_account(name) for name in ("alice", "bob")}
            self.revoked: set[str] = set()
            self.rotate_refresh = False
            self.temporary_download_status = 403
            self.files: dict[str, StoredFile] = {}
            self.conversations: dict[str, Conversation] = {}
            self.gizmos: dict[str, dict[str, Any]] = {}
            self.arkose_tokens: set[str] = set()
            self.tickets = Tickets()

    def new_uuid(self) -> str:
        with self.lock:
            return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def add_file(self, file: StoredFile) -> StoredFile:
        """Give the blob a signature and keep it."""
        with self.lock:
            file.signature = f"{self.random.getrandbits(96):024x}"
            self.files[file.file_id] = file
        return file

    def new_file_id(self) -> str:
        return "file-" + self.new_uuid().replace("-", "")[:24]

    def script(self, *entries: Entry) -> None:
        """Queue answers for `endpoint` (default conversation), each `times` times (0: always)."""
        with self.lock:
            for entry in entries:
                self.scripts[entry.get("endpoint", "conversation")].append(dict(entry))

    def take(self, endpoint: str) -> Entry:
        """The next scripted answer of this endpoint, or an empty one."""
        with self.lock:
            queue = self.scripts[endpoint]
            if not queue:
                return {}
            entry = queue[0]
            left = entry.get("times", 1)
            if left == 1:
                queue.popleft()
            elif left:
                entry["times"] = left - 1
            return entry

    def account_of(self, access_token: str) -> Account | None:
        """Whose token this is; None where unknown, revoked or expired."""
        with self.lock:
            owners = (a for a in self.accounts.values() if access_token in a.access_tokens)
            account = next(owners, None)
            if account is None or access_token in self.revoked or expired(access_token):
                return None
            return account

    def _new_account(self, name: str) -> Account:
        plans = {self.new_uuid(): "plus", self.new_uuid(): "team"}
        account = Account(name, f"rt-{name}", plans)
        account.issue()
        return account
