"""Read a JSON body into a typed struct, and say precisely what is wrong with it when it does not
fit.

Every failure is an `InvalidRequest` whose `param` is the path of the field, as OpenAI writes it:
`messages[2].role`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from services.core.errors import InvalidRequest

T = TypeVar("T")

_UNSAFE = re.compile("[\x00\ud800-\udfff]")
_MISSING = re.compile(r"missing required field `([^`]+)`")
MAX_PARAM = 200


def decode_json(body: bytes, type: type[T]) -> T:
    """Decode `body` as `type`. Raises `InvalidRequest` for anything that is not that, for half of
    a surrogate pair and NUL in any text, and for nesting of a thousand levels.
    """
    try:
        value = msgspec.json.decode(body, type=type)
        body.decode("utf-8")  # msgspec does not look at the texts it skips
        if b"\\u0000" in body:
            _refuse_unsafe_text(json.loads(body))
        return value
    except RecursionError as exc:
        raise InvalidRequest("the JSON body is nested too deeply", code="invalid_json") from exc
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"the body is not UTF-8: byte {exc.start} is not part of a character",
            code="invalid_json",
        ) from exc
    except msgspec.ValidationError as exc:
        raise _explain(exc) from exc
    except (msgspec.DecodeError, ValueError) as exc:
        with contextlib.suppress(ValueError, RecursionError):
            _refuse_unsafe_text(json.loads(body))
        reason = str(exc).removeprefix("JSON is malformed: ")
        raise InvalidRequest(
            f"the body is not valid JSON: {_lower(reason)}", code="invalid_json"
        ) from exc


def _refuse_unsafe_text(value: Any) -> None:
    for path, text in _texts(value, ""):
        if found := _UNSAFE.search(text):
            what = "a NUL character" if found[0] == "\x00" else "half of a surrogate pair"
            raise InvalidRequest(
                f"a text of the request contains {what}: param names it", param=printable(path)
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
            yield inner, key
            yield from _texts(item, inner)


def printable(text: str) -> str:
    """`text` cut to `MAX_PARAM` characters, without what can't stand in a header or a log line."""
    return text[:MAX_PARAM].encode("unicode_escape").decode()[:MAX_PARAM]


def _explain(exc: msgspec.ValidationError) -> InvalidRequest:
    """What is wrong, without the caller's values: one-api bans a channel for words in an error."""
    reason, _, path = str(exc).rpartition(" - at `$")
    path = path.removesuffix("`").removeprefix(".") if reason else ""
    reason = reason or str(exc)
    if missing := _MISSING.search(reason):
        path = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(
            f"missing required parameter: {path}", param=path, code="missing_required_parameter"
        )
    if reason.startswith("Invalid enum value"):
        reason = "this is not one of the values it can have"
    return InvalidRequest(
        f"invalid value for {path}: {_lower(reason)}"
        if path
        else f"invalid body: {_lower(reason)}",
        param=path or None,
        code="invalid_type" if reason.startswith("Expected") else "invalid_value",
    )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
