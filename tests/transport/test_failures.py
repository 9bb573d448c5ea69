"""What goes wrong has a name, comes in time, and tells no secrets."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from typing import Any

import pytest

from services.core.errors import (
    InvalidRequest,
    ProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.transport import Timeouts, Transport, UpstreamRequest

from .contract import LIMIT, Contract, read_some
from .server import (
    CHUNKED,
    UNTIL_CLOSE,
    Peer,
    ScriptedServer,
    always,
    answer,
    chunk,
    once,
)

SECRET = "hush-hush"

CUT = {
    "in the first line": b"HTTP/1.1 2",
    "in the headers": b"HTTP/1.1 200 OK\r\nContent-Type: text/pl",
    "after a header": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n",
    "in a body of known length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "in a chunk": CHUNKED + b"a\r\nhalf",
    "in a chunk's size": CHUNKED + chunk(b"half") + b"1",
    "between chunks": CHUNKED + chunk(b"half"),
    "in the trailer": CHUNKED + chunk(b"half") + b"0\r\nX-T: 1",
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
}

GARBAGE = {
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "binary": bytes(range(128, 256)) * 4,
    "chunk size": CHUNKED + b"xyz\r\n",
    "status": b"HTTP/1.1 abc OK\r\n\r\n",
}


class TestFailures(Contract):
    @pytest.mark.parametrize("where", CUT)
    def test_answer_cut_short_is_a_protocol_error(self, transport: Transport, where: str) -> None:
        with ScriptedServer(once(CUT[where])) as server, self.get(transport, server) as response:
            with pytest.raises(ProtocolError) as caught:
                response.read_all(LIMIT)
            assert "the upstream" in caught.value.message
            assert server.origin not in caught.value.message, "callers need not know where it is"
            with pytest.raises(ProtocolError):
                response.read(1.0)

    @pytest.mark.parametrize("what", GARBAGE)
    def test_garbage_is_a_protocol_error(self, transport: Transport, what: str) -> None:
        with ScriptedServer(once(GARBAGE[what])) as server, pytest.raises(ProtocolError):
            self.fetch(transport, server)

    def test_what_came_before_the_fault_is_delivered(self, transport: Transport) -> None:
        with ScriptedServer(once(CHUNKED + chunk(b"good") + b"bad\x00")) as server:
            response = self.get(transport, server)
            assert read_some(response) == b"good"
            with pytest.raises(ProtocolError):
                response.read(5.0)

    def test_reset_is_no_end_of_a_body_until_close(self, transport: Transport) -> None:
        go_on = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(UNTIL_CLOSE + b"half")
            assert go_on.wait(5)
            peer.reset()

        with ScriptedServer(script) as server, self.get(transport, server) as response:
            assert read_some(response) == b"half"
            go_on.set()
            with pytest.raises(ProtocolError, match="broke within"):
                response.read(5.0)

    def test_refused_connection_is_unreachable(self, transport: Transport) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            origin = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UpstreamUnreachable, match="the upstream: connection refused"):
            transport.open(UpstreamRequest("GET", f"http://{origin}/{SECRET}?key={SECRET}"))

    def test_unknown_name_is_unreachable(self, transport: Transport) -> None:
        request = UpstreamRequest("GET", f"http://no-such-host.invalid/{SECRET}")
        with pytest.raises((UpstreamUnreachable, UpstreamTimeout)) as caught:
            transport.open(request)
        assert "no-such-host" not in caught.value.message

    def test_name_that_takes_too_long_is_a_timeout(
        self, transport: Transport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look_up, leave = socket.getaddrinfo, threading.Event()

        def slow(host: str, *rest: Any, flags: int = 0, **more: Any) -> Any:
            if flags == socket.AI_NUMERICHOST:
                return look_up(host, *rest, flags=flags, **more)  # type: ignore[misc]
            leave.wait(5)
            return look_up("127.0.0.1", *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="could not connect to the upstream within"):
            transport.open(
                UpstreamRequest("GET", "http://slow.example:9/"), timeouts=Timeouts(connect=0.2)
            )
        assert time.monotonic() - started < 2.0
        leave.set()

    def test_second_address_is_tried(self, transport: Transport) -> None:
        # localhost is often ::1 first, where this server does not listen.
        with ScriptedServer(always(answer(b"body"))) as server:
            request = UpstreamRequest("GET", f"http://localhost:{server.port}/")
            with transport.open(request) as response:
                assert response.read_all(LIMIT) == b"body"

    def test_errors_hold_no_path_query_or_header(self, transport: Transport) -> None:
        def talk(origin: str) -> str:
            url = f"http://{origin}/{SECRET}?key={SECRET}"
            request = UpstreamRequest("POST", url, {"Authorization": SECRET}, SECRET.encode())
            assert SECRET not in repr(request)
            with pytest.raises((ProtocolError, UpstreamUnreachable)) as caught:
                transport.open(request).read_all(LIMIT)
            return "".join(traceback.format_exception(caught.value, chain=True)).partition(
                "Error: "
            )[2]

        with ScriptedServer(once(b"")) as server:
            assert SECRET not in talk(server.origin)
        assert SECRET not in talk(server.origin)

    def test_no_answer_in_time_is_a_timeout(self, transport: Transport) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\n")
            peer.gone(5.0)

        limits = Timeouts(first_byte=0.3)
        with ScriptedServer(script) as server:
            started = time.monotonic()
            with self.get(transport, server, timeouts=limits) as response:
                assert response.wait(0.1) is False
                with pytest.raises(UpstreamTimeout, match="no answer from the upstream"):
                    response.wait(5.0)
            assert 0.3 <= time.monotonic() - started < 2.0

    def test_silence_within_the_answer_is_a_timeout(self, transport: Transport) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(CHUNKED + chunk(b"one"))
            peer.gone(5.0)

        limits = Timeouts(idle=0.3)
        with (
            ScriptedServer(script) as server,
            self.get(transport, server, timeouts=limits) as response,
        ):
            assert read_some(response) == b"one"
            assert response.read(0.05) is None
            with pytest.raises(UpstreamTimeout, match="went silent for 0.3 s"):
                response.read(5.0)

    def test_slow_consumer_does_not_make_its_upstream_idle(self, transport: Transport) -> None:
        reply = (CHUNKED + chunk(b"one"), chunk(b"two"), b"0\r\n\r\n")
        limits = Timeouts(idle=0.2)
        with (
            ScriptedServer(always(*reply)) as server,
            self.get(transport, server, timeouts=limits) as response,
        ):
            assert response.wait(5.0)
            time.sleep(0.4)
            assert response.read_all(LIMIT) == b"onetwo"

    def test_endless_trickle_ends_at_the_total(self, transport: Transport) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(CHUNKED)
            while True:
                peer.send(chunk(b"."))
                time.sleep(0.02)

        limits = Timeouts(total=0.4)
        with ScriptedServer(script) as server:
            started = time.monotonic()
            with (
                self.get(transport, server, timeouts=limits) as response,
                pytest.raises(UpstreamTimeout, match="longer than 0.4 s"),
            ):
                response.read_all(LIMIT)
            assert 0.4 <= time.monotonic() - started < 2.0

    def test_total_ends_the_wait_for_headers_too(self, transport: Transport) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.gone(5.0)

        limits = Timeouts(total=0.3)
        with (
            ScriptedServer(script) as server,
            self.get(transport, server, timeouts=limits) as response,
            pytest.raises(UpstreamTimeout, match="longer than 0.3 s"),
        ):
            response.wait(5.0)

    def test_upstream_that_takes_no_request_is_a_timeout(self, transport: Transport) -> None:
        leave = threading.Event()

        def script(peer: Peer) -> None:
            leave.wait(5)

        request_body = bytes(32 << 20)
        with ScriptedServer(script) as server:
            request = UpstreamRequest("POST", server.url, {}, request_body)
            with pytest.raises(UpstreamTimeout, match="did not take the request"):
                transport.open(request, timeouts=Timeouts(first_byte=0.3))
            leave.set()

    def test_early_refusal_of_a_large_body_is_an_answer_or_a_protocol_error(
        self, transport: Transport
    ) -> None:
        def script(peer: Peer) -> None:
            peer.read(1000)
            peer.send(answer(b"too large", status="413 Too Large"))
            peer.sock.shutdown(socket.SHUT_WR)
            peer.gone(5.0)

        with ScriptedServer(script) as server:
            request = UpstreamRequest("POST", server.url, {}, bytes(4 << 20))
            with transport.open(request) as response:
                assert response.read_all(LIMIT) == b"too large"
                assert response.status == 413

    @pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "snow ☃"])
    def test_header_that_cannot_be_sent_is_refused(self, transport: Transport, value: str) -> None:
        with ScriptedServer(always(answer(b""))) as server:
            with pytest.raises(InvalidRequest) as caught:
                transport.open(UpstreamRequest("GET", server.url, {"X-Key": value}))
            assert "x-key" in caught.value.message
            assert value not in caught.value.message
            with pytest.raises(InvalidRequest):
                transport.open(UpstreamRequest("GET", server.url, {f"X{value}": "1"}))
            with pytest.raises(InvalidRequest):
                transport.open(UpstreamRequest(f"GET{value}", server.url))
            assert server.connections == 0

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:1/a\r\nX-Evil: 1",
            "http://127.0.0.1:1/a b",
            "http://127.0.0.1\t:1/",
            "http://127.0.0.1:99999/",
            "http://[::1/",
            "http:///path",
            "ftp://127.0.0.1/",
            "http://user:pass@127.0.0.1:1/",
            f"http://{'a' * 64}.example/",
            "/path",
        ],
    )
    def test_url_that_cannot_be_asked_is_refused(self, transport: Transport, url: str) -> None:
        with pytest.raises(InvalidRequest):
            transport.open(UpstreamRequest("GET", url))
