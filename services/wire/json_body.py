"""Read a JSON body into a typed struct, and say precisely what is wrong with it when it does not
fit.

Every failure is an `InvalidRequest` whose `param` is the path of the field, as OpenAI writes it:
`messages[2].role`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from services.core.errors import InvalidRequest

T = TypeVar("T")

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\\u0000")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")


def decode_json(body: bytes, type: type[T], *, max_depth: int) -> T:
    """Decode `body` as `type`. Raises `InvalidRequest` for anything that is not that."""
    try:
        check_depth(body, max_depth)
        body.decode("utf-8")
        if _SURROGATE.search(body):
            _refuse_unsafe_text(json.loads(body))
        return msgspec.json.decode(body, type=type)
    except RecursionError as exc:
        raise InvalidRequest("the JSON body is nested too deeply", code="invalid_json") from exc
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"the body is not UTF-8: byte {exc.start} is not part of a character",
            code="invalid_json",
        ) from exc
    except msgspec.ValidationError as exc:
        raise _explain(exc, body, type) from exc
    except (msgspec.DecodeError, ValueError) as exc:
        raise InvalidRequest(
            f"the body is not valid JSON: {_lower(str(exc))}", code="invalid_json"
        ) from exc


def check_depth(body: bytes, max_depth: int) -> None:
    """Refuse a body nested deeper than `max_depth`, in time linear in its size for each level."""
    if body.count(b"{") + body.count(b"[") <= max_depth:
        return
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    if b"[" in brackets or b"{" in brackets:
        raise InvalidRequest(
            f"the JSON body is nested more than {max_depth} levels deep", code="invalid_json"
        )


def _refuse_unsafe_text(value: Any) -> None:
    for path, text in _texts(value, ""):
        if "\x00" in text:
            raise InvalidRequest(f"{path} contains a NUL character", param=path)
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidRequest(
                f"{path} contains half of a surrogate pair, which is no character", param=path
            )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            yield printable(inner), key
            yield from _texts(item, inner)


def printable(text: str) -> str:
    """`text` without what can't stand in a header or a log line."""
    return text.encode("ascii", "backslashreplace").decode()[:200]


def _explain(exc: msgspec.ValidationError, body: bytes, type: Any) -> InvalidRequest:
    text = str(exc)
    path = _exact_path(text, body, type)
    missing = _MISSING.search(text)
    reason = _lower(text.split(" - at ")[0])
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(
            f"missing required parameter: {path}", param=path, code="missing_required_parameter"
        )
    return InvalidRequest(
        f"invalid value for {path}: {reason}" if path else f"invalid body: {reason}",
        param=path or None,
        code="invalid_type" if reason.startswith("expected") else "invalid_value",
    )


def _exact_path(text: str, body: bytes, type: Any) -> str:
    """The field's path.

    msgspec leaves list positions out (`[...]`): find them by trying each item.
    """
    match = _PATH.search(text)
    path = match[1] if match else ""
    if "[...]" not in path:
        return path
    head, _, rest = path.partition("[...]")
    field = next((f for f in msgspec.structs.fields(type) if f.encode_name == head), None)
    items = msgspec.json.decode(body).get(head)
    if field is None or not isinstance(items, list):
        return path.replace("[...]", "[]")
    for index, item in enumerate(items):
        try:
            msgspec.convert({head: [item]}, msgspec.defstruct("_One", [(head, field.type)]))
        except msgspec.ValidationError:
            return f"{head}[{index}]{rest}".replace("[...]", "[]")
    return path.replace("[...]", "[]")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
