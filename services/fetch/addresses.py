"""Which addresses and ports a caller's URL may lead to."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

WEB_PORTS = frozenset({80, 443})

# IANA's special-purpose registries. Spelled out, because ipaddress.is_global changes between
# Python releases.
_CLOSED_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
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


def is_public(address: Address) -> bool:
    """True for a global unicast address that embeds no other address."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _CLOSED_V4)
    if address.scope_id is not None or address not in _GLOBAL_V6:
        return False
    return not any(address in block for block in _CLOSED_V6)


class _Entry(msgspec.Struct, frozen=True):
    """Either a network or a host name; `ports` on which it may be reached."""

    network: Network | None
    host: str
    ports: frozenset[int]

    def admits(self, host: str, address: Address, port: int) -> bool:
        if port not in self.ports:
            return False
        if self.network is None:
            return host == self.host
        return address.version == self.network.version and address in self.network


class AllowList:
    """Targets that the operator opens beyond the public web.

    An entry is a network, an address or a host name, each with an optional port: `10.1.0.0/16`,
    `10.1.2.3:9000`, `10.1.0.0/16:9000`, `[fd00::/8]:8080`, `files.internal:9000`. Without a port
    it holds for 80 and 443. A network admits whatever name resolves into it; a host name admits
    whatever that name resolves to. Raise ValueError for an entry that is none of these.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries = tuple(_entry(text) for text in entries)

    def admits(self, host: str, address: Address, port: int) -> bool:
        return any(entry.admits(host, address, port) for entry in self._entries)

    def knows_host(self, host: str) -> bool:
        return any(entry.network is None and entry.host == host for entry in self._entries)

    def knows_port(self, port: int) -> bool:
        return any(port in entry.ports for entry in self._entries)


def _entry(text: str) -> _Entry:
    what, port = _split_port(text.strip().lower())
    ports = WEB_PORTS if port is None else frozenset({port})
    network = _network(what)
    if network is None and not _is_name(what):
        raise ValueError(f"{text!r} is neither a network, an address nor a host name")
    return _Entry(network=network, host="" if network else what, ports=ports)


def _split_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        what, bracket, rest = text[1:].partition("]")
        digits = rest.removeprefix(":")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} must close its bracket and have at most a port behind it")
    elif text.count(":") == 1:
        what, _, digits = text.partition(":")
        rest = ":"
    else:
        return text, None
    if not rest:
        return what, None
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 65536):
        raise ValueError(f"{text!r} has no port between 1 and 65535 behind its colon")
    return what, int(digits)


def _network(text: str) -> Network | None:
    try:
        return ip_network(text)
    except ValueError as exc:
        if "/" in text:
            raise ValueError(f"{text!r} is not a network: {exc}") from exc
        return None


def _is_name(text: str) -> bool:
    labels = text.split(".")
    return all(
        label.isascii() and label.replace("-", "").replace("_", "").isalnum() for label in labels
    ) and not (labels[-1].isdigit())


def parse_address(text: str) -> Address | None:
    """The address that `text` spells in its plain form, or None."""
    try:
        return ip_address(text)
    except ValueError:
        return None
