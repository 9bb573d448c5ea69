"""OpenAI's error object."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from services.core.errors import GatewayError


def error_object(error: GatewayError) -> dict[str, Any]:
    """The value of `error`: message, type, param and code, each present."""
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def error_body(error: GatewayError) -> bytes:
    """The JSON body of a failed request."""
    return msgspec.json.encode({"error": error_object(error)})


def error_headers(error: GatewayError) -> dict[str, str]:
    """Headers of a failed request: `Retry-After` in whole seconds, rounded up."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return headers
