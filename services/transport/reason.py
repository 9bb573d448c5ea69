"""Why a connection failed, in words fit for a caller: never a URL, path or credential."""

from __future__ import annotations

import re
import ssl

import socks  # type: ignore[import-untyped]  # PySocks ships no types

# How http.client words a proxy's refusal.
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")


def reason(exc: BaseException) -> str:
    """Return a few lower-case words, such as "connection refused"."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {exc.verify_message.lower().rstrip('.')}"
    if isinstance(exc, ssl.SSLError):
        return f"tls failed: {(exc.reason or 'no session').lower().replace('_', ' ')}"
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, socks.ProxyError):
        return str(exc.msg).lower()
    if isinstance(exc, OSError) and (refusal := _TUNNEL.match(str(exc))):
        return f"the proxy refused the tunnel with status {refusal[1]}"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return type(exc).__name__.lower()
