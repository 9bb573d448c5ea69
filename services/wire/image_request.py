"""OpenAI's image generation request, decoded and validated; and the chat turn that asks for it.

Field list: OpenAI's API reference, `image_generate_params`. `quality`, `style`, `background` and
the like are tuning knobs that a chat upstream has no place for, and are ignored. So is `stream`,
whatever its value: the answer is one JSON object, as that of `stream: false`.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from services.core.errors import InvalidRequest
from services.core.requests import ChatRequest, Message
from services.wire.chat_request import MAX_MODEL_NAME
from services.wire.json_body import decode_json

DEFAULT_MODEL = "dall-e-3"
"""What is meant by a request that names no model."""

MAX_PROMPT = 32_000
MAX_PICTURES = 10

_SIZE = re.compile(r"[1-9][0-9]{1,4}x[1-9][0-9]{1,4}", re.ASCII)


class ImageRequest(msgspec.Struct, frozen=True):
    """What to draw. `size` is WIDTHxHEIGHT in pixels, or None where the upstream may choose."""

    model: str
    prompt: str
    n: int = 1
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    response_format: Literal["url", "b64_json"] = "url"
    user: str | None = None


class _Body(msgspec.Struct):
    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    response_format: str | None = None
    user: str | None = None


# msgspec's first look at a type is not safe with several threads: it happens here, once
msgspec.json.Decoder(_Body)


def decode_image_request(body: bytes) -> ImageRequest:
    """An `ImageRequest` from a request body.

    Raises `InvalidRequest`, with `param`, for anything else.
    """
    wire = decode_json(body, _Body)
    _check_prompt(wire.prompt)
    n = 1 if wire.n is None else wire.n
    if not 1 <= n <= MAX_PICTURES:
        raise InvalidRequest(f"n must be 1 to {MAX_PICTURES}", param="n")
    return ImageRequest(
        model=_model(wire.model),
        prompt=wire.prompt,
        n=n,
        size=_size(wire.size),
        quality=wire.quality,
        style=wire.style,
        response_format=_response_format(wire.response_format),
        user=wire.user,
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
