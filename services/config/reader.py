"""Fills settings structs from JSON values and environment variables, noting every problem."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

from services.config.annotations import is_internal, is_struct, optional_struct, unwrap
from services.config.coerce import coerced, finite, secret_from
from services.config.kinds import OldGroup
from services.config.problems import Problem, expectation, nearest, shown
from services.core.models import Secret

ABSENT: Any = object()
"""Stands for a value that was not given, or was wrong."""

_COMMENTS = ("_", "$", "//")
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w{0,47}")


class Spot(NamedTuple):
    """Where a value stands. `env` is the name of its environment variable, None inside lists."""

    path: str = ""
    env: str | None = ""
    source: str = ""

    def child(self, name: str) -> Spot:
        env = None if self.env is None else f"{self.env}_{name}".lstrip("_").upper()
        return Spot(f"{self.path}.{name}".lstrip("."), env, self.source)

    def item(self, index: int) -> Spot:
        return Spot(f"{self.path}[{index}]", None, self.source)


class Reader:
    """Reads one configuration. `given` collects the dotted keys that had a value of their own."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.given: set[str] = set()

    def value(self, annotation: Any, raw: Any, at: Spot) -> Any:
        """`raw` as what `annotation` asks for, or ABSENT after noting a problem."""
        base, _ = unwrap(annotation)
        origin, parts = get_origin(base), get_args(base)
        if is_struct(base):
            return self.struct(base, raw, at)
        if origin in (tuple, list):
            return self._items(base, raw, at)
        if origin in (Union, types.UnionType):
            return self._union(annotation, raw, at)
        if len(parts) == 2 and is_struct(parts[1]):
            return self._named_structs(parts[1], raw, at)
        return self._leaf(annotation, raw, at)

    def struct(self, kind: Any, raw: Any, at: Spot) -> Any:
        """The struct `kind` from an object, the environment and the defaults."""
        shorthand = getattr(kind, "SHORTHAND", None)
        if shorthand is not None and isinstance(raw, str):
            raw = {shorthand: raw}
        raw = self._parsed(raw, at)
        if not isinstance(raw, Mapping):
            return self._wrong(kind, raw, at)
        fields = [field for field in msgspec.structs.fields(kind) if not is_internal(field)]
        self._report_unknown(kind, raw, fields, at)
        values = {field.name: self._field(field, raw, at) for field in fields}
        values = {name: value for name, value in values.items() if value is not ABSENT}
        if any(field.required and field.name not in values for field in fields):
            return ABSENT
        try:
            return kind(**values)
        except (TypeError, ValueError) as exc:
            return self._note(at, str(exc))

    def _field(self, field: msgspec.structs.FieldInfo, raw: Mapping[str, Any], at: Spot) -> Any:
        spot, base = at.child(field.encode_name), unwrap(field.type)[0]
        value, spot = self._pick(field, raw, spot)
        if value is not ABSENT:
            self.given.add(spot.path)
            return self.value(field.type, value, spot)
        if is_struct(base):
            return self.struct(base, {}, spot)
        inner = optional_struct(base)
        if inner is not None and spot.env is not None:
            return self._from_environment_alone(inner, spot)
        if field.required:
            self._note(spot, f"missing; expected {expectation(field.type)}")
        return ABSENT

    def _from_environment_alone(self, kind: Any, at: Spot) -> Any:
        """A struct the file does not mention: there only if some variable gives a part of it."""
        problems, given = len(self.problems), len(self.given)
        value = self.struct(kind, {}, at)
        if len(self.given) > given:
            return value
        del self.problems[problems:]
        return ABSENT

    def _pick(
        self, field: msgspec.structs.FieldInfo, raw: Mapping[str, Any], at: Spot
    ) -> tuple[Any, Spot]:
        """The value that counts for a key, environment first, and where it was found."""
        base, extra = unwrap(field.type)
        aliases = (field.encode_name, *extra.get("aliases", ()))
        present = [name for name in aliases if raw.get(name) is not None]
        if any(raw[name] != raw[present[0]] for name in present[1:]):
            self._note(at, f"given twice with different values: {' and '.join(present)}")
        if at.env is not None:
            group = is_struct(base) or optional_struct(base) is not None
            for name in (at.env, *extra.get("env", ())):
                if (text := self._variable(name, at.env, group)) is not None:
                    return text, at._replace(source=f"environment variable {name}")
        return (raw[present[0]], at) if present else (ABSENT, at)

    def _variable(self, name: str, own_name: str, group: bool) -> str | None:
        """A variable's text; None if it is not set, empty, or plainly meant for something else.

        Kubernetes sets `REDIS_PORT=tcp://…` for a service named redis, and `BOT_MODE` is both
        a group's name and the old name of `bot_mode.enabled`.
        """
        text = self._environ.get(name, "")
        is_object = text.lstrip().startswith("{")
        if not text.strip() or text.startswith("tcp://") or (group and not is_object):
            return None
        return None if is_object and not group and name != own_name else text

    def _items(self, base: Any, raw: Any, at: Spot) -> Any:
        """A list or tuple from a JSON list or from text with commas; blanks are left out."""
        if isinstance(raw, str) and raw.lstrip()[:1] not in ("[", "{"):
            raw = [part for part in map(str.strip, raw.split(",")) if part]
        raw = self._parsed(raw, at)
        if not isinstance(raw, list):
            return self._wrong(base, raw, at)
        kind = get_args(base)[0]
        items = [self.value(kind, item, at.item(index)) for index, item in enumerate(raw)]
        return get_origin(base)(item for item in items if item is not ABSENT)

    def _named_structs(self, kind: Any, raw: Any, at: Spot) -> Any:
        raw = self._parsed(raw, at)
        if not isinstance(raw, Mapping):
            return self._wrong(dict, raw, at)
        items = {name: self.value(kind, item, at.child(name)) for name, item in raw.items()}
        return {name: item for name, item in items.items() if item is not ABSENT}

    def _union(self, annotation: Any, raw: Any, at: Spot) -> Any:
        """The first option that fits; empty text stands for null where a secret may be null."""
        options = [option for option in get_args(unwrap(annotation)[0]) if option is not type(None)]
        if raw is None or (raw == "" and Secret in options):
            return None
        if len(options) == 1:
            return self.value(options[0], raw, at)
        for option in options:
            mark = len(self.problems)
            value = self.value(option, raw, at)
            if len(self.problems) == mark:
                return value
            del self.problems[mark:]
        return self._wrong(annotation, raw, at)

    def _leaf(self, annotation: Any, raw: Any, at: Spot) -> Any:
        base, extra = unwrap(annotation)
        if base is dict or get_origin(base) not in (None, Literal):
            raw = self._parsed(raw, at)
        if isinstance(raw, str) and annotation is not str:
            raw = raw.strip()
        try:
            value = coerced(base, raw, extra.get("strip"))
            value = msgspec.convert(value, annotation, strict=False, dec_hook=secret_from)
            extra.get("check", finite)(value)
        except (ValueError, KeyError):
            return self._wrong(annotation, raw, at)
        return value

    def _parsed(self, raw: Any, at: Spot) -> Any:
        """JSON inside text, as variables hold lists and objects; anything else as it is."""
        if not isinstance(raw, str) or raw.lstrip()[:1] not in ("[", "{"):
            return raw
        try:
            return json.loads(raw)
        except ValueError as exc:
            self._note(at, f"not JSON: {exc}")
            return raw

    def _report_unknown(
        self, kind: Any, raw: Mapping[str, Any], fields: list[Any], at: Spot
    ) -> None:
        known = {field.encode_name: unwrap(field.type) for field in fields}
        aliases = {name for _, extra in known.values() for name in extra.get("aliases", ())}
        for name in raw:
            if name in known or name in aliases or name.startswith(_COMMENTS):
                continue
            close = nearest(name, [*known, *aliases])
            hint = f"; did you mean {close}?" if close else ""
            spot = at.child(name if _PLAIN_NAME.fullmatch(name) else "…")
            # A mistyped group must not be passed over: it may hold the keys that close the door.
            mistyped = close in known and is_struct(known[close][0]) and isinstance(raw[name], dict)
            if issubclass(kind, OldGroup) and not mistyped:
                self.warnings.append(f"{spot.source}: {spot.path}: unknown key, ignored{hint}")
            else:
                self._note(spot, f"unknown key{hint}")

    def _wrong(self, annotation: Any, raw: Any, at: Spot) -> Any:
        if any(problem.key == at.path for problem in self.problems[-1:]):
            return ABSENT
        value = shown(raw, at.path, annotation)
        return self._note(at, f"expected {expectation(annotation)}", value)

    def _note(self, at: Spot, expected: str, value: str | None = None) -> Any:
        self.problems.append(Problem(at.source, at.path, expected, value))
        return ABSENT
