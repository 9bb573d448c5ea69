"""Every answer has a usage: the upstream's own, or else an estimate made after the last event."""

from __future__ import annotations

from io import StringIO

from services.core.events import Reasoning, Text, ToolCall, Usage, WireEvent, WireEvents
from services.core.requests import ChatRequest
from services.pipeline.token_count import count_prompt, count_text


def report_usage(events: WireEvents, request: ChatRequest) -> WireEvents:
    """Pass batches on; if no `Usage` was among them, add an estimated one at the end."""
    said = StringIO()
    write = said.write
    reported = False
    for batch in events:
        for event in batch:
            kind = type(event)
            if kind is Text or kind is Reasoning:
                write(event.text)  # type: ignore[union-attr]  # `kind` says so, without isinstance's cost
            elif kind is Usage:
                reported = True
            elif kind is ToolCall:
                _write_call(said, event)
        yield batch
    if not reported:
        yield [_estimate(request, said.getvalue())]


def _write_call(said: StringIO, call: WireEvent) -> None:
    assert isinstance(call, ToolCall)
    said.write(call.name or "")
    said.write(call.arguments)


def _estimate(request: ChatRequest, said: str) -> Usage:
    prompt, completion = count_prompt(request), count_text(said)
    return Usage(prompt, completion, prompt + completion, estimated=True)
