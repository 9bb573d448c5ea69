"""What a scenario is made of: steps on the wire, and the options that shape their delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

Transport = Literal["sse", "socket_flat", "socket_nested"]


@dataclass(frozen=True)
class Event:
    """One SSE event: JSON, an object but for the first of a delta encoding, and its name."""

    data: Any
    name: str = ""


@dataclass(frozen=True)
class Raw:
    """Bytes as they are, for noise and broken streams."""

    data: bytes


@dataclass(frozen=True)
class Pause:
    """Silence, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """The connection closes here, with a RST where `reset`."""

    reset: bool = False


@dataclass(frozen=True)
class Stop:
    """The body ends properly but without `[DONE]`."""


@dataclass(frozen=True)
class Answer:
    """A plain HTTP answer, the first step or none. A body of text is sent as it is."""

    status: int
    body: Any
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Step = Event | Raw | Pause | Cut | Stop | Answer


@dataclass(frozen=True)
class Options:
    """How a turn is sent.

    `split` cuts the SSE bytes: events (one write each), bytes (one at a time) or random (seeded by
    `seed`). `step` regroups text into so many tokens an event, 0 leaving a scenario's own deltas.
    With the `encoding` v1 messages come as deltas instead of whole.
    `delay` seconds follow each event, `headers_delay` seconds precede the answer. `foreign` mixes
    in frames of other responses, `fragments` splits socket messages, `wss_url` false leaves the
    address out of the answer. `params` are the scenario's own.
    """

    transport: Transport = "sse"
    encoding: Literal["whole", "v1"] = "whole"
    split: Literal["events", "bytes", "random"] = "events"
    seed: int = 0
    step: int = 0
    delay: float = 0.0
    headers_delay: float = 0.0
    crlf: bool = False
    raw_utf8: bool = False
    framing: Literal["chunked", "close"] = "chunked"
    foreign: bool = True
    fragments: int = 1
    wss_url: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)

    def updated(self, entry: Mapping[str, Any]) -> Self:
        """These options with an entry's values over them; its unknown keys become parameters."""
        known = {f.name for f in fields(self)} - {"params"}
        params = {**self.params, **{k: v for k, v in entry.items() if k not in known}}
        return replace(self, params=params, **{k: v for k, v in entry.items() if k in known})
