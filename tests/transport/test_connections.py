"""Connections are reused when they may be, repaired once when stale, and closed when given up."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from services.core.errors import ProtocolError, UpstreamUnreachable
from services.transport import Transport, UpstreamRequest

from .contract import LIMIT, SOON, Contract, read_some
from .server import (
    CHUNKED,
    LAST_CHUNK,
    UNTIL_CLOSE,
    Peer,
    ScriptedServer,
    always,
    answer,
    chunk,
    once,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


def hang_up(peer: Peer) -> None:
    peer.sock.close()


class TestConnections(Contract):
    @pytest.mark.parametrize(
        "reply",
        [answer(b"body"), answer(b""), CHUNKED + chunk(b"body") + LAST_CHUNK],
        ids=["content-length", "empty", "chunked"],
    )
    def test_connection_is_reused_after_a_complete_answer(
        self, transport: Transport, reply: bytes
    ) -> None:
        with ScriptedServer(always(reply)) as server:
            for _ in range(3):
                self.fetch(transport, server)
            assert (server.connections, len(server.requests)) == (1, 3)

    def test_connection_is_given_back_at_the_end_without_close(self, transport: Transport) -> None:
        with ScriptedServer(always(answer(b"body"))) as server:
            first = self.get(transport, server)
            assert first.read_all(LIMIT) == b"body"
            assert self.fetch(transport, server) == b"body"
            first.close()
            assert self.fetch(transport, server) == b"body"
            assert first.read(1.0) == b""
            assert server.connections == 1

    @pytest.mark.parametrize(
        "reply",
        [answer(b"body", "Connection: close"), UNTIL_CLOSE + b"body", answer(b"body") + b"surplus"],
        ids=["connection-close", "until-close", "surplus"],
    )
    def test_connection_is_not_reused_when_it_must_not(
        self, transport: Transport, reply: bytes
    ) -> None:
        with ScriptedServer(once(reply)) as server:
            for _ in range(2):
                assert self.fetch(transport, server) == b"body"
            assert server.connections == 2

    def test_connection_the_upstream_closed_while_idle_is_not_used(
        self, transport: Transport
    ) -> None:
        closed = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(answer(b"body"))
            peer.sock.close()
            closed.set()

        with ScriptedServer(script) as server:
            for _ in range(2):
                assert self.fetch(transport, server) == b"body"
                assert closed.wait(5)
                closed.clear()
            assert (server.connections, len(server.requests)) == (2, 2)

    @pytest.mark.parametrize("end", [hang_up, Peer.reset], ids=["eof", "reset"])
    def test_stale_connection_is_replaced_once(
        self, transport: Transport, end: Callable[[Peer], None]
    ) -> None:
        turns = itertools.count()

        def script(peer: Peer) -> None:
            first = next(turns) == 0
            peer.request()
            peer.send(answer(b"body"))
            if peer.request() is None:
                return
            if first:
                end(peer)
            else:
                raise AssertionError("a connection too many requests came on")

        body = b"again" * 1000
        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            with transport.open(UpstreamRequest("POST", server.url, {}, body)) as response:
                assert response.read_all(LIMIT) == b"body"
            assert (server.connections, len(server.requests)) == (2, 3)
            assert server.requests[2].body == body

    def test_fresh_connection_is_used_where_all_pooled_ones_are_stale(
        self, transport: Transport
    ) -> None:
        pooled = threading.Barrier(2)
        turns = itertools.count()

        def script(peer: Peer) -> None:
            old = next(turns) < 2
            peer.request()
            if old:
                pooled.wait(5)
            peer.send(answer(b"body"))
            if old:
                peer.request()

        with ScriptedServer(script) as server:
            both = [self.get(transport, server) for _ in range(2)]
            assert [response.read_all(LIMIT) for response in both] == [b"body"] * 2
            assert self.fetch(transport, server) == b"body"
            assert (server.connections, len(server.requests)) == (3, 4)

    def test_stale_connection_is_not_replaced_twice(self, transport: Transport) -> None:
        turns = itertools.count()

        def script(peer: Peer) -> None:
            if next(turns) == 0:
                peer.request()
                peer.send(answer(b"body"))
            peer.request()

        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            with pytest.raises(ProtocolError, match="without an answer"):
                self.fetch(transport, server)
            assert len(server.requests) == 3

    def test_stale_connection_to_an_upstream_that_has_gone_is_unreachable(
        self, transport: Transport
    ) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(answer(b"body"))
            peer.request()
            server.refuse()

        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            with self.get(transport, server) as response:
                with pytest.raises(UpstreamUnreachable):
                    response.wait(5.0)
                with pytest.raises(ProtocolError):
                    response.wait(5.0)
            assert (server.connections, len(server.requests)) == (1, 2)

    @pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nConte", HEAD + b"x"])
    def test_request_is_not_repeated_once_something_came_back(
        self, transport: Transport, part: bytes
    ) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(answer(b"body"))
            peer.request()
            peer.send(part)

        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            with pytest.raises(ProtocolError):
                self.fetch(transport, server)
            assert len(server.requests) == 2

    @pytest.mark.parametrize("end", [hang_up, Peer.reset], ids=["eof", "reset"])
    def test_request_on_a_fresh_connection_is_never_repeated(
        self, transport: Transport, end: Callable[[Peer], None]
    ) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            end(peer)

        with ScriptedServer(script) as server:
            with pytest.raises(ProtocolError, match="without an answer"):
                self.fetch(transport, server)
            assert len(server.requests) == 1

    def test_request_that_a_kept_connection_took_and_worked_on_is_not_sent_again(
        self, transport: Transport
    ) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(answer(b"body"))
            if peer.request() is not None:
                time.sleep(2.0)

        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            with pytest.raises(ProtocolError, match="without an answer"):
                transport.open(UpstreamRequest("POST", server.url, {}, b"paid")).read_all(LIMIT)
            assert [received.body for received in server.requests] == [b"", b"paid"]

    def test_upload_that_a_kept_connection_took_for_long_is_not_sent_again(
        self, transport: Transport
    ) -> None:
        taken = []

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(answer(b"body"))
            taken.append(peer.read(100))
            time.sleep(2.0)
            peer.reset()

        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            upload = UpstreamRequest("POST", server.url, {}, bytes(32 << 20))
            with pytest.raises(ProtocolError, match="without an answer"):
                transport.open(upload).read_all(LIMIT)
            assert (server.connections, len(taken)) == (1, 1)

    @pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"some", CHUNKED + b"5\r\nso"])
    def test_close_reaches_a_silent_upstream_at_once(
        self, transport: Transport, sent: bytes
    ) -> None:
        gone = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(sent)
            if peer.gone(5.0):
                gone.set()

        with ScriptedServer(script) as server:
            response = self.get(transport, server)
            assert response.wait(5.0 if sent else 0.05) is bool(sent)
            response.close()
            assert gone.wait(2.0)
            response.close()
            with pytest.raises(ProtocolError, match="was closed"):
                response.read(1.0)

    def test_close_stops_an_upstream_that_is_talking(self, transport: Transport) -> None:
        gone = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(CHUNKED)
            try:
                while True:
                    peer.send(chunk(b"x" * 10000))
            except OSError:
                gone.set()
                raise

        with ScriptedServer(script) as server:
            with self.get(transport, server) as response:
                assert read_some(response).startswith(b"x")
            assert gone.wait(2.0)

    def test_closing_the_transport_closes_idle_connections(self) -> None:
        gone = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(answer(b"body"))
            if peer.gone(5.0):
                gone.set()

        transport = Transport(SOON)
        with ScriptedServer(script) as server:
            assert self.fetch(transport, server) == b"body"
            transport.close()
            assert gone.wait(2.0)

    def test_twenty_threads_at_once_get_their_own_answers(self, transport: Transport) -> None:
        together = threading.Barrier(20)
        wrong: list[object] = []

        def script(peer: Peer) -> None:
            while (request := peer.request()) is not None:
                peer.send(CHUNKED, *(chunk(request.body) for _ in range(20)), LAST_CHUNK)

        def talk(number: int) -> None:
            body = b"%d," % number * 100
            together.wait(10)
            for _ in range(3):
                with transport.open(UpstreamRequest("POST", server.url, {}, body)) as response:
                    got = response.read_all(LIMIT)
                if got != body * 20:
                    wrong.append((number, got))

        with ScriptedServer(script) as server:
            threads = [threading.Thread(target=talk, args=(n,)) for n in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
            assert wrong == []
            assert len(server.requests) == 60
            assert server.connections <= 60
