"""Fetching over real sockets: what arrives, what is refused, and that it ends in time."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from services.core.errors import InvalidRequest
from services.files.addresses import AllowList
from services.files.data_urls import Fetched
from services.files.download import Limits
from services.files.fetch import Fetcher

from .servers import Authority, Server, Talk, answer, dripping, raw, redirect

PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    + bytes((0, 0, 0, 2, 0, 0, 0, 3, 8, 2, 0, 0, 0))
    + b"rest"
)
QUICK = Limits(seconds=0.4)
SMALL = Limits(max_bytes=1_000, header_bytes=4_096)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def fetch(
    server: Server, path: str = "/", *, limits: Limits | None = None, host: str = "127.0.0.1"
) -> Fetched:
    fetcher = Fetcher(
        allow=AllowList([f"{host}:{server.port}"]), resolver=lambda host, port: ["127.0.0.1"]
    )
    return fetcher.fetch(f"http://{host}:{server.port}{path}", limits=limits, param="url")


def failure(talk: Talk, limits: Limits | None = None) -> str:
    with Server(talk) as server, pytest.raises(InvalidRequest) as caught:
        fetch(server, "/path-secret?sig=query-secret", limits=limits)
    assert server.connections == 1
    assert caught.value.status == 400
    assert caught.value.param == "url"
    assert "secret" not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    return caught.value.message


def forever(first: bytes, piece: bytes, pause: float = 0.0) -> Talk:
    """Send `piece` again and again until the other side has gone."""

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(first)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            connection.sendall(piece)
            time.sleep(pause)

    return talk


def test_file_arrives_with_sniffed_and_declared_type() -> None:
    with Server(answer(PNG, "Content-Type: Text/HTML; charset=utf-8")) as server:
        fetched = fetch(server, "/dir/cat%20pic.png?sig=abc")
    assert fetched.data == PNG
    assert fetched.mime == "image/png"
    assert fetched.declared_type == "text/html"
    assert fetched.name == "cat pic.png"
    assert server.requests[0].startswith(b"GET /dir/cat%20pic.png?sig=abc HTTP/1.1\r\n")


def test_request_is_plain_and_carries_no_more_than_needed() -> None:
    with Server(answer(b"x")) as server:
        fetch(server, "/ä?b=c#frag", host="files.internal")
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /%C3%A4?b=c HTTP/1.1"
    names = [line.partition(":")[0] for line in lines[1:] if line]
    assert names == ["Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"]
    assert f"Host: files.internal:{server.port}" in lines
    assert "Accept-Encoding: identity" in lines


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\temp\\\\a.txt"', "a.txt"),
        ("attachment; filename=report.csv", "report.csv"),
        ("attachment; filename=\"x\"; filename*=UTF-8''%E5%9B%BE%2F%0A.png", "png"),
        ("attachment; filename*=UTF-8''%E5%9B%BE.png", "图.png"),
        ('attachment; filename=".."', ""),
        ('attachment; filename="\x01a\x02.txt"', "a.txt"),
        ("inline", "fallback.bin"),
    ],
)
def test_name_is_a_bare_file_name(header: str, name: str) -> None:
    with Server(answer(b"x", f"Content-Disposition: {header}")) as server:
        assert fetch(server, "/fallback.bin").name == name


@pytest.mark.parametrize(
    "reply",
    [
        CHUNKED + b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nabcdefg",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nabcdefgMORE",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 7\r\n\r\nabcdefg",
    ],
    ids=["chunked", "until the end", "continue", "identity"],
)
def test_every_framing_gives_the_body(reply: bytes) -> None:
    with Server(raw(reply)) as server:
        assert fetch(server).data == b"abcdefg"


def test_empty_file_is_a_file() -> None:
    with Server(answer(b"")) as server:
        assert fetch(server).data == b""


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "206 Part"])
def test_other_status_is_reported_by_number(status: str) -> None:
    text = failure(answer(b"<html>secret</html>", status=status))
    assert f"status {status[:3]}" in text


def test_redirect_without_location_is_reported_by_number() -> None:
    assert "status 302" in failure(answer(b"", status="302 Found"))


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        CHUNKED + b"a\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"zz\r\nabc\r\n",
    ],
    ids=["length", "chunk", "no last chunk", "no size"],
)
def test_body_that_is_cut_short_is_refused(reply: bytes) -> None:
    text = failure(raw(reply))
    assert "cut short" in text or "broke off" in text


@pytest.mark.parametrize(
    "reply",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"+PONG\r\n",
        b"HTTP/9 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
    ],
)
def test_answer_that_is_no_http_is_refused(reply: bytes) -> None:
    assert "http" in failure(raw(reply))


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX-A: b\r\nbroken-secret\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"nonsense-secret\r\n\r\n",
    ],
    ids=["sound", "broken header", "cut short", "no http"],
)
def test_no_log_of_any_library_holds_the_url(
    reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Server(raw(reply)) as server, contextlib.suppress(InvalidRequest):
        assert fetch(server, "/path-secret?sig=query-secret").data == b"abc"
    assert "secret" not in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_server_that_hangs_up_is_reported() -> None:
    assert "broke off" in failure(raw(b""))


def test_declared_length_beyond_the_limit_is_refused_up_front() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
    waiting = threading.Event()

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        waiting.set()
        assert connection.recv(1) == b""  # it hangs up without a byte of the body

    assert "larger than 1000 bytes" in failure(talk, SMALL)
    assert waiting.is_set()


@pytest.mark.parametrize("length", ["-1", "+5", "1_0", "5, 5", "0x10", "9" * 30, "٥", ""])
def test_malformed_length_is_refused(length: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nabcde".encode()
    assert "length" in failure(raw(head))


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 500),
        (CHUNKED, b"1f4\r\n" + b"x" * 500 + b"\r\n"),
    ],
    ids=["until the end", "chunked"],
)
def test_body_without_length_is_cut_off_at_the_limit(first: bytes, piece: bytes) -> None:
    assert "larger than 1000 bytes" in failure(forever(first, piece), SMALL)


def test_body_of_exactly_the_limit_passes() -> None:
    with Server(raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)) as server:
        assert len(fetch(server, limits=SMALL).data) == 1000


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 1000),
        (b"HTTP/1.1 200 ", b"O" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED + b"0\r\n", b"X-Trailer: b\r\n"),
        (CHUNKED, b"1;" + b"x" * 1000 + b"\r\na\r\n"),
    ],
    ids=["headers", "one header", "status line", "continues", "trailers", "chunk extensions"],
)
def test_endless_framing_is_cut_off(first: bytes, piece: bytes) -> None:
    text = failure(forever(first, piece), SMALL)
    assert "too much" in text or "proper http" in text


def test_gzip_bomb_is_refused_and_not_unpacked() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    assert "compressed" in failure(answer(bomb, "Content-Encoding: gzip"))


@pytest.mark.parametrize("encoding", ["deflate", "br", "identity, gzip", "x"])
def test_other_content_encodings_are_refused(encoding: str) -> None:
    assert "compressed" in failure(answer(b"x", f"Content-Encoding: {encoding}"))


def test_other_transfer_encoding_is_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    assert "transfer encoding" in failure(raw(head + b"0\r\n\r\n"))


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (b"", b"H"),
    ],
    ids=["body", "header", "chunks", "status line"],
)
def test_dripping_server_is_left_at_the_total_limit(first: bytes, piece: bytes) -> None:
    start = time.monotonic()
    assert "too long" in failure(forever(first, piece, pause=0.02), QUICK)
    assert time.monotonic() - start < 5


def test_silent_server_is_left_at_the_total_limit() -> None:
    def talk(connection: socket.socket, request: bytes) -> None:
        connection.recv(1)

    assert "too long" in failure(talk, QUICK)


def test_redirects_share_one_total_limit() -> None:
    hops = itertools.count()

    def talk(connection: socket.socket, request: bytes) -> None:
        time.sleep(0.15)
        redirect(f"/{next(hops)}")(connection, request)

    with Server(talk) as server, pytest.raises(InvalidRequest, match="too long"):
        fetch(server, limits=Limits(seconds=0.4, redirects=50))
    assert server.connections <= 4


def test_refused_connection_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    fetcher = Fetcher(allow=AllowList([f"127.0.0.1:{port}"]))
    with pytest.raises(InvalidRequest, match="cannot be reached"):
        fetcher.fetch(f"http://127.0.0.1:{port}/")


# --- redirects


def test_redirect_is_followed() -> None:
    def talk(connection: socket.socket, request: bytes) -> None:
        reply = redirect("../b?c=d") if request.startswith(b"GET /x/a") else answer(b"there")
        reply(connection, request)

    with Server(talk) as server:
        fetched = fetch(server, "/x/a")
    assert fetched.data == b"there"
    assert server.requests[-1].startswith(b"GET /b?c=d HTTP/1.1\r\n")


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_three_redirects_are_followed_and_a_fourth_is_not(status: str) -> None:
    with Server(redirect("/again", status)) as server, pytest.raises(InvalidRequest) as caught:
        fetch(server)
    assert "more than 3 times" in caught.value.message
    assert server.connections == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{victim}/",
        "//127.0.0.1:{victim}/",
        "http://localhost:{victim}/",
        "http://inside.example:{victim}/",
        "http://169.254.169.254/latest/",
        "http://[::ffff:127.0.0.1]:{victim}/",
        "http://user@127.0.0.1:{victim}/",
        "http:\\\\127.0.0.1:{victim}/",
        "/\\127.0.0.1:{victim}/",
        "http://2130706433:{victim}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{victim}/_x",
        "ftp://example.com/",
        "data:text/plain,hello",
        "javascript:alert(1)",
        "http://[::1",
        "http://127.0.0.1:{victim}/a b",
        "\xff\xfe",
        "http://",
        "http:next",
    ],
)
def test_redirect_goes_through_the_same_checks(location: str) -> None:
    with (
        Server(answer(b"secret")) as victim,
        Server(redirect(location.replace("{victim}", str(victim.port)))) as server,
        pytest.raises(InvalidRequest) as caught,
    ):
        fetch(server)
    assert server.connections == 1
    assert victim.connections == 0
    assert caught.value.code == "invalid_url"
    assert caught.value.param == "url"


# --- names and addresses


class Door:
    """A dial function that notes where it should go and leads to `server` instead."""

    def __init__(self, server: Server, dead: tuple[str, ...] = ()) -> None:
        self._server = server
        self._dead = dead
        self.dialled: list[str] = []

    def __call__(self, address: str, port: int, seconds: float) -> socket.socket:
        self.dialled.append(f"{address} {port}")
        if address in self._dead:
            raise ConnectionRefusedError
        return socket.create_connection(("127.0.0.1", self._server.port), seconds)


class Turning:
    """A resolver whose first answer is public and whose later ones are not."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return ["93.184.216.34" if self.asked == 1 else "127.0.0.1"]


