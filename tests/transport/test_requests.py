"""The requests transport keeps the contract."""

from __future__ import annotations

import threading
import time
from typing import Literal

from services.transport import Transport

from .contract_bodies import BodyContract
from .contract_connections import ConnectionContract
from .contract_failures import FailureContract
from .contract_secure import SecureContract, authority
from .server import CHUNKED, Peer, ScriptedServer

__all__ = ["authority"]

KIND: Literal["gthread"] = "gthread"


def readers(server: ScriptedServer) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == f"upstream-{server.origin}"]


class TestBodies(BodyContract):
    kind = KIND


class TestConnections(ConnectionContract):
    kind = KIND

    def test_closing_ends_the_reader_thread(self, transport: Transport) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(CHUNKED)
            peer.gone(5.0)

        with ScriptedServer(script) as server:
            exchange = self.get(transport, server)
            assert exchange.wait(5.0)
            assert readers(server)
            exchange.close()
            deadline = time.monotonic() + 2.0
            while readers(server) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not readers(server)


class TestFailures(FailureContract):
    kind = KIND


class TestSecure(SecureContract):
    kind = KIND
