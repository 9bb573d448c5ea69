"""Whether the client of a request is still there, also while nothing is written to it."""

from __future__ import annotations

import socket
import time
from typing import Any

from services.core.errors import GatewayError

LOOK_EVERY = 0.5
"""Seconds between two looks at a client's socket."""


class ClientGone(GatewayError):
    """The client closed its connection before the answer was complete.

    Nobody sees this status but the log.
    """

    status = 499
    type = "client_error"
    code = "client_closed_request"


class Client:
    """The connection that a request came over, as far as the server tells us of it."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._socket = environ.get("gunicorn.socket")
        self._looked = time.monotonic()

    def check(self) -> None:
        """Raise `ClientGone` if the client has closed its side; looks twice a second at most."""
        now = time.monotonic()
        if self._socket is None or now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        if _closed(self._socket):
            raise ClientGone("the client closed the connection")


def _closed(connection: Any) -> bool:
    """Peek at the socket without waiting: an empty read is the end of the client's side.

    gevent's sockets wrap the real one in `_sock`, whose `recv` does not wait for the loop.
    """
    plain = getattr(connection, "_sock", connection)
    try:
        return bool(plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
    except (BlockingIOError, InterruptedError):
        return False
    except (OSError, ValueError) as exc:
        # ValueError: a TLS socket takes no flags, and writing to it will tell
        # TimeoutError: the keep-alive probes of a silent connection found nobody
        return isinstance(exc, ConnectionError | TimeoutError)
