"""Being lenient: what people write for a value, brought to what msgspec takes."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin

from services.core.models import Secret

_BOOLS = {word: True for word in ("true", "yes", "on", "1")} | {
    word: False for word in ("false", "no", "off", "0")
}


def coerced(base: Any, raw: Any, strip: str | None) -> Any:
    """`"yes"` as true, `5` as `"5"`, `"info"` as `"INFO"`; `strip` goes from both ends of text.

    Raises KeyError for what is no boolean; msgspec judges the rest.
    """
    if base is bool:
        return raw if isinstance(raw, bool) else _BOOLS[str(raw).lower()]
    if base in (str, Secret) and isinstance(raw, int | float) and not isinstance(raw, bool):
        return str(raw)
    if base is str and strip and isinstance(raw, str):
        return raw.strip(strip)
    if get_origin(base) is Literal:
        return {str(option).lower(): option for option in get_args(base)}.get(str(raw).lower(), raw)
    return raw


def secret_from(kind: type, raw: Any) -> Secret:
    """msgspec's hook for types it does not know."""
    if kind is Secret and isinstance(raw, str) and raw:
        return Secret(raw)
    raise ValueError("expected non-empty text")


def finite(value: Any) -> None:
    """Refuse the numbers that Python reads but JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
