"""Bodies in every framing come through byte for byte, as soon as they are there."""

from __future__ import annotations

import gzip
import threading
import time

import pytest

from services.core.errors import ProtocolError
from services.transport import Transport, UpstreamRequest

from .contract import LIMIT, Contract, read_some
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

BIG = bytes(range(256)) * 5000  # 1.28 MB


class TestBodies(Contract):
    def test_request_arrives_whole_with_default_headers(self, transport: Transport) -> None:
        with ScriptedServer(always(answer(b"ok"))) as server:
            request = UpstreamRequest("POST", server.url + "?q=ä", {"X-Key": "é"}, BIG)
            with transport.open(request) as response:
                assert response.read_all(LIMIT) == b"ok"
            (received,) = server.requests
        assert (received.method, received.target) == ("POST", "/path?q=%C3%A4")
        assert received.body == BIG
        assert received.headers["host"] == server.origin
        assert received.headers["content-length"] == str(len(BIG))
        assert received.headers["accept-encoding"] == "identity"
        assert received.headers["user-agent"].startswith("causeway/")
        assert received.headers["x-key"] == "é"
        assert "cookie" not in received.headers

    def test_caller_cannot_contradict_the_framing(self, transport: Transport) -> None:
        headers = {"Content-Length": "99", "Transfer-Encoding": "chunked", "User-Agent": "mine"}
        with ScriptedServer(always(answer(b"ok"))) as server:
            with transport.open(UpstreamRequest("POST", server.url, headers, b"12")) as response:
                assert response.read_all(LIMIT) == b"ok"
            (received,) = server.requests
        assert received.headers["content-length"] == "2"
        assert received.headers["user-agent"] == "mine"
        assert "transfer-encoding" not in received.headers

    def test_status_and_headers_are_there_after_wait(self, transport: Transport) -> None:
        reply = answer(b"no", "X-One: 1", "SET-cookie: a=1", "Set-Cookie: b=2", status="418 Tea")
        with ScriptedServer(always(reply)) as server, self.get(transport, server) as response:
            assert (response.status, response.headers) == (0, {})
            assert response.wait(5.0)
            assert response.status == 418
            assert response.headers["x-one"] == "1"
            assert response.headers["set-cookie"] == "a=1, b=2"
            assert response.read_all(LIMIT) == b"no"

    @pytest.mark.parametrize(
        "reply",
        [answer(BIG), CHUNKED + chunk(BIG[:9]) + chunk(BIG[9:]) + LAST_CHUNK, UNTIL_CLOSE + BIG],
        ids=["content-length", "chunked", "until-close"],
    )
    def test_big_body_is_exact(self, transport: Transport, reply: bytes) -> None:
        with ScriptedServer(once(reply)) as server:
            assert self.fetch(transport, server) == BIG

    @pytest.mark.parametrize("framing", ["content-length", "chunked", "until-close"])
    def test_events_arrive_one_by_one(self, transport: Transport, framing: str) -> None:
        events = [b"data: %d\n\n" % n for n in range(5)]
        heads = {"chunked": CHUNKED, "until-close": UNTIL_CLOSE}
        length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(b"".join(events))
        taken = threading.Semaphore(0)

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(heads.get(framing, length))
            for event in events:
                peer.send(chunk(event) if framing == "chunked" else event)
                assert taken.acquire(timeout=5), "an event was held back"
            peer.send(LAST_CHUNK if framing == "chunked" else b"")

        with ScriptedServer(script) as server, self.get(transport, server) as response:
            for event in events:
                assert read_some(response) == event
                taken.release()
            assert read_some(response) == b""
            assert response.read(1.0) == b""

    def test_any_split_of_the_bytes_gives_the_same_answer(self, transport: Transport) -> None:
        reply = CHUNKED + chunk(b"data: a\n\n") + chunk(b"data: b\n\n") + b"0\r\nX-T: 1\r\n\r\n"
        splits = iter(range(1, len(reply)))

        def script(peer: Peer) -> None:
            while peer.request() is not None:
                at = next(splits)
                peer.send(reply[:at])
                time.sleep(0.001)
                peer.send(reply[at:])

        with ScriptedServer(script) as server:
            for _ in range(1, len(reply)):
                assert self.fetch(transport, server) == b"data: a\n\ndata: b\n\n"
            assert server.connections == 1

    def test_silence_is_reported_before_and_within_the_answer(self, transport: Transport) -> None:
        go_on = threading.Semaphore(0)

        def script(peer: Peer) -> None:
            peer.request()
            for piece in (CHUNKED, chunk(b"one"), chunk(b"two") + LAST_CHUNK):
                assert go_on.acquire(timeout=5)
                peer.send(piece)

        with ScriptedServer(script) as server, self.get(transport, server) as response:
            assert response.wait(0.02) is False
            assert response.read(0.02) is None
            go_on.release()
            assert response.wait(5.0) is True
            assert response.read(0.02) is None
            go_on.release()
            assert read_some(response) == b"one"
            assert response.read(0.02) is None
            assert response.read(0) is None
            go_on.release()
            assert read_some(response) == b"two"
            assert read_some(response) == b""

    def test_chunk_framing_alone_is_silence(self, transport: Transport) -> None:
        go_on = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(CHUNKED + b"3\r\n")
            assert go_on.wait(5)
            peer.send(b"abc\r\n" + LAST_CHUNK)

        with ScriptedServer(script) as server, self.get(transport, server) as response:
            assert response.wait(5.0)
            assert response.read(0.05) is None
            go_on.set()
            assert read_some(response) == b"abc"

    @pytest.mark.parametrize("coding", ["gzip", "deflate", "BR", "gzip, br", "zebra"])
    def test_compression_nobody_asked_for_is_a_clear_error_with_the_status_known(
        self, transport: Transport, coding: str
    ) -> None:
        reply = answer(gzip.compress(b"no"), f"Content-Encoding: {coding}", status="503 Down")
        with ScriptedServer(always(reply)) as server, self.get(transport, server) as response:
            assert response.wait(5.0)
            assert response.status == 503
            with pytest.raises(ProtocolError, match="compressed its answer"):
                response.read(1.0)

    def test_identity_is_no_compression(self, transport: Transport) -> None:
        with ScriptedServer(always(answer(BIG, "Content-Encoding: Identity"))) as server:
            assert self.fetch(transport, server) == BIG

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_answers_without_body_end_with_their_headers(
        self, transport: Transport, status: str
    ) -> None:
        reply = f"HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\n\r\n".encode()
        with ScriptedServer(always(reply)) as server:
            assert self.fetch(transport, server) == b""
            assert self.fetch(transport, server) == b""
            assert server.connections == 1

    def test_head_has_no_body(self, transport: Transport) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n"
        with ScriptedServer(always(head)) as server:
            for _ in range(2):
                with transport.open(UpstreamRequest("HEAD", server.url)) as response:
                    assert response.read_all(LIMIT) == b""
                    assert response.headers["content-length"] == "700"
            assert server.connections == 1

    @pytest.mark.parametrize("interim", ["100 Continue", "102 Processing", "103 Early Hints"])
    def test_interim_answers_are_skipped(self, transport: Transport, interim: str) -> None:
        early = f"HTTP/1.1 {interim}\r\nLink: x\r\n\r\n".encode()
        with ScriptedServer(always(early, early, answer(b"done"))) as server:
            with self.get(transport, server) as response:
                assert response.read_all(LIMIT) == b"done"
                assert response.status == 200
                assert "link" not in response.headers
            assert self.fetch(transport, server) == b"done"
            assert server.connections == 1

    def test_redirects_are_not_followed_and_cookies_not_kept(self, transport: Transport) -> None:
        reply = answer(b"", "Location: /elsewhere", "Set-Cookie: a=1", status="302 Found")
        with ScriptedServer(always(reply)) as server:
            for _ in range(2):
                with self.get(transport, server) as response:
                    assert response.wait(5.0)
                    assert response.status == 302
                    assert response.read_all(LIMIT) == b""
            assert [received.target for received in server.requests] == ["/path", "/path"]
            assert "cookie" not in server.requests[1].headers

    def test_body_beyond_the_limit_is_refused(self, transport: Transport) -> None:
        with ScriptedServer(always(answer(BIG))) as server, self.get(transport, server) as response:
            with pytest.raises(ProtocolError, match="larger than 1000 bytes"):
                response.read_all(1000)
            with pytest.raises(ProtocolError):
                response.read(1.0)
