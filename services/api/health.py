"""GET /health: ok, degraded or down, with the reasons. GET /ready: whether to send traffic here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response

from services import __version__
from services.gateway import Gateway, ProviderHealth
from services.store import Store


def blueprint(
    gateway: Gateway, store: Store, config_problems: Callable[[], int] = lambda: 0
) -> Blueprint:
    """The health routes; they need no key and tell no secret. `config_problems` says how many the
    configuration file has for which it is not taken up.
    """
    bp = Blueprint("health", __name__)

    @bp.get("/health")
    @bp.get("/healthz", endpoint="healthz")
    def health() -> Response:
        made = report(gateway, store, config_problems())
        return _json(made, 503 if made["status"] == "down" else 200)

    @bp.get("/ready")
    def ready() -> Response:
        is_ready = bool(gateway.health())
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    @bp.get("/")
    def welcome() -> Response:
        return _json({"service": "causeway", "version": __version__, "models": "/v1/models"}, 200)

    return bp


def report(
    gateway: Gateway, store: Store, config_problems: int = 0, *, whole: bool = False
) -> dict[str, Any]:
    """What /health says, as an object for JSON. `whole`: for the operator, with the names of the
    upstreams and what they said.
    """
    health = gateway.health()
    providers = {provider.name: _provider(provider, whole) for provider in health}
    reasons = [
        f"{name}: {state['reason']}" for name, state in providers.items() if "reason" in state
    ]
    if not providers:
        reasons.append("no provider is configured")
    stored = store.probe()
    if stored.state != "ok":
        reasons.append(f"store: {stored.reason}; serving from memory")
    config: dict[str, Any] = {"state": "ok"}
    if config_problems:
        config = {"state": "refused", "problems": config_problems}
        reasons.append("config: the file as it is now is refused; see the log")
    down = all(state["status"] == "failing" for state in providers.values())
    return {
        "status": "down" if down else "degraded" if reasons else "ok",
        "reasons": reasons,
        "version": __version__,
        "store": {"status": stored.state},
        "config": config,
        "providers": providers,
    }


def _provider(provider: ProviderHealth, whole: bool) -> dict[str, Any]:
    """One provider's part of the report: failing if all of its upstreams do."""
    failures = provider.failures
    if not failures:
        return {"status": "ok"}
    told: dict[str, Any] = {"status": "failing", "reason": failures[0].kind}
    if len(failures) < len(provider.upstreams):
        told = {
            "status": "degraded",
            "reason": f"{failures[0].kind}, {len(failures)} of {len(provider.upstreams)} upstreams",
        }
    if whole:
        told["upstreams"] = {failure.upstream: failure.reason for failure in failures}
    return told


def _json(value: object, status: int) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")
