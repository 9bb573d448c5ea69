"""Fills settings structs from JSON values and environment variables, noting every problem."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo

from services.config.settings import OldGroup, hide_url_secrets
from services.core.models import Secret

ABSENT: Any = object()
"""Stands for a value that was not given, or was wrong."""

_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True)
_BOOLS |= dict.fromkeys(("false", "no", "off", "0"), False)
_COMMENTS = ("_", "$", "//")
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w{0,47}")
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


class Spot(NamedTuple):
    """Where a value stands. `env` is the name of its environment variable, None inside lists."""

    path: str = ""
    env: str | None = ""
    source: str = ""

    def child(self, name: str) -> Spot:
        env = None if self.env is None else f"{self.env}_{name}".lstrip("_").upper()
        return Spot(f"{self.path}.{name}".lstrip("."), env, self.source)


class Reader:
    """Reads one configuration. `given` collects the dotted keys that had a value of their own;
    `types` gives the type of those that the structs leave open.
    """

    def __init__(self, environ: Mapping[str, str], types: Mapping[str, Any]) -> None:
        self._environ = environ
        self._types = types
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.given: set[str] = set()

    def value(self, annotation: Any, raw: Any, at: Spot) -> Any:
        """`raw` as what `annotation` asks for, or ABSENT after noting a problem."""
        base, extra = unwrap(annotation)
        origin, options = get_origin(base), get_args(base)
        if is_struct(base):
            return self.struct(base, raw, at)
        if origin in (tuple, list):
            return self._list(base, raw, at)
        if origin in (Union, types.UnionType):
            return self._first_that_fits(annotation, options, raw, at)
        if origin not in (None, Literal):
            raw = self._parsed(raw, at)
        if isinstance(raw, str) and annotation is not str:
            raw = raw.strip()
        try:
            value = _coerced(base, raw, extra.get("strip"))
            value = msgspec.convert(value, annotation, strict=False, dec_hook=_secret)
            extra.get("check", _finite)(value)
        except (ValueError, KeyError):
            return self._wrong(annotation, raw, at)
        return value

    def struct(self, kind: Any, raw: Any, at: Spot) -> Any:
        """The struct `kind` from an object, the environment and the defaults, or ABSENT."""
        shorthand = getattr(kind, "SHORTHAND", None)
        raw = {shorthand: raw} if shorthand and isinstance(raw, str) else self._parsed(raw, at)
        if not isinstance(raw, Mapping):
            return self._wrong(kind, raw, at)
        fields = keys_of(kind)
        self._report_unknown(kind, raw, fields, at)
        values = {field.name: self._field(field, raw, at) for field in fields}
        values = {name: value for name, value in values.items() if value is not ABSENT}
        if any(field.required and field.name not in values for field in fields):
            return ABSENT
        try:
            return kind(**values)
        except (TypeError, ValueError) as exc:
            return self.note(at, str(exc))

    def _field(self, field: FieldInfo, raw: Mapping[str, Any], at: Spot) -> Any:
        spot = at.child(field.encode_name)
        annotation = self._types.get(spot.path, field.type)
        structs = [part for part in _options(annotation) if is_struct(part)]
        value, spot = self._pick(field, bool(structs), raw, spot)
        if value is not ABSENT:
            self.given.add(spot.path)
            return self.value(annotation, value, spot)
        if field.required:
            self.note(spot, f"missing; expected {_expectation(annotation)}")
        elif structs and spot.env is not None:
            # nobody mentions the group, but there may be variables for parts of it
            problems, given = len(self.problems), len(self.given)
            value = self.struct(structs[0], {}, spot)
            if is_struct(annotation) or len(self.given) > given:
                return value
            del self.problems[problems:]
        return ABSENT

    def _pick(
        self, field: FieldInfo, group: bool, raw: Mapping[str, Any], at: Spot
    ) -> tuple[Any, Spot]:
        """The value that counts for a key, environment first, and where it was found."""
        extra = unwrap(field.type)[1]
        aliases = (field.encode_name, *extra.get("aliases", ()))
        present = [name for name in aliases if raw.get(name) is not None]
        if any(raw[name] != raw[present[0]] for name in present[1:]):
            self.note(at, f"given twice with different values: {' and '.join(present)}")
        for name in (at.env, *extra.get("env", ())) if at.env is not None else ():
            text = self._environ.get(name, "")
            is_object = text.lstrip().startswith("{")
            if not text.strip() or text.startswith("tcp://"):  # Kubernetes sets REDIS_PORT=tcp://…
                continue
            if group != is_object and (group or name != at.env):
                continue  # BOT_MODE is both a group's name and the old name of bot_mode.enabled
            return text, at._replace(source=f"environment variable {name}")
        return (raw[present[0]], at) if present else (ABSENT, at)

    def _list(self, base: Any, raw: Any, at: Spot) -> Any:
        """A list or tuple from a JSON list or from text with commas; blanks are left out."""
        if isinstance(raw, str) and raw.lstrip()[:1] not in ("[", "{"):
            raw = [part for part in map(str.strip, raw.split(",")) if part]
        raw = self._parsed(raw, at)
        if not isinstance(raw, list):
            return self._wrong(base, raw, at)
        kind = get_args(base)[0]
        spots = (Spot(f"{at.path}[{index}]", None, at.source) for index in range(len(raw)))
        items = [self.value(kind, item, spot) for item, spot in zip(raw, spots, strict=True)]
        return get_origin(base)(item for item in items if item is not ABSENT)

    def _first_that_fits(self, annotation: Any, options: Any, raw: Any, at: Spot) -> Any:
        """One of a union; empty text stands for null where a secret may be null."""
        if raw is None or (raw == "" and Secret in options):
            return None
        kinds = [option for option in options if option is not type(None)]
        if len(kinds) == 1:
            return self.value(kinds[0], raw, at)
        mark = len(self.problems)
        for kind in kinds:
            value = self.value(kind, raw, at)
            if len(self.problems) == mark:
                return value
            del self.problems[mark:]
        return self._wrong(annotation, raw, at)

    def _parsed(self, raw: Any, at: Spot) -> Any:
        """JSON inside text, as variables hold lists and objects; anything else as it is."""
        if not isinstance(raw, str) or raw.lstrip()[:1] not in ("[", "{"):
            return raw
        try:
            return json.loads(raw)
        except ValueError as exc:
            self.note(at, f"not JSON: {exc}")
            return raw

    def _report_unknown(
        self, kind: Any, raw: Mapping[str, Any], fields: list[FieldInfo], at: Spot
    ) -> None:
        names = {field.encode_name: field.encode_name for field in fields}
        for field in fields:
            names |= dict.fromkeys(unwrap(field.type)[1].get("aliases", ()), field.encode_name)
        groups = {field.encode_name for field in fields if is_struct(unwrap(field.type)[0])}
        for name in raw:
            if name in names or name.startswith(_COMMENTS):
                continue
            lower = {known.lower(): known for known in names}
            close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=1)]
            hint = f"; did you mean {close[0]}?" if close else ""
            spot = at.child(name if _PLAIN_NAME.fullmatch(name) else "…")
            # a mistyped group must not be passed over: it may hold the keys that close the door
            mistyped = isinstance(raw[name], dict) and not groups.isdisjoint(close)
            if issubclass(kind, OldGroup) and not mistyped:
                self.warnings.append(f"{spot.source}: {spot.path}: unknown key, ignored{hint}")
            else:
                self.note(spot, f"unknown key{hint}")

    def _wrong(self, annotation: Any, raw: Any, at: Spot) -> Any:
        if any(problem.key == at.path for problem in self.problems[-1:]):
            return ABSENT
        value = _shown(raw, at.path, annotation)
        return self.note(at, f"expected {_expectation(annotation)}", value)

    def note(self, at: Spot, expected: str, value: str | None = None) -> Any:
        self.problems.append(Problem(at.source, at.path, expected, value))
        return ABSENT


def keys_of(kind: Any) -> list[FieldInfo]:
    """The fields of a settings struct that are keys of the configuration."""
    fields = msgspec.structs.fields(kind)
    return [field for field in fields if not unwrap(field.type)[1].get("internal")]


def unwrap(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """A type without its Annotated shell, and the `extra` of all its Metas in one."""
    extra: dict[str, Any] = {}
    if get_origin(annotation) is Annotated:
        annotation, *metas = get_args(annotation)
        for meta in metas:
            extra |= meta.extra or {}
    return annotation, extra


def is_struct(annotation: Any) -> bool:
    """Whether this is a struct type itself."""
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)


def _options(annotation: Any) -> tuple[Any, ...]:
    """A type, or the types of which it is a union."""
    base, _ = unwrap(annotation)
    return get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)


def _coerced(base: Any, raw: Any, strip: str | None) -> Any:
    """`"yes"` as true, `5` as `"5"`, `"info"` as `"INFO"`; `strip` goes from both ends of text.

    Raises KeyError for what is no boolean; msgspec judges the rest.
    """
    if base is bool:
        return raw if isinstance(raw, bool) else _BOOLS[str(raw).lower()]
    if get_origin(base) is Literal:
        options = {str(option).lower(): option for option in get_args(base)}
        return options.get(str(raw).lower(), raw)
    if base in (str, Secret) and isinstance(raw, int | float) and not isinstance(raw, bool):
        return str(raw)
    return raw.strip(strip) if isinstance(raw, str) and strip else raw


def _secret(kind: type, raw: Any) -> Secret:
    """msgspec's hook for types it does not know."""
    if kind is Secret and isinstance(raw, str) and raw:
        return Secret(raw)
    raise ValueError("expected non-empty text")


