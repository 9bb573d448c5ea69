"""Answers of the admin API as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_TIMES = ("created", "revoked", "until")
_HIDDEN_IN_LISTS = ("created", "provider_keys", "always_usage", "profile")


def list_text(answer: Mapping[str, Any]) -> str:
    """`data` of an answer as a table."""
    rows = answer["data"]
    if not rows:
        return "none\n"
    columns = [name for name in rows[0] if name not in _HIDDEN_IN_LISTS]
    return table(columns, [[_cell(name, row[name]) for name in columns] for row in rows])


def usage_text(answer: Mapping[str, Any]) -> str:
    """Usage as a table, keys by their names, with a line of sums."""
    rows, names = answer["data"], answer["names"]
    if not rows:
        return "nothing was used\n"
    groups = [name for name in ("day", "key", "model") if rows[0][name] is not None]
    counts = [name for name, value in rows[0].items() if isinstance(value, int)]
    lines = [
        [_group(name, row[name], names) for name in groups] + [str(row[name]) for name in counts]
        for row in rows
    ]
    sums = [str(sum(row[name] for row in rows)) for name in counts]
    totals = ["total", *[""] * (len(groups) - 1)] if groups else []
    return table([*groups, *counts], [*lines, [*totals, *sums]] if groups else lines)


def record_text(answer: Mapping[str, Any]) -> str:
    """One thing, a line a field, inner fields with dots."""
    pairs = list(_flat(answer, ""))
    width = max((len(name) for name, _ in pairs), default=0)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in pairs)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    lines = [[column.upper().replace("_", " ") for column in columns], *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    padded = ("  ".join(f"{cell:<{w}}" for cell, w in zip(x, widths, strict=True)) for x in lines)
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _flat(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", _cell(name, inner)


def _group(name: str, value: str, names: Mapping[str, str]) -> str:
    return names.get(value, value) if name == "key" else value


def _cell(name: str, value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if name in _TIMES and isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if value else "-"
    if isinstance(value, Mapping):
        set_ones = [f"{key}={item}" for key, item in value.items() if item is not None]
        return " ".join(set_ones) or "-"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value)