def test_rebinding_name_is_asked_once_and_the_checked_address_dialled() -> None:
    resolver = Turning()
    with Server(answer(b"ok")) as server:
        door = Door(server)
        fetched = Fetcher(resolver=resolver, dial=door).fetch("http://rebind.example/a")
    assert fetched.data == b"ok"
    assert resolver.asked == 1
    assert door.dialled == ["93.184.216.34 80"]
    assert b"Host: rebind.example\r\n" in server.requests[0]


def test_name_that_turns_private_before_a_redirect_is_refused() -> None:
    resolver = Turning()
    with Server(redirect("/next")) as server:
        door = Door(server)
        with pytest.raises(InvalidRequest):
            Fetcher(resolver=resolver, dial=door).fetch("http://rebind.example/a")
    assert resolver.asked == 2
    assert door.dialled == ["93.184.216.34 80"]


def test_next_checked_address_is_tried_when_the_first_is_dead() -> None:
    with Server(answer(b"ok")) as server:
        door = Door(server, dead=("2606:4700::1",))
        fetcher = Fetcher(resolver=lambda host, port: ["2606:4700::1", "1.1.1.1"], dial=door)
        assert fetcher.fetch("http://two.example/").data == b"ok"
    assert door.dialled == ["2606:4700::1 80", "1.1.1.1 80"]


