"""Servers on loopback that answer byte for byte what a test tells them, over real sockets."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Talk = Callable[[socket.socket, bytes], None]
"""What a server does with one connection, given the request's head."""


def answer(body: bytes, *headers: str, status: str = "200 OK") -> Talk:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers))

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)

    return talk


def redirect(location: str, status: str = "302 Found") -> Talk:
    return answer(b"", f"Location: {location}", status=status)


def raw(data: bytes) -> Talk:
    return lambda connection, request: connection.sendall(data)


class Server:
    """Listens on 127.0.0.1 while in a `with`; `requests` holds the head of every request."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        self._talk = talk
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []
        self.leaving = threading.Event()

    def __enter__(self) -> Server:
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.settimeout(10)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with contextlib.closing(connection):
                request = self._read_head(connection)
                self.requests.append(request)
                self._talk(connection, request)
                if isinstance(connection, ssl.SSLSocket):
                    connection.unwrap()

    def _read_head(self, connection: socket.socket, request: bytes = b"") -> bytes:
        while b"\r\n\r\n" not in request and (piece := connection.recv(4096)):
            request += piece
        return request


class Proxy(Server):
    """An HTTP and SOCKS5 proxy that leads to 127.0.0.1:`port`, whatever it is asked for; what is
    asked for a place in `others`, such as `files.example:80`, to that port.

    `asked` is what it was asked for; `credentials` what came along. It refuses with `refusal`.
    """

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None = None,
        refusal: str = "",
        others: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(self._lead, tls)
        self._port = port
        self._others = others or {}
        self._refusal = refusal
        self.asked: list[str] = []
        self.credentials: list[str] = []

    def _read_head(self, connection: socket.socket, request: bytes = b"") -> bytes:
        first = connection.recv(1)
        if first == b"\x05":
            return self._read_socks(connection)
        return super()._read_head(connection, first)

    def _lead(self, near: socket.socket, request: bytes) -> None:
        if self._refusal:
            near.sendall(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        if head:  # of HTTP: SOCKS has said what it wants
            self.asked.append(lines[0].rpartition(" ")[0].replace("CONNECT", "connect"))
            given = [x for x in lines if x.lower().startswith("proxy-authorization: basic ")]
            self.credentials += [b64decode(x.rpartition(" ")[2]).decode() for x in given]
        what, _, target = self.asked[-1].rpartition(" ")
        place, _, path = target.removeprefix("http://").partition("/")
        port = self._others.get(place, self._port)
        with socket.create_connection(("127.0.0.1", port)) as far:
            if what == "connect":
                near.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            elif head:
                kept = [x for x in lines[1:] if x.partition(":")[0].lower() != "connection"]
                first = [f"{what} /{path} HTTP/1.1", "Connection: close", *kept]
                far.sendall("\r\n".join(first).encode() + b"\r\n\r\n" + body)
            _relay(near, far)

    def _read_socks(self, connection: socket.socket) -> bytes:
        def take(count: int) -> bytes:
            return connection.recv(count, socket.MSG_WAITALL)

        if b"\x02" in take(take(1)[0]):
            connection.sendall(b"\x05\x02")
            user = take(take(2)[1])
            self.credentials.append(f"{user.decode()}:{take(take(1)[0]).decode()}")
            connection.sendall(b"\x01\x00")
        else:
            connection.sendall(b"\x05\x00")
        kind = take(4)[3]
        if kind == 3:
            host = f"name {take(take(1)[0]).decode()}"
        else:
            size = 4 if kind == 1 else 16
            host = f"address {ipaddress.ip_address(take(size))}"
        self.asked.append(f"socks {host}:{int.from_bytes(take(2), 'big')}")
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        return b""


def _relay(near: socket.socket, far: socket.socket) -> None:
    """Pass bytes both ways until either side ends; in one thread, as TLS sockets require."""
    other = {near: far, far: near}
    while ready := select.select([near, far], [], [], 10)[0]:
        for source in ready:
            data = source.recv(65536)
            while isinstance(source, ssl.SSLSocket) and source.pending():
                data += source.recv(65536)
            if not data:
                return
            other[source].sendall(data)


@contextlib.contextmanager
def dripping(port: int, whole: int) -> Iterator[int]:
    """A port that leads to `port`; after `whole` bytes the answer comes one byte at a time."""
    ends = threading.Event()

    def relay(near: socket.socket, far: socket.socket, drip: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := near.recv(1 if drip and passed >= whole else 4096):
                far.sendall(data)
                passed += len(data)
                if drip and passed > whole and ends.wait(0.02):
                    return

    def accept() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            back = threading.Thread(target=relay, args=(far, near, True))
            back.start()
            relay(near, far, False)
            far.shutdown(socket.SHUT_RDWR)
            back.join(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield int(listener.getsockname()[1])
        ends.set()
        thread.join(10)


class Authority:
    """A private certificate authority, made for one test run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        certificate = self._sign(self._name, self._key, x509.BasicConstraints(True, 0))
        path = folder / "authority.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.ca_file = str(path)

    def server_context(self, *names: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = self._sign(subject, key, alternatives)
        path = self._folder / f"{names[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        critical = isinstance(extension, x509.BasicConstraints)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=critical)
            .sign(self._key, hashes.SHA256())
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