def _finite(value: Any) -> None:
    """Refuse the numbers that Python reads but JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")


def _shown(value: object, key: str, annotation: object) -> str:
    """`value` as an error may show it: secrets masked, objects and lists only named."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if is_struct(annotation):
        return "text" if isinstance(value, str) else "a single value"
    if _mentions_secret(annotation) or _SECRET_NAME.search(key):
        return repr(Secret(str(value)))
    text = hide_url_secrets(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _mentions_secret(annotation: object) -> bool:
    return annotation is Secret or any(map(_mentions_secret, get_args(annotation)))


def _expectation(annotation: object) -> str:
    """A type annotation in an operator's words, such as `a whole number from 1 to 65535`."""
    metas = [part for part in get_args(annotation)[1:] if isinstance(part, Meta)]
    if described := [meta.description for meta in metas if meta.description]:
        return described[0]
    base, _ = unwrap(annotation)
    origin, parts = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expectation, parts))
    if origin is Literal:
        return "one of " + ", ".join(map(json.dumps, parts))
    if origin in (tuple, list):
        return f"a list of which each is {_expectation(parts[0])}"
    if base in (int, float):
        return ("a whole number" if base is int else "a number") + "".join(map(_bounds, metas))
    if base is str and any(meta.min_length for meta in metas):
        return "non-empty text"
    words = {bool: "true or false", Secret: "non-empty text", str: "text", type(None): "null"}
    return words.get(base, "an object")


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge} to {meta.le}"
    if meta.ge is not None:
        return f" of at least {meta.ge}"
    return "" if meta.gt is None else f" above {meta.gt}"
