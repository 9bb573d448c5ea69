"""The HTTP client for upstreams: pooled, timed, proxied. Import from here."""

from services.transport.client import Exchange, Timeouts, Transport, UpstreamRequest
from services.transport.connect import Socket

__all__ = ["Exchange", "Socket", "Timeouts", "Transport", "UpstreamRequest"]
