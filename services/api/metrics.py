"""GET /metrics, for Prometheus.

Open while the service listens on loopback only and nobody forwards to it; else it takes the
admin key, and without one there is no such path.
"""

from __future__ import annotations

from flask import Blueprint, Request, Response, request
from prometheus_client import CONTENT_TYPE_LATEST

from services.api.admin import AdminDoor
from services.config import Settings, is_loopback
from services.core.errors import NotFound
from services.server.metrics import Metrics

_FORWARDED = ("X-Forwarded-For", "X-Real-Ip", "Forwarded")


def blueprint(settings: Settings, metrics: Metrics) -> Blueprint:
    """The route; `/metrics` whatever the prefix of the API."""
    door = AdminDoor(settings.auth.admin_key)
    local = is_loopback(settings.server.host)
    bp = Blueprint("metrics", __name__)

    @bp.get("/metrics")
    def scrape() -> Response:
        if not (local and _is_direct(request)):
            if not door.exists:
                raise NotFound("there is no such path here")
            door.check(request.headers)
        return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    return bp


def _is_direct(asked: Request) -> bool:
    return not any(name in asked.headers for name in _FORWARDED)