def test_dead_addresses_are_tried_up_to_four() -> None:
    many = [f"1.1.1.{last}" for last in range(50)]
    with Server(answer(b"ok")) as server:
        door = Door(server, dead=tuple(many))
        with pytest.raises(InvalidRequest, match="cannot be reached"):
            Fetcher(resolver=lambda host, port: many, dial=door).fetch("http://many.example/")
    assert len(door.dialled) == 4


def test_system_resolver_and_dial_reach_a_name_of_this_machine() -> None:
    with Server(answer(b"ok")) as server:
        fetcher = Fetcher(allow=AllowList([f"localhost:{server.port}"]))
        assert fetcher.fetch(f"http://localhost:{server.port}/").data == b"ok"


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    release = threading.Event()
    yield release
    release.set()


def test_hanging_lookups_end_in_time_and_give_their_places_back(stuck: threading.Event) -> None:
    returned = threading.Semaphore(0)

    def resolver(host: str, port: int) -> list[str]:
        if host.startswith("slow"):
            stuck.wait(20)
            returned.release()
        return ["1.1.1.1"]

    dialled = threading.Event()

    def dial(address: str, port: int, seconds: float) -> socket.socket:
        dialled.set()
        raise ConnectionRefusedError

    fetcher = Fetcher(resolver=resolver, limits=Limits(seconds=0.1), dial=dial)
    start = time.monotonic()
    for number in range(6):  # more than there are places
        with pytest.raises(InvalidRequest, match="too long"):
            fetcher.fetch(f"http://slow{number}.example/")
    assert time.monotonic() - start < 5
    stuck.set()
    for _ in range(4):
        assert returned.acquire(timeout=5)
    end = time.monotonic() + 5
    while not dialled.is_set() and time.monotonic() < end:
        with pytest.raises(InvalidRequest):
            fetcher.fetch("http://quick.example/")
    assert dialled.is_set(), "no place came back"


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def secure_fetcher(server: Server, authority: Authority, host: str) -> Fetcher:
    return Fetcher(
        allow=AllowList([f"{host}:{server.port}"]),
        resolver=lambda host, port: ["127.0.0.1"],
        ca_file=authority.ca_file,
    )


