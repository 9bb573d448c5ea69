"""The HTTP client for upstreams: pooled, timed, proxied. Import from here."""

from services.transport.client import Timeouts, Transport, UpstreamRequest, UpstreamResponse
from services.transport.connect import Socket

__all__ = ["Socket", "Timeouts", "Transport", "UpstreamRequest", "UpstreamResponse"]
