"""Which WebSocket of the `backend-api` emulator is whose, and which turns wait for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from .backend_api_scenarios.steps import Options, Step

GRACE = 10.0  # seconds a turn waits for a socket registered after it
KEPT = 60.0  # seconds until a turn nobody may read any more is forgotten


@dataclass(frozen=True)
class PendingTurn:
    """A turn to be sent over a socket: its ticket's, or any registered one of the account."""

    account: str
    response_id: str
    conversation_id: str
    steps: tuple[Step, ...]
    options: Options
    ticket: str = ""
    posted_at: float = field(default_factory=time.monotonic)


@dataclass
class Connection:
    """An open socket; `served` are the response ids it has sent or is sending."""

    ticket: str
    account: str
    registered: bool
    connected_at: float = field(default_factory=time.monotonic)
    served: set[str] = field(default_factory=set)

    def may_send(self, turn: PendingTurn) -> bool:
        """Whether the turn is this socket's to send, and still to be sent."""
        if turn.response_id in self.served:
            return False
        if turn.ticket:
            return turn.ticket == self.ticket
        fresh = turn.posted_at > self.connected_at - GRACE
        return self.registered and turn.account == self.account and fresh


class Tickets:
    """Tickets are the last part of a `wss_url`; each belongs to one account."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[str, str] = {}
        self._registered: set[str] = set()
        self._connections: list[Connection] = []
        self._pending: list[PendingTurn] = []

    def issue(self, account: str, registered: bool = False) -> str:
        """A new ticket; a registered one was asked for by itself, not given with a turn."""
        with self._lock:
            ticket = f"{account}-{len(self._owners) + 1}"
            self._owners[ticket] = account
            if registered:
                self._registered.add(ticket)
            return ticket

    def owner(self, ticket: str) -> str:
        """The account, or an empty string for an unknown ticket."""
        return self._owners.get(ticket, "")

    def connect(self, ticket: str) -> Connection:
        connection = Connection(ticket, self._owners[ticket], ticket in self._registered)
        with self._lock:
            self._connections.append(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        with self._lock:
            self._connections.remove(connection)

    def is_connected(self, ticket: str) -> bool:
        with self._lock:
            return any(c.ticket == ticket for c in self._connections)

    def open_registered(self, account: str) -> str:
        """A registered ticket of the account whose socket is open, else an empty string."""
        with self._lock:
            mine = (c.ticket for c in self._connections if c.registered and c.account == account)
            return next(mine, "")

    def post(self, turn: PendingTurn) -> None:
        with self._lock:
            self._pending = [t for t in self._pending if turn.posted_at - t.posted_at < KEPT]
            self._pending.append(turn)

    def next_for(self, connection: Connection) -> PendingTurn | None:
        """The oldest turn this socket has to send; counts as served from now on."""
        with self._lock:
            turn = next(filter(connection.may_send, self._pending), None)
            if turn is not None:
                connection.served.add(turn.response_id)
            return turn
