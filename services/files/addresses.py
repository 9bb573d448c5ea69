"""Where a caller's URL may lead: read so strictly that no two programs could disagree about it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from urllib.parse import quote, urljoin

import idna
import msgspec

from services.core.errors import InvalidRequest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 8_192
WEB_PORTS = frozenset({80, 443})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\[\]/?#]*\]|[^:\[\]/?#@]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH_SAFE = "/%:@!$&'()*+,;=~?[]"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})
# Names that only ever mean a machine inside somebody's network.
_INSIDE = re.compile(
    r"[^.]*|.*\.(?:localhost|local|localdomain|internal|intranet|lan|home\.arpa|corp)"
)
_ENTRY = re.compile(
    r"(?:\[(?P<inner>[^\[\]]+)\]|(?P<bare>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<v6>[0-9a-f:.]*:[0-9a-f:./]*)"
)
_ENTRY_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*(?![0-9]+$)[a-z0-9_-]+")

# IANA's special-purpose registries. Spelled out, because ipaddress.is_global changes between
# Python releases.
_CLOSED_V4 = tuple(
    IPv4Network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("161.26.0.0/16", "166.8.0.0/14"),  # inside IBM's cloud: its own services
    )
)
# Global unicast is 2000::/3 and nothing else: loopback, v4-mapped and v4-compatible, NAT64, unique
# local, link local, site local and multicast all lie outside it. These are the closed parts
# within.
_GLOBAL_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments, Teredo (2001::/32) among them
        "2001:db8::/32",
        "2002::/16",  # 6to4: carries any IPv4 address
        "3fff::/20",
    )
)
_ISATAP = frozenset({0x5EFE, 0x0200_5EFE})
# Where clouds tell a machine its secrets and take its orders, mostly at addresses that are closed
# in any case. The operator's list opens none of these.
_CLOUD = tuple(
    ip_network(block)
    for block in (
        "168.63.129.16",  # Azure's wire server: an address like any other
        "169.254.0.0/16",  # nearly all; Tencent, Scaleway and Amazon's ECS at other ends of it
        "192.0.0.192",  # Oracle
        *("100.100.100.200", "100.96.0.96", "100.80.80.80"),  # Alibaba, Volcengine, UCloud
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),  # Amazon, its EKS, Google
        *("fd00:42::42", "fd00:a9fe:a9fe::1"),  # Scaleway, Linode
    )
)


def is_public(address: Address) -> bool:
    """True for a global unicast address that embeds no other address."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _CLOSED_V4)
    if address.scope_id is not None or address not in _GLOBAL_V6:
        return False
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:  # carries an IPv4 address
        return False
    return not any(address in block for block in _CLOSED_V6)


def _is_cloud(address: Address) -> bool:
    """Whether it is a cloud's own, also as NAT64, 6to4 and the like carry it."""
    forms: list[Address] = [address]
    if isinstance(address, IPv6Address) and not is_public(address):
        forms += [IPv4Address(int(address) & 0xFFFF_FFFF), address.sixtofour or address]
    return any(form in block for form in forms for block in _CLOUD)


def parse_address(text: str) -> Address | None:
    """The address that `text` spells in its plain form, or None."""
    try:
        return ip_address(text)
    except ValueError:
        return None


class _Entry(msgspec.Struct, frozen=True):
    """A network, or the host name where there is none; `ports` on which it may be reached."""

    network: Network | None
    host: str
    ports: frozenset[int]


class AllowList:
    """Targets that the operator opens beyond the public web.

    An entry is a network, an address or a host name, each with an optional port: `10.1.0.0/16`,
    `10.1.2.3:9000`, `10.1.0.0/16:9000`, `[fd00::/8]:8080`, `files.internal:9000`. Without a port
    it holds for 80 and 443. A network admits whatever name resolves into it; a host name admits
    whatever that name resolves to; neither opens what clouds keep for their own machines. Raise
    ValueError for an entry that is none of these.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries = tuple(_entry(text) for text in entries)

    def admits(self, host: str, address: Address, port: int) -> bool:
        return any(
            port in entry.ports
            and (host == entry.host if entry.network is None else address in entry.network)
            for entry in self._entries
        )

    def knows_host(self, host: str) -> bool:
        return any(entry.network is None and entry.host == host for entry in self._entries)

    def knows_port(self, port: int) -> bool:
        return any(port in entry.ports for entry in self._entries)


def _entry(text: str) -> _Entry:
    parts = _ENTRY.fullmatch(text.strip().lower())
    port = int(parts["port"] or 0) if parts else 0
    if parts is None or (parts["port"] and not 0 < port < 65536):
        raise ValueError(f"{text!r} must be a network, an address or a host name, at most a port")
    what = parts["inner"] or parts["bare"] or parts["v6"]
    ports = frozenset({port}) if port else WEB_PORTS
    if _ENTRY_NAME.fullmatch(what):
        return _Entry(None, what, ports)
    try:
        return _Entry(ip_network(what), "", ports)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a network: {exc}") from exc


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
        raise refused("it must be http:// or https:// with a host, without user name or password")
    scheme = parts["scheme"].lower()
    port = int(parts["port"] or _DEFAULT_PORTS[scheme])
    if port not in WEB_PORTS and not allow.knows_port(port):
        raise refused("only ports 80 and 443 are open")
    name, address = _read_host(parts["host"])
    path = quote((parts["path"] or "/") + (parts["query"] or ""), safe=_PATH_SAFE)
    target = Target(scheme, name, port, path, address)
    if address is not None:
        check_address(target, address, allow)
    elif _INSIDE.fullmatch(name) and not allow.knows_host(name):
        raise not_public()
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


def check_address(target: Target, address: Address | None, allow: AllowList) -> None:
    """Raise InvalidRequest unless `target` may be dialled at `address`, which must be one."""
    if address is None:
        raise not_public()
    open_to_all = target.port in WEB_PORTS and is_public(address)
    if not open_to_all and not allow.admits(target.host, address, target.port):
        raise not_public()
    if _is_cloud(address):
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


def _read_host(host: str) -> tuple[str, Address | None]:
    """Name and, if it is a literal, address. IDNA 2008 without mapping: what would have to be
    normalised first (。．｡, １) is refused.
    """
    if host.startswith("["):
        address = None if "%" in host else parse_address(host[1:-1])
        if address is None or address.version != 6:
            raise refused("its IPv6 address is malformed")
        return str(address), address
    try:
        if len(host) > 253 or any(dot in host for dot in "。．｡"):
            raise UnicodeError("not a host name")
        name = host.lower() if host.isascii() else idna.encode(host.lower()).decode("ascii")
        labels = name.split(".")
        if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            raise UnicodeError("not a host name")
    except UnicodeError as exc:
        raise refused("its host name is malformed") from exc
    if not _NUMBER.fullmatch(labels[-1]):
        return name, None
    address = parse_address(name)
    if address is None:
        raise refused("its host is a number that is not a plain dotted IPv4 address")
    return name, address
