"""GET /v1/models and GET /v1/models/<id>."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint, Response, request

from services.api.auth import Authenticator
from services.core.errors import ModelNotFound
from services.core.models import ModelCard
from services.gateway import Gateway


def blueprint(gateway: Gateway, auth: Authenticator) -> Blueprint:
    """The model routes."""
    bp = Blueprint("models", __name__)

    @bp.get("/v1/models")
    @bp.get("/proxies/v1/models", endpoint="proxied_list")
    def list_models() -> Response:
        allowed = auth.may_use(request.headers)
        cards = [_object(card) for card in gateway.models() if allowed(card.id)]
        return _json({"object": "list", "data": cards})

    @bp.get("/v1/models/<path:name>")
    def retrieve(name: str) -> Response:
        allowed = auth.may_use(request.headers)
        card = gateway.find_model(name)
        if not allowed(name):
            raise ModelNotFound(f"this key may not use the model {name}", param="model")
        return _json(_object(card))

    return bp


def _object(card: ModelCard) -> dict[str, Any]:
    known = {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
    }
    return {**(card.extra or {}), **known}


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json")
