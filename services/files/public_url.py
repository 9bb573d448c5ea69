"""The address under which the world reaches this gateway."""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from services.config import Settings
from services.core.errors import Unavailable

log = logging.getLogger(__name__)

_HOST = re.compile(
    r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_FORWARDING = (
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_REAL_IP",
    "HTTP_FORWARDED",
)
_inner_host_told = threading.Event()
"""Once in a process is enough."""


class PublicUrlUnknown(Unavailable):
    code = "public_url_unknown"


def public_base(settings: Settings, environ: Mapping[str, Any]) -> str:
    """`backend_container_url`, else scheme and host of the request; without a slash at the end.

    A proxy's word (`X-Forwarded-Proto`, `-Host`, `-Port`) counts if it is one of
    `server.trusted_proxies`. Raise PublicUrlUnknown behind any other proxy, since the host that
    it asked for may be an inner one, and for a host that cannot be part of a URL. One without a
    dot, such as a container's name, is used but warned of.
    """
    if settings.backend_container_url:
        return settings.backend_container_url
    scheme, host = str(environ.get("wsgi.url_scheme", "http")), str(environ.get("HTTP_HOST", ""))
    if any(environ.get(name) for name in _FORWARDING):
        if not _is_trusted(str(environ.get("REMOTE_ADDR", "")), settings.server.trusted_proxies):
            raise _unknown("this request came through a proxy that server.trusted_proxies lacks")
        scheme = _last(environ, "HTTP_X_FORWARDED_PROTO").lower() or scheme
        host = _last(environ, "HTTP_X_FORWARDED_HOST") or host
        host = _with_port(host, _last(environ, "HTTP_X_FORWARDED_PORT"))
    return _joined(scheme, host)


def is_ours(settings: Settings, base: Callable[[], str], url: str) -> bool:
    """Whether `url` leads to this gateway: to `backend_container_url` or to the host that the
    caller used, whatever the port, or to our port of this machine.
    """
    host, port = _place(url)
    if port == settings.server.port and (host == "localhost" or _is_loopback(host)):
        return True
    with suppress(PublicUrlUnknown):
        return bool(host) and host in (_place(settings.backend_container_url)[0], _place(base())[0])
    return False


def _place(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _joined(scheme: str, host: str) -> str:
    parts = _HOST.fullmatch(host)
    if scheme not in _DEFAULT_PORTS or parts is None:
        raise _unknown("this request does not tell it")
    if parts["port"] == _DEFAULT_PORTS[scheme]:
        host = parts["name"]
    is_inner = "." not in host and parts["name"] != "localhost" and not host.startswith("[")
    if is_inner and not _inner_host_told.is_set():
        _inner_host_told.set()
        log.warning(
            "links to pictures and files name the host that the caller used, which browsers may not"
            " find: set backend_container_url host=%s",
            host,
        )
    return f"{scheme}://{host}"


def _last(environ: Mapping[str, Any], name: str) -> str:
    """The value that the nearest proxy added; those before it may be anybody's."""
    return str(environ.get(name, "")).rpartition(",")[2].strip()


def _with_port(host: str, port: str) -> str:
    parts = _HOST.fullmatch(host)
    if not port.isdigit() or parts is None or parts["port"]:
        return host
    return f"{host}:{port}"


def _is_trusted(remote: str, networks: tuple[str, ...]) -> bool:
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return False  # a Unix socket has no address
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)


def _unknown(reason: str) -> PublicUrlUnknown:
    return PublicUrlUnknown(
        f"the public address of this gateway is not known: {reason}; set backend_container_url"
    )
