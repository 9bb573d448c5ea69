"""Embeddings of `openai_compat`: vectors that depend on the text alone."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

DIMENSIONS = 8


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to an embeddings request; input is a text, texts, tokens or lists of tokens."""
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    texts = [given] if given and isinstance(given[0], int) else given
    size = body.get("dimensions") or DIMENSIONS
    encoded = body.get("encoding_format") == "base64"
    rows = [
        {"object": "embedding", "index": index, "embedding": vector(str(text), size, encoded)}
        for index, text in enumerate(texts)
    ]
    count = sum(len(str(text).split()) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": rows, "model": body.get("model"), "usage": usage}


def vector(text: str, size: int, encoded: bool = False) -> list[float] | str:
    """`size` numbers; `encoded` as base64 of little-endian float32."""
    digest = hashlib.shake_128(text.encode()).digest(size)
    numbers = [byte / 256 - 0.5 for byte in digest]
    packed = struct.pack(f"<{size}f", *numbers)
    return base64.b64encode(packed).decode() if encoded else numbers