def test_tls_keeps_sni_host_and_certificate_check(authority: Authority) -> None:
    context = authority.server_context("files.example")
    names: list[str] = []
    context.sni_callback = lambda connection, name, _: names.append(name)
    body = bytes(range(256)) * 2_000
    with Server(answer(body), context) as server:
        fetcher = secure_fetcher(server, authority, "files.example")
        fetched = fetcher.fetch(f"https://files.example:{server.port}/big?x=1")
    assert fetched.data == body
    assert names == ["files.example"]
    assert f"Host: files.example:{server.port}\r\n".encode() in server.requests[0]


def test_tls_to_an_address_checks_the_address_in_the_certificate(authority: Authority) -> None:
    with Server(answer(b"ok"), authority.server_context("127.0.0.1")) as server:
        fetcher = secure_fetcher(server, authority, "127.0.0.1")
        assert fetcher.fetch(f"https://127.0.0.1:{server.port}/").data == b"ok"


@pytest.mark.parametrize("name", ["other.example", "127.0.0.1", "sub.files.example"])
def test_tls_with_a_certificate_for_another_name_is_refused(
    authority: Authority, name: str
) -> None:
    with Server(answer(b"secret"), authority.server_context(name)) as server:
        fetcher = secure_fetcher(server, authority, "files.example")
        with pytest.raises(InvalidRequest, match="certificate"):
            fetcher.fetch(f"https://files.example:{server.port}/")
    assert server.connections == 1
    assert server.requests == []


def test_tls_with_an_unknown_authority_is_refused_by_default(authority: Authority) -> None:
    with Server(answer(b"secret"), authority.server_context("files.example")) as server:
        fetcher = Fetcher(
            allow=AllowList([f"files.example:{server.port}"]),
            resolver=lambda host, port: ["127.0.0.1"],
        )
        with pytest.raises(InvalidRequest, match="certificate"):
            fetcher.fetch(f"https://files.example:{server.port}/")
    assert server.requests == []


def test_tls_body_that_is_cut_short_is_refused(authority: Authority) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    with Server(raw(head), authority.server_context("files.example")) as server:
        fetcher = secure_fetcher(server, authority, "files.example")
        with pytest.raises(InvalidRequest, match="cut short"):
            fetcher.fetch(f"https://files.example:{server.port}/")


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "dripping"])
def test_tls_handshake_is_left_at_the_total_limit(authority: Authority, drip: bool) -> None:
    def accept(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            try:
                if drip:
                    forever(b"\x16\x03\x03\x3f\xff\x02", b"\x00", pause=0.02)(connection, b"")
                while connection.recv(4096):
                    continue
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        fetcher = Fetcher(
            allow=AllowList([f"127.0.0.1:{listener.getsockname()[1]}"]),
            ca_file=authority.ca_file,
            limits=QUICK,
        )
        start = time.monotonic()
        with pytest.raises(InvalidRequest, match="too long"):
            fetcher.fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        assert time.monotonic() - start < 5
        thread.join(10)


def test_tls_record_that_drips_is_left_at_the_total_limit(authority: Authority) -> None:
    context = authority.server_context("127.0.0.1")
    with Server(answer(bytes(500_000)), context) as server, dripping(server.port, 20_000) as port:
        fetcher = Fetcher(
            allow=AllowList([f"127.0.0.1:{port}"]),
            ca_file=authority.ca_file,
            limits=Limits(seconds=1.0),
        )
        start = time.monotonic()
        with pytest.raises(InvalidRequest, match="too long"):
            fetcher.fetch(f"https://127.0.0.1:{port}/")
        assert time.monotonic() - start < 5
    assert server.requests


def test_https_to_a_plain_server_is_reported(authority: Authority) -> None:
    # without the blank line that Server waits for, so this one answers whatever comes
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=accept)
        thread.start()
        port = listener.getsockname()[1]
        fetcher = Fetcher(allow=AllowList([f"127.0.0.1:{port}"]), ca_file=authority.ca_file)
        with pytest.raises(InvalidRequest, match="tls|reached"):
            fetcher.fetch(f"https://127.0.0.1:{port}/")
        thread.join(10)


def test_large_file_is_not_held_in_memory() -> None:
    size = 64 * 1024 * 1024

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n%PDF-")
        for _ in range(64):
            connection.sendall(zeros)

    zeros = bytes(size // 64)
    with Server(talk) as server:
        tracemalloc.start()
        try:
            fetched = fetch(server, limits=Limits(seconds=60, max_bytes=2 * size))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (len(fetched.data), fetched.mime) == (size + 5, "application/pdf")
    assert fetched.data[-3:] == b"\0\0\0"
    assert peak < size * 3 / 4
