"""The `v1` encoding of an answer: each event tells only what changes in the one before it.

    event: delta_encoding
    data: "v1"

    event: delta
    data: {"p": "", "o": "add", "v": {"message": {…}, "conversation_id": "…"}, "c": 0}

    event: delta
    data: {"p": "/message/content/parts/0", "o": "append", "v": "Hel"}

    event: delta
    data: {"v": "lo"}

    event: delta
    data: {"p": "", "o": "patch", "v": [{"p": "/message/status", "o": "replace", "v": "…"}, …]}

Place and operation are left out where they are those of the delta before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .backend_api_scenarios.steps import Event, Step

Operation = dict[str, Any]


def delta_encoded(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps with every message as deltas; all else as it is."""
    yield Event("v1", "delta_encoding")
    encoder = DeltaEncoder()
    for step in steps:
        if isinstance(step, Event) and "id" in (step.data.get("message") or {}):
            yield from (Event(delta, "delta") for delta in encoder.encode(step.data))
        else:
            yield step


class DeltaEncoder:
    """One answer's events, in their order."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {"message": {"id": None}}
        self._said = {"p": None, "o": None}
        self._count = 0

    def encode(self, event: Mapping[str, Any]) -> Iterator[Operation]:
        """What changes: nothing, or one delta; a message that has just begun is added empty."""
        if event["message"]["id"] != self._last["message"]["id"]:
            self._last = _begun(event)
            yield self._short({"p": "", "o": "add", "v": self._last}) | {"c": self._count}
            self._count += 1
        changes = list(_changes(self._last, event, ""))
        self._last = copy.deepcopy(dict(event))
        if len(changes) > 1:
            yield self._short({"p": "", "o": "patch", "v": changes})
        elif changes:
            yield self._short(changes[0])

    def _short(self, operation: Operation) -> Operation:
        """Without what the delta before said too."""
        said = self._said
        self._said = {"p": operation["p"], "o": operation["o"]}
        return {key: v for key, v in operation.items() if key == "v" or said[key] != v}


def _begun(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event as it was before the first word of its message, if that still grows."""
    begun = copy.deepcopy(dict(event))
    content = begun["message"].get("content", {})
    if begun["message"].get("status") == "in_progress":
        if "text" in content:
            content["text"] = ""
        elif "parts" in content:
            content["parts"] = [""]
    return begun


def _changes(old: Any, new: Any, path: str) -> Iterator[Operation]:
    """How `old` becomes `new`."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        added = {key: value for key, value in new.items() if key not in old}
        for key, value in old.items():
            if key in new:
                yield from _changes(value, new[key], f"{path}/{key}")
            else:
                yield {"p": f"{path}/{key}", "o": "remove"}
        if added:
            yield {"p": path, "o": "append", "v": added}
    elif isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=False)):
            yield from _changes(before, after, f"{path}/{index}")
        if len(old) < len(new):
            yield {"p": path, "o": "append", "v": new[len(old) :]}
    elif isinstance(old, str) and isinstance(new, str) and new.startswith(old):
        yield {"p": path, "o": "append", "v": new[len(old) :]}
    else:
        yield {"p": path, "o": "replace", "v": new}
