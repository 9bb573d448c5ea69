"""Answers that come over a WebSocket say the same as those in the response."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from emulators.backend_api_frames import accept_key, close, text
from services.core.errors import ProtocolError, UpstreamUnreachable
from services.core.events import SILENCE, Conversation, File, Image, Text
from services.core.requests import ChatRequest, Message
from services.providers.backend_api.stream import SocketConnector
from services.transport import Transport
from tests.transport.certificates import Authority
from tests.transport.proxies import connect_proxy, socks5_proxy
from tests.transport.server import Peer, ScriptedServer

from .support import STOP, Stage, joined, text_of, wait_for

BOTH = pytest.mark.parametrize("transport", ["socket_flat", "socket_nested"])


@BOTH
@pytest.mark.parametrize("scene", ["plain", "code", "browsing", "tail_in_finished", "noise"])
def test_socket_says_what_the_response_says(stage: Stage, scene: str, transport: str) -> None:
    stage.upstream.script({"scenario": scene}, {"scenario": scene, "transport": transport})
    assert stage.events("") == stage.events("")
    assert stage.upstream.count("websocket") == 1
    assert stage.upstream.count("register_websocket") == 0


@BOTH
def test_pictures_and_files_over_a_socket(stage: Stage, transport: str) -> None:
    for scene, kind in (("dalle", Image), ("sandbox", File)):
        stage.upstream.script({"scenario": scene, "transport": transport})
        assert any(isinstance(e, kind) for e in stage.events(""))


def test_missing_address_is_asked_for(stage: Stage) -> None:
    stage.upstream.script({"scenario": "plain", "transport": "socket_flat", "wss_url": False})
    assert stage.events("") == [Text("Hello world!"), STOP]
    calls = [call.endpoint for call in stage.upstream.log]
    assert calls == ["conversation", "register_websocket", "websocket"]


def test_fragmented_messages(stage: Stage) -> None:
    stage.upstream.script({"scenario": "chinese", "transport": "socket_nested", "fragments": 3})
    assert text_of(stage.events("")) == "你好，世界。水獭🦦很可爱"


def test_silence_on_a_socket_gives_empty_batches(stage: Stage) -> None:
    stage.upstream.script({"scenario": "silence", "transport": "socket_flat", "seconds": 2.5})
    batches = stage.ask("")
    assert batches.count(SILENCE) >= 2
    told = [e for batch in batches for e in batch if not isinstance(e, Conversation)]
    assert joined(told) == [Text("Hello world!"), STOP]


@pytest.mark.parametrize("scene", ["cut_event", "cut_no_done", "reset_in_stream"])
def test_broken_socket_is_an_error_after_its_text(stage: Stage, scene: str) -> None:
    stage.upstream.script({"scenario": scene, "transport": "socket_flat"})
    told, failure = stage.failure("")
    assert told == [Text("Hello")]
    assert isinstance(failure, ProtocolError)


def test_client_that_leaves_closes_the_socket(stage: Stage) -> None:
    stage.upstream.script({"scenario": "silence", "transport": "socket_flat", "seconds": 8})
    provider = stage.provider()
    route = provider.route("gpt-4-s")
    assert route is not None
    request = ChatRequest("gpt-4-s", (Message("user", "Hi"),))
    events = provider.stream(request, route, stage.credential())
    next(batch for batch in events if batch)
    began = time.monotonic()
    events.close()  # type: ignore[attr-defined]  # it is a generator
    assert time.monotonic() - began < 1
    [call] = stage.upstream.calls("websocket")
    assert wait_for(lambda: call.exchange.aborted_at is not None, 2.0)


def test_no_bearer_goes_to_the_socket(stage: Stage) -> None:
    stage.upstream.script({"scenario": "plain", "transport": "socket_flat"})
    stage.events("")
    [call] = stage.upstream.calls("websocket")
    assert "authorization" not in call.request.headers
    assert "origin" not in call.request.headers


def test_socket_that_refuses_names_no_ticket(stage: Stage) -> None:
    dialler = SocketConnector(Transport())
    url = stage.upstream.url.replace("http", "ws") + "/ws/no-such-ticket"
    with pytest.raises(UpstreamUnreachable) as caught:
        dialler.open(url, secure=False)
    assert "answered 403" in caught.value.message
    assert "ticket" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["", "http://h/x", "ftp://h/x", "ws://h/a b", "ws://u:p@h/", "ws:///x"]
)
def test_unusable_address_is_a_protocol_error(url: str) -> None:
    with pytest.raises(ProtocolError):
        SocketConnector(Transport()).open(url, secure=False)


def test_secure_upstream_gets_no_open_socket() -> None:
    with pytest.raises(ProtocolError):
        SocketConnector(Transport()).open("ws://127.0.0.1:9/x", secure=True)


def test_error_answer_instead_of_a_socket(stage: Stage) -> None:
    entry: dict[str, Any] = {"endpoint": "register_websocket", "status": 500}
    stage.upstream.script(
        {"scenario": "plain", "transport": "socket_flat", "wss_url": False}, entry
    )
    told, failure = stage.failure("")
    assert told == []
    assert failure.status == 502


def greeter(peer: Peer) -> None:
    """A WebSocket server that says `hello` and goodbye."""
    request = peer.request()
    assert request is not None
    accept = accept_key(request.headers["sec-websocket-key"])
    head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    cookie = "Set-Cookie: who=alice; Domain=127.0.0.1\r\n"
    peer.send(f"{head}{cookie}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
    peer.send(text("hello"), close())
    peer.gone()


def greeting(dialler: SocketConnector, url: str) -> list[bytes | None]:
    socket = dialler.open(url, secure=url.startswith("wss"))
    try:
        return [socket.read(2.0), socket.read(2.0)]
    finally:
        socket.close()


def test_certificate_of_a_socket_is_checked(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with ScriptedServer(greeter, authority.server_context("127.0.0.1")) as server:
        url = f"wss://{server.origin}/"
        trusting = SocketConnector(Transport(ca_file=authority.ca_file))
        assert greeting(trusting, url) == [b"hello", b""]
        with pytest.raises(UpstreamUnreachable) as caught:
            SocketConnector(Transport()).open(url, secure=True)
    assert "certificate not trusted" in caught.value.message


def test_sockets_go_through_the_proxy() -> None:
    with ScriptedServer(greeter) as server:
        url = f"ws://{server.origin}/"
        with ScriptedServer(connect_proxy("Basic dTpw")) as proxy:
            dialler = SocketConnector(Transport(), f"http://u:p@{proxy.origin}")
            assert greeting(dialler, url) == [b"hello", b""]
            assert proxy.connections == 1
        with ScriptedServer(socks5_proxy([])) as proxy:
            dialler = SocketConnector(Transport(proxy=f"socks5://{proxy.origin}"))
            assert greeting(dialler, url) == [b"hello", b""]
            assert proxy.connections == 1


def test_cookies_of_one_socket_are_not_sent_on_another() -> None:
    with ScriptedServer(greeter) as server:
        for _ in range(2):
            greeting(SocketConnector(Transport()), f"ws://{server.origin}/")
        assert all("cookie" not in request.headers for request in server.requests)
