"""Reads a URL so strictly that no two programs could disagree about where it leads."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, urljoin

import idna
import msgspec

from services.core.errors import InvalidRequest
from services.fetch.addresses import WEB_PORTS, Address, AllowList, is_public, parse_address

MAX_URL = 8_192
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH_SAFE = "/%:@!$&'()*+,;=~?[]"
# Names that only ever mean a machine inside somebody's network.
_INSIDE = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa", "corp")


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads.

    `host` is lower-case ASCII, without brackets; `address` is set when it is a literal. `path`
    starts with a slash, holds the query and is safe to put on a request line.
    """

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None = None

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def __repr__(self) -> str:
        return f"Target({self.scheme}://{self.authority}/…)"


def parse_url(text: str, allow: AllowList) -> Target:
    """The target of an http(s) URL.

    Raise InvalidRequest for a malformed URL, or one that is closed on its face. Texts never repeat
    the URL: a path or query may hold a signature, and callers search messages for words.
    """
    _check_characters(text)
    parts = _URL.fullmatch(text)
    if parts is None:
        raise refused("only http:// and https:// addresses are fetched")
    scheme = parts["scheme"].lower()
    host, port = _split_authority(parts["authority"], _DEFAULT_PORTS[scheme])
    name, address = _read_host(host)
    path = quote((parts["path"] or "/") + (parts["query"] or ""), safe=_PATH_SAFE)
    target = Target(scheme=scheme, host=name, port=port, path=path, address=address)
    _check_open(target, allow)
    return target


def join_redirect(base: Target, location: str, allow: AllowList) -> Target:
    """The target of a `Location` header seen at `base`, under the same checks as a first URL."""
    try:
        # http.client hands header bytes over as Latin-1; servers send UTF-8
        location = location.encode("latin-1").decode("utf-8")
        _check_characters(location)
        # urljoin would read `http:x` and `http://` as relative
        joined = location if _ABSOLUTE.match(location) else urljoin(base.url, location)
    except ValueError as exc:
        raise refused("it redirects to a malformed address") from exc
    return parse_url(joined, allow)


def check_address(target: Target, address: Address, allow: AllowList) -> None:
    """Raise InvalidRequest unless `target` may be dialled at `address`."""
    open_to_all = target.port in WEB_PORTS and is_public(address)
    if not (open_to_all or allow.admits(target.host, address, target.port)):
        raise not_public()


def refused(reason: str) -> InvalidRequest:
    """An error for a URL that will not be fetched."""
    return InvalidRequest(f"this url cannot be fetched: {reason}", code="invalid_url")


def not_public() -> InvalidRequest:
    """One text for unknown, private and mixed names: it must not help to map a network."""
    return refused("its host does not stand for public internet addresses only")


def _check_characters(text: str) -> None:
    if not text or len(text) > MAX_URL:
        raise refused(f"it must have between 1 and {MAX_URL} characters")
    if "\\" in text:
        raise refused("it holds a backslash")
    for char in text:
        if char <= " " or (char > "~" and unicodedata.category(char) in _INVISIBLE):
            raise refused("it holds a space, a control character or an invisible one")


_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    if "@" in authority:
        raise refused("it holds a user name or password")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise refused("its host or port is malformed")
    port = int(parts["port"]) if parts["port"] else default_port
    if not 0 < port < 65536:
        raise refused("its port is not between 1 and 65535")
    return parts["host"], port


def _read_host(host: str) -> tuple[str, Address | None]:
    if host.startswith("["):
        address = None if "%" in host else parse_address(host[1:-1])
        if address is None or address.version != 6:
            raise refused("its IPv6 address is malformed")
        return str(address), address
    name = host.lower() if host.isascii() else _to_ascii(host)
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise refused("its host name is malformed")
    if not _NUMBER.fullmatch(labels[-1]):
        return name, None
    address = parse_address(name)
    if address is None:
        raise refused("its host is a number that is not a plain dotted IPv4 address")
    return name, address


def _to_ascii(host: str) -> str:
    """IDNA 2008 without mapping: what would have to be normalised first (。．｡, １) is refused."""
    if len(host) > 253 or any(dot in host for dot in "。．｡"):
        raise refused("its host name is malformed")
    try:
        return idna.encode(host.lower()).decode("ascii")
    except UnicodeError as exc:
        raise refused("its host name is malformed") from exc


def _check_open(target: Target, allow: AllowList) -> None:
    if target.port not in WEB_PORTS and not allow.knows_port(target.port):
        raise refused("only ports 80 and 443 are open")
    if target.address is not None:
        check_address(target, target.address, allow)
        return
    inside = "." not in target.host or target.host.endswith(tuple(f".{name}" for name in _INSIDE))
    if inside and not allow.knows_host(target.host):
        raise not_public()
