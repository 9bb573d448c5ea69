"""OpenAI's images answer on the wire.

Old clients of backend-to-api services read either `reply`, the model's whole text, or
`revised_prompt` of each picture, so both are always there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from services.core.errors import GatewayError

FAILED = "image_generate_fail"
"""The `code` of a request that brought no picture."""

BLOCKED = "content_policy_violation"
"""The `code` where moderation is the reason."""

_MODERATION_CODES = {BLOCKED, "moderation_blocked", "content_filter", "contentFilter"}
"""What OpenAI and Azure call it."""


class Picture(msgspec.Struct, frozen=True):
    """One picture: its `url`, or its `data` (base64 on the wire)."""

    revised_prompt: str
    url: str | None = None
    data: bytes | None = None


def images_body(created: int, pictures: Iterable[Picture], reply: str) -> bytes:
    """The JSON of a successful request. `created` is epoch seconds."""
    data = [_object(picture) for picture in pictures]
    return msgspec.json.encode({"created": created, "data": data, "reply": reply})


def _object(picture: Picture) -> dict[str, Any]:
    shown = {"url": picture.url} if picture.data is None else {"b64_json": picture.data}
    return {**shown, "revised_prompt": picture.revised_prompt}


def refused(words: str, *, blocked: bool) -> GatewayError:
    """The error for a turn that ended well but made no picture; `words` are what the model said,
    on one line.

    With words, or `blocked` by moderation, it is the request's fault and nobody retries it. Without
    it is the upstream's: another one may do better.
    """
    if blocked or words:
        what = "the picture was blocked by moderation" if blocked else "the model made no picture"
        return _no_picture(f"{what}: {words}" if words else what, BLOCKED if blocked else FAILED)
    return GatewayError(
        "the upstream made no picture and gave no reason",
        status=502,
        type="upstream_error",
        param="",
        code=FAILED,
    )


def failed(error: GatewayError) -> GatewayError:
    """An upstream's failure as the images dialect says it: its own status, words and type, but a
    400 where its code says that moderation blocked the picture.
    """
    if error.code in _MODERATION_CODES:
        return _no_picture(error.message, BLOCKED)
    return GatewayError(
        error.message,
        status=error.status,
        type=error.type,
        param="",
        code=FAILED,
        retry_after=error.retry_after,
        headers=error.headers,
    )


def _no_picture(message: str, code: str) -> GatewayError:
    return GatewayError(message, status=400, type="invalid_request_error", param="", code=code)
