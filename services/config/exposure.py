"""Whether it is safe to listen where the settings say."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from services.config.settings import Settings
from services.core.models import Secret

MIN_KEY_LENGTH = 16
_MIN_DIFFERENT = 6
_OBVIOUS = re.compile(r"change-?_?me|^(sk-)?(password|123456|your[-_]?(api[-_]?)?key|secret\b)")


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine; of names, only localhost is known."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def passthrough_enabled(settings: Settings) -> bool:
    """Whether callers may bring their own credential for the upstream; `Auth` tells the default."""
    auth = settings.auth
    if auth.passthrough is not None:
        return auth.passthrough
    closed = auth.keys or auth.anonymous or settings.has_accounts
    return is_loopback(settings.server.host) and not closed


def check_exposure(settings: Settings) -> list[str]:
    """Why the service must not start as configured; empty when it may, as always on loopback."""
    return [] if is_loopback(settings.server.host) else list(_objections(settings))


def _objections(settings: Settings) -> Iterator[str]:
    where = f"server.host = {settings.server.host} is reachable from outside"
    if not settings.auth.keys and settings.auth.passthrough is not True:
        yield (
            f"{where}, and anyone could call: set auth.keys, or auth.passthrough to true"
            " if callers bring their own upstream credentials"
        )
    if settings.auth.anonymous:
        yield (
            f"{where}, and anyone could use your upstream accounts: auth.anonymous is for"
            " 127.0.0.1 alone"
        )
    for index, setting in enumerate(settings.auth.keys):
        if weakness := _weakness(setting.key):
            yield f"{where}, but auth.keys[{index}] ({setting.name}) {weakness}"
    admin = settings.auth.admin_key
    if admin is not None and (weakness := _weakness(admin)):
        yield f"{where}, but auth.admin_key {weakness}"


def _weakness(key: Secret) -> str | None:
    text = key.reveal()
    if len(text) < MIN_KEY_LENGTH:
        return f"is shorter than {MIN_KEY_LENGTH} characters"
    if _OBVIOUS.search(text.lower()) or len(set(text)) < _MIN_DIFFERENT:
        return "is easy to guess: use a long random one"
    return None
