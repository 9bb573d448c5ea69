"""What can be wrong with a configuration, said so that an operator can mend it."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from services.config.annotations import is_struct, mentions
from services.config.kinds import hide_url_secrets
from services.core.models import Secret

_SECRET_NAME = re.compile(
    r"(key|token|secret|password|cookie|authorization)s?(\[\d+\])?$", re.IGNORECASE
)
_SHOWN = 80


class Problem(msgspec.Struct, frozen=True):
    """One thing to mend: in which file or variable, under which dotted key, and what is expected.

    `value` is what was found, made safe to show.
    """

    source: str
    key: str
    expected: str
    value: str | None = None

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.source, self.key) if part)
        got = "" if self.value is None else f" = {self.value}"
        return f"{where}{got}: {self.expected}"


class ConfigErrors(Exception):
    """Everything that is wrong with the configuration, in one go."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{count} problem{'s' * (count != 1)} in the configuration:{lines}")


def shown(value: object, key: str, annotation: object) -> str:
    """`value` as an error may show it: secrets masked, objects and lists only named."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if is_struct(annotation):
        return "text" if isinstance(value, str) else "a single value"
    if mentions(annotation, Secret) or _SECRET_NAME.search(key):
        return repr(Secret(str(value)))
    text = hide_url_secrets(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name` in spelling, if any is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def expectation(annotation: object) -> str:
    """A type annotation in an operator's words, such as `a whole number from 1 to 65535`."""
    metas = [part for part in get_args(annotation)[1:] if isinstance(part, Meta)]
    for meta in metas:
        if meta.description:
            return meta.description
    base = get_args(annotation)[0] if metas else annotation
    origin, parts = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        return " or ".join(expectation(part) for part in parts)
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(part) for part in parts)
    if origin in (tuple, list):
        return f"a list of which each is {expectation(parts[0])}"
    return _simple(base, origin, metas)


def _simple(base: Any, origin: object, metas: list[Meta]) -> str:
    if base is bool:
        return "true or false"
    if base in (int, float):
        return ("a whole number" if base is int else "a number") + _bounds(metas)
    if base is Secret or any(meta.min_length for meta in metas):
        return "non-empty text"
    if base is str:
        return "text"
    if base is type(None):
        return "null"
    return "an object" if origin is not None or isinstance(base, type) else "another value"


def _bounds(metas: list[Meta]) -> str:
    for meta in metas:
        if meta.ge is not None and meta.le is not None:
            return f" from {meta.ge} to {meta.le}"
        if meta.ge is not None:
            return f" of at least {meta.ge}"
        if meta.gt is not None:
            return f" above {meta.gt}"
    return ""
