"""From a URL to its bytes: parse, look up, check, dial, read; again for each redirect."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from http.client import HTTPException

from services.core.errors import InvalidRequest
from services.fetch.addresses import Address, AllowList
from services.fetch.data_urls import decode_data_url
from services.fetch.deadline import Deadline
from services.fetch.exchange import Document, Redirect, failed, get
from services.fetch.fetched import Fetched, Limits
from services.fetch.lookup import Lookups, Resolver, system_resolver
from services.fetch.urls import Target, check_address, join_redirect, not_public, parse_url
from services.fetch.wire import Dial, PlainWire, TlsWire, TooMuch, Wire, dial
from services.media import sniff

_MAX_DIALLED = 4


class Fetcher:
    """Fetches what callers and upstreams point at.

    Build one a process; threads and greenlets share it. `tls` verifies servers; the default trusts
    the system's authorities. `resolver` and `dial` are the only two ways out: a proxy would be
    another `dial`.
    """

    def __init__(
        self,
        *,
        allow: AllowList | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver = system_resolver,
        dial: Dial = dial,
    ) -> None:
        self._allow = allow or AllowList()
        self._limits = limits or Limits()
        self._tls = tls or ssl.create_default_context()
        self._lookups = Lookups(resolver)
        self._dial = dial

    def fetch(self, url: str, *, limits: Limits | None = None, param: str | None = None) -> Fetched:
        """The file behind an http, https or `data:` URL.

        Raise InvalidRequest, with `param` as the field at fault, for a URL that is malformed or
        closed, and for a server that answers badly, too slowly or with too much. No text holds the
        URL or an address.
        """
        limits = limits or self._limits
        if url[:5].lower() == "data:":
            return decode_data_url(url, limits.max_bytes, param=param)
        with _named(param), _explained(limits):
            return self._follow(parse_url(url, self._allow), limits)

    def check(self, url: str, *, param: str | None = None) -> str:
        """The URL in its plain form, if `fetch` would dial it.

        For URLs that an upstream fetches itself. Raise InvalidRequest as `fetch` does. The
        upstream resolves the name again, so this only keeps internal names and addresses from
        being handed out.
        """
        with _named(param), _explained(self._limits):
            target = parse_url(url, self._allow)
            self._addresses(target, Deadline(self._limits.seconds))
            return target.url

    def _follow(self, target: Target, limits: Limits) -> Fetched:
        deadline = Deadline(limits.seconds)
        for _ in range(limits.redirects + 1):
            match self._visit(target, limits, deadline):
                case Redirect(location=location):
                    target = join_redirect(target, location, self._allow)
                case Document() as document:
                    return Fetched(
                        data=document.data,
                        mime=sniff(document.data, document.declared_type),
                        declared_type=document.declared_type,
                        final_url=target.url,
                        name=document.name,
                    )
        raise failed(f"it redirects more than {limits.redirects} times")

    def _visit(self, target: Target, limits: Limits, deadline: Deadline) -> Document | Redirect:
        addresses = self._addresses(target, deadline)
        with contextlib.closing(self._connect(target, addresses, limits, deadline)) as sock:
            wire: Wire = PlainWire(sock, deadline)
            if target.scheme == "https":
                wire = TlsWire(wire, self._tls, target.host)
            return get(target, wire, limits)

    def _addresses(self, target: Target, deadline: Deadline) -> Sequence[Address]:
        """All addresses of `target`, looked up once, each of them checked."""
        if target.address is not None:
            return (target.address,)
        found = self._lookups.addresses(target.host, target.port, deadline)
        if found is None:
            raise not_public()
        for address in found:
            check_address(target, address, self._allow)
        return found

    def _connect(
        self, target: Target, addresses: Sequence[Address], limits: Limits, deadline: Deadline
    ) -> socket.socket:
        """A connection to the first address that takes one; only checked addresses are tried."""
        failure: OSError = ConnectionError("no address")
        for address in addresses[:_MAX_DIALLED]:
            seconds = min(limits.connect_seconds, deadline.left())
            try:
                return self._dial(address, target.port, seconds)
            except OSError as exc:
                failure = exc
        raise failure


@contextlib.contextmanager
def _named(param: str | None) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as problem:
        problem.param = param
        raise


@contextlib.contextmanager
def _explained(limits: Limits) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP raise into an error for the caller."""
    try:
        yield
    except TimeoutError as exc:
        raise failed("its server took too long") from exc
    except ssl.SSLCertVerificationError as exc:
        raise failed("the certificate of its server is not valid for this host") from exc
    except ssl.SSLError as exc:
        raise failed("its server does not speak proper tls") from exc
    except OSError as exc:
        raise failed("its server cannot be reached, or broke off") from exc
    except TooMuch as exc:
        raise failed("its server sent too much, in headers or around the file") from exc
    except HTTPException as exc:
        raise failed("its server does not speak proper http, or broke off") from exc
