"""Operations of the admin API, described as OpenAPI from what their views take and give."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

import msgspec

from services import __version__
from services.core.errors import InvalidRequest

T = TypeVar("T")

_PARAMETER = re.compile(r"<(\w+)>")


class Operation(msgspec.Struct, frozen=True):
    """One route. `view` says the rest: its docstring what it does, its annotations what it gives
    and what it takes besides the path's parameters, as `body` or `query`.
    """

    method: str
    path: str
    view: Callable[..., Any]
    status: int = 200

    @property
    def name(self) -> str:
        return self.view.__name__

    def kind(self, name: str) -> type[msgspec.Struct] | None:
        """The struct of `body`, `query` or `return`; None where there is none, or no fixed one."""
        found = get_type_hints(self.view).get(name)
        return found if isinstance(found, type) and issubclass(found, msgspec.Struct) else None


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorDetail


def decode_query(values: dict[str, str], kind: type[T]) -> T:
    """A query string as a struct; commas separate the items of a list. Raises `InvalidRequest`."""
    split: dict[str, Any] = dict(values)
    for field in msgspec.structs.fields(kind):  # type: ignore[arg-type]  # always a struct
        if field.name in split and isinstance(field.default, tuple):
            split[field.name] = [part for part in split[field.name].split(",") if part]
    try:
        return msgspec.convert(split, kind, strict=False)
    except msgspec.ValidationError as exc:
        found = re.search(r"`\$\.?([^`]*)`", str(exc))
        param = found[1] if found else None
        what = f"the value of {param}" if param else "a name"
        raise InvalidRequest(f"{what} in the query is not known here", param=param) from exc


def describe(operations: Sequence[Operation], base: str) -> dict[str, Any]:
    """The operations as an OpenAPI 3.1 document; `base` is the path they live under."""
    found = {o.kind(name) for o in operations for name in ("return", "body", "query")}
    kinds = [kind for kind in found | {ErrorAnswer} if kind is not None]
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    of = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", f"{base}{operation.path}")
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, of, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Causeway admin API", "version": __version__},
        "security": [{"admin_key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"admin_key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(
    operation: Operation, schemas: dict[Any, dict[str, Any]], components: dict[str, Any]
) -> dict[str, Any]:
    answer, body, query = (operation.kind(name) for name in ("return", "body", "query"))
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.view.__doc__,
        "responses": {
            str(operation.status): _content("the answer", schemas.get(answer, {"type": "object"})),
            "default": _content("what went wrong", schemas[ErrorAnswer]),
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]
    if query is not None:
        properties = components[query.__name__]["properties"]
        parameters += [
            {"name": name, "in": "query", "schema": schema, "explode": False}
            for name, schema in properties.items()
        ]
    if parameters:
        described["parameters"] = parameters
    if body is not None:
        content = _content("the request", schemas[body])
        described["requestBody"] = {"required": True, **content}
    return described


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
