"""Taking type annotations of settings apart."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta


def unwrap(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """A type without its Annotated shell, and the `extra` of all its Metas in one."""
    extra: dict[str, Any] = {}
    if get_origin(annotation) is Annotated:
        annotation, *metas = get_args(annotation)
        for meta in metas:
            extra |= (meta.extra or {}) if isinstance(meta, Meta) else {}
    return annotation, extra


def is_struct(annotation: Any) -> bool:
    """Whether this is a struct type itself."""
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)


def optional_struct(base: Any) -> Any:
    """The struct in `Struct | None`, else None."""
    parts = get_args(base)
    if type(None) not in parts:
        return None
    return next((part for part in parts if is_struct(part)), None)


def is_internal(field: msgspec.structs.FieldInfo) -> bool:
    """Whether a field is no key."""
    return bool(unwrap(field.type)[1].get("internal"))


def mentions(annotation: object, kind: type) -> bool:
    """Whether `kind` occurs anywhere in a type annotation."""
    return annotation is kind or any(mentions(part, kind) for part in get_args(annotation))
