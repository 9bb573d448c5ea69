"""OpenAI's image generation: the request, decoded and validated; the chat turn that asks for the
picture; the answer.

Field list: OpenAI's API reference, `image_generate_params`. `quality`, `style`, `background` and
the like are tuning knobs that a chat upstream has no place for, and are ignored. So is `stream`,
whatever its value: the answer is one JSON object, as that of `stream: false`.

Old clients of backend-to-api services read either `reply`, the model's whole text, or
`revised_prompt` of each picture, so both are always there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from services.core.errors import GatewayError, InvalidRequest
from services.core.requests import ChatRequest, Message
from services.dialects.chat import MAX_MODEL_NAME
from services.dialects.json_body import decode_json

DEFAULT_MODEL = "dall-e-3"
"""What is meant by a request that names no model."""

MAX_PROMPT = 32_000
MAX_PICTURES = 10

FAILED = "image_generate_fail"
"""The `code` of a request that brought no picture."""

BLOCKED = "content_policy_violation"
"""The `code` where moderation is the reason."""

_MODERATION_CODES = {BLOCKED, "moderation_blocked", "content_filter", "contentFilter"}
"""What OpenAI and Azure call it."""

_SIZE = re.compile(r"[1-9][0-9]{1,4}x[1-9][0-9]{1,4}", re.ASCII)


class ImageRequest(msgspec.Struct, frozen=True):
    """What to draw. `size` is WIDTHxHEIGHT in pixels, or None where the upstream may choose."""

    model: str
    prompt: str
    n: int = 1
    size: str | None = None
    response_format: Literal["url", "b64_json"] = "url"


class _Body(msgspec.Struct):
    prompt: str
    model: str | None = None
    n: int | float | None = None
    size: str | None = None
    response_format: str | None = None


# msgspec's first look at a type is not safe with several threads: it happens here, once
msgspec.json.Decoder(_Body)


def decode_image_request(body: bytes) -> ImageRequest:
    """An `ImageRequest` from a request body.

    Raises `InvalidRequest`, with `param`, for anything else.
    """
    asked = decode_json(body, _Body)
    _check_prompt(asked.prompt)
    n = 1 if asked.n is None else asked.n
    if n != int(n):
        raise InvalidRequest("n must be a whole number", param="n", code="invalid_type")
    if not 1 <= n <= MAX_PICTURES:
        raise InvalidRequest(f"n must be 1 to {MAX_PICTURES}", param="n")
    return ImageRequest(
        model=_model(asked.model),
        prompt=asked.prompt,
        n=int(n),
        size=_size(asked.size),
        response_format=_response_format(asked.response_format),
    )


def as_chat(request: ImageRequest, prompt_prefix: str) -> ChatRequest:
    """The chat turn that asks for the picture: one user message, the operator's prefix first."""
    size = f"\nThe picture's size: {request.size} pixels." if request.size else ""
    text = f"{prompt_prefix}{request.prompt}{size}"
    return ChatRequest(request.model, (Message("user", text),))


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InvalidRequest("prompt is empty: say what to draw", param="prompt")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(
            f"prompt has {len(prompt)} characters, at most {MAX_PROMPT} are allowed",
            param="prompt",
            code="string_above_max_length",
        )


def _model(model: str | None) -> str:
    name = model or DEFAULT_MODEL
    if len(name) > MAX_MODEL_NAME or not name.isprintable():
        raise InvalidRequest(
            f"model must be 1 to {MAX_MODEL_NAME} printable characters", param="model"
        )
    return name


def _size(size: str | None) -> str | None:
    if size is None or size in ("", "auto"):
        return None
    if not _SIZE.fullmatch(size):
        raise InvalidRequest("size must be auto, or like 1024x1024", param="size")
    return size


def _response_format(name: str | None) -> Literal["url", "b64_json"]:
    match name:
        case None | "" | "url":
            return "url"
        case "b64_json":
            return "b64_json"
        case _:
            raise InvalidRequest("response_format must be url or b64_json", param="response_format")


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
