"""File names from outside, reduced to what can be shown and saved."""

from __future__ import annotations

import re
from urllib.parse import unquote

_ENCODED = re.compile(r";\s*filename\*=utf-8'[^']*'([^;\s]+)", re.IGNORECASE)
_PLAIN = re.compile(r""";\s*filename=(?:"([^"]*)"|([^;\s"]+))""", re.IGNORECASE)


def base_name(path: str) -> str:
    """The last part of a path of any system, at most 120 printable characters; may be empty."""
    name = re.split(r"[/\\]", path)[-1]
    printable = "".join(char for char in name if char.isprintable()).strip(" .")
    return printable[-120:]


def download_name(disposition: str, path: str) -> str:
    """The name in a `Content-Disposition` header as http.client gives it, else that in `path`."""
    if encoded := _ENCODED.search(disposition):
        return base_name(unquote(encoded[1]))
    if plain := _PLAIN.search(disposition):
        raw = (plain[1] or plain[2] or "").encode("latin-1", "replace")
        return base_name(raw.decode("utf-8", "replace"))
    return base_name(unquote(path.partition("?")[0]))
