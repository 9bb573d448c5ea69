"""TLS always verifies, and proxies of every kind are gone through."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator

import pytest

from services.core.errors import ProtocolError, UpstreamTimeout, UpstreamUnreachable
from services.transport import Timeouts, Transport, UpstreamRequest

from .certificates import Authority
from .contract import LIMIT, SOON, Contract, read_some
from .proxies import connect_proxy, socks5_proxy
from .server import CHUNKED, Peer, ScriptedServer, always, answer, chunk, once

BASIC = "Basic " + base64.b64encode(b"us er:p@ss").decode()
USER = "us%20er:p%40ss@"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class TestSecure(Contract):
    @pytest.fixture
    def trusting(self, authority: Authority) -> Iterator[Transport]:
        transport = Transport(SOON, ca_file=authority.ca_file)
        yield transport
        transport.close()

    def test_private_authority_is_trusted_when_told(
        self, trusting: Transport, authority: Authority
    ) -> None:
        body = b"secret" * 50_000
        tls = authority.server_context("127.0.0.1")
        with ScriptedServer(always(answer(body)), tls) as server:
            for _ in range(3):
                assert self.fetch(trusting, server) == body
            assert server.connections == 1

    def test_silence_and_close_work_under_tls(
        self, trusting: Transport, authority: Authority
    ) -> None:
        gone = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            if peer.gone(5.0):
                gone.set()

        with ScriptedServer(script, authority.server_context("127.0.0.1")) as server:
            with self.get(trusting, server) as response:
                assert response.wait(0.05) is False
                assert response.wait(0.05) is False
            assert gone.wait(2.0)

    def test_unknown_authority_is_refused(self, transport: Transport, authority: Authority) -> None:
        tls = authority.server_context("127.0.0.1")
        with ScriptedServer(always(answer(b"body")), tls) as server:
            with pytest.raises(UpstreamUnreachable, match="certificate not trusted"):
                self.get(transport, server)
            assert server.requests == []

    def test_wrong_host_name_is_refused(self, trusting: Transport, authority: Authority) -> None:
        tls = authority.server_context("other.example")
        with ScriptedServer(always(answer(b"body")), tls) as server:
            with pytest.raises(UpstreamUnreachable, match=r"certificate not trusted.*127\.0\.0\.1"):
                self.get(trusting, server)
            assert server.requests == []

    def test_plain_server_behind_https_is_unreachable(self, trusting: Transport) -> None:
        with ScriptedServer(lambda peer: peer.send(b"HTTP/1.1 400 Bad\r\n\r\n")) as server:
            request = UpstreamRequest("GET", f"https://{server.origin}/")
            with pytest.raises(UpstreamUnreachable, match="cannot connect to the upstream"):
                trusting.open(request)

    @pytest.mark.parametrize("drip", [b"", b"\x16\x03\x03\x3f\xff\x02"])
    def test_handshake_that_never_ends_is_a_timeout(self, trusting: Transport, drip: bytes) -> None:
        leave = threading.Event()

        def script(peer: Peer) -> None:
            peer.send(drip)
            while drip and not leave.wait(0.02):
                peer.send(b"\0")
            leave.wait(5)

        with ScriptedServer(script) as server:
            request = UpstreamRequest("GET", f"https://{server.origin}/")
            with pytest.raises(UpstreamTimeout, match="could not connect"):
                trusting.open(request, timeouts=Timeouts(connect=0.3))
            leave.set()

    def test_http_proxy_gets_the_absolute_url_and_credentials(self) -> None:
        with ScriptedServer(always(answer(b"through"))) as proxy:
            transport = Transport(SOON, proxy=f"http://{USER}{proxy.origin}")
            for _ in range(2):
                request = UpstreamRequest("GET", "http://upstream.example/path?q=1")
                with transport.open(request) as response:
                    assert response.read_all(LIMIT) == b"through"
            transport.close()
            assert proxy.connections == 1
            assert proxy.requests[1].target == "http://upstream.example/path?q=1"
            assert proxy.requests[1].headers["host"] == "upstream.example"
            assert proxy.requests[1].headers["proxy-authorization"] == BASIC

    def test_proxy_of_one_request_overrides_and_empty_means_none(
        self, transport: Transport
    ) -> None:
        with (
            ScriptedServer(always(answer(b"proxy"))) as proxy,
            ScriptedServer(always(answer(b"direct"))) as server,
        ):
            via = f"http://{proxy.origin}"
            proxied = Transport(SOON, proxy=via)
            assert self.fetch(transport, server, proxy=via) == b"proxy"
            assert self.fetch(transport, server) == b"direct"
            assert self.fetch(proxied, server) == b"proxy"
            assert self.fetch(proxied, server, proxy="") == b"direct"
            proxied.close()

    def test_environment_proxies_are_ignored(
        self, transport: Transport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
        with ScriptedServer(always(answer(b"direct"))) as server:
            assert self.fetch(transport, server) == b"direct"

    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    def test_tunnel_through_a_proxy(
        self, trusting: Transport, authority: Authority, secure: bool
    ) -> None:
        tls = authority.server_context("127.0.0.1")
        proxy_tls = tls if secure else None
        with (
            ScriptedServer(always(answer(b"tunnelled")), tls) as server,
            ScriptedServer(connect_proxy(BASIC), proxy_tls) as proxy,
        ):
            via = f"{proxy.scheme}://{USER}{proxy.origin}"
            for _ in range(2):
                assert self.fetch(trusting, server, proxy=via) == b"tunnelled"
            assert (proxy.connections, server.connections) == (1, 1)
            assert proxy.requests[0].target == server.origin

    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    def test_cut_within_a_tunnel_is_a_protocol_error(
        self, trusting: Transport, authority: Authority, secure: bool
    ) -> None:
        tls = authority.server_context("127.0.0.1")
        with (
            ScriptedServer(once(CHUNKED + chunk(b"half")), tls) as server,
            ScriptedServer(connect_proxy(), tls if secure else None) as proxy,
            self.get(trusting, server, proxy=f"{proxy.scheme}://{proxy.origin}") as response,
        ):
            assert read_some(response) == b"half"
            with pytest.raises(ProtocolError):
                response.read(5.0)

    def test_refused_tunnel_is_unreachable_and_hides_the_password(
        self, trusting: Transport
    ) -> None:
        with ScriptedServer(connect_proxy(BASIC)) as proxy:
            request = UpstreamRequest("GET", "https://upstream.example/")
            with pytest.raises(UpstreamUnreachable) as caught:
                trusting.open(request, proxy=f"http://user:hush@{proxy.origin}")
        assert "407" in caught.value.message
        assert proxy.origin not in caught.value.message
        assert "hush" not in caught.value.message

    def test_silent_proxy_is_a_timeout(self, trusting: Transport) -> None:
        leave = threading.Event()

        def script(peer: Peer) -> None:
            leave.wait(5)

        with ScriptedServer(script) as proxy:
            request = UpstreamRequest("GET", "https://upstream.example/")
            for scheme in ("http", "https", "socks5h"):
                with pytest.raises(UpstreamTimeout, match="could not connect"):
                    trusting.open(
                        request,
                        proxy=f"{scheme}://{proxy.origin}",
                        timeouts=Timeouts(connect=0.2),
                    )
            leave.set()

    @pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    def test_socks_proxy(
        self, trusting: Transport, authority: Authority, scheme: str, secure: bool
    ) -> None:
        asked: list[str] = []
        tls = authority.server_context("localhost") if secure else None
        with (
            ScriptedServer(always(answer(b"by socks")), tls) as server,
            ScriptedServer(socks5_proxy(asked, b"us er:p@ss")) as proxy,
        ):
            request = UpstreamRequest("GET", f"{server.scheme}://localhost:{server.port}/")
            for _ in range(2):
                via = f"{scheme}://{USER}{proxy.origin}"
                with trusting.open(request, proxy=via) as response:
                    assert response.read_all(LIMIT) == b"by socks"
            expected = "name localhost" if scheme == "socks5h" else "address 127.0.0.1"
            assert asked == [expected]

    def test_socks_proxy_that_refuses_is_unreachable(self, transport: Transport) -> None:
        with ScriptedServer(socks5_proxy([], b"user:right")) as proxy:
            request = UpstreamRequest("GET", "http://upstream.example/")
            with pytest.raises(UpstreamUnreachable, match="authentication failed") as caught:
                transport.open(request, proxy=f"socks5h://user:wrong@{proxy.origin}")
        assert "wrong" not in caught.value.message

    @pytest.mark.parametrize("proxy", ["ftp://x", "127.0.0.1:1", "http://", "http://h:port"])
    def test_nonsense_for_a_proxy_is_a_value_error(self, transport: Transport, proxy: str) -> None:
        with pytest.raises(ValueError, match="proxy url"):
            Transport(proxy=proxy)
        with pytest.raises(ValueError, match="proxy url"):
            transport.open(UpstreamRequest("GET", "http://127.0.0.1/"), proxy=proxy)
