"""The last stage of every chat answer: a true end, token counts, and the account of the request."""

from __future__ import annotations

from typing import Literal, Protocol

from services.core.errors import ProtocolError
from services.core.events import Finish, Reasoning, Text, ToolCall, Usage, WireEvents
from services.core.requests import ChatRequest
from services.pipeline.token_count import count_prompt, count_text

Outcome = Literal["ok", "error", "cancelled"]

_BYTES_PER_TOKEN = 4


class Account(Protocol):
    """Where a request is accounted for."""

    def begun(self) -> None:
        """The first event has come."""
        ...

    def done(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """The answer is over, and has used this much."""
        ...


def finish(  # noqa: C901  # one loop, for the sake of each token
    events: WireEvents, request: ChatRequest, account: Account
) -> WireEvents:
    """Pass batches on; at the end add an estimated `Usage` if the upstream gave none. Raises
    `ProtocolError` if they end and no choice was finished: no finish reason from the upstream is
    no end. However it ends, `account` is told.
    """
    said: list[str] = []
    usage: Usage | None = None
    begun = finished = False
    outcome: Outcome = "error"
    try:
        for batch in events:
            for event in batch:
                kind = type(event)
                if kind is Text or kind is Reasoning:
                    said.append(event.text)  # type: ignore[union-attr]  # `kind` says so, cheaply
                elif kind is Finish:
                    finished = True
                elif kind is Usage:
                    usage = event  # type: ignore[assignment]  # the same
                elif isinstance(event, ToolCall):
                    said += (event.name or "", event.arguments)
            if batch and not begun:
                begun = True
                account.begun()
            yield batch
        if not finished:
            raise ProtocolError("the upstream's answer stopped before its end")
        if usage is None:
            prompt, completion = count_prompt(request), count_text("".join(said))
            usage = Usage(prompt, completion, prompt + completion, estimated=True)
            yield [usage]
        outcome = "ok"
    except GeneratorExit:
        outcome = "cancelled"
        raise
    finally:
        closing = getattr(events, "close", None)
        if closing is not None:
            closing()
        if usage is None and (said or outcome == "cancelled"):
            usage = _rough_usage(request, said)
        account.done(outcome, usage)


def _rough_usage(request: ChatRequest, said: list[str]) -> Usage:
    """Counts for an answer that was cut off before its own: nobody gets round a limit by leaving
    early. Cheap, since a tokenizer's vocabulary is not loaded for it.
    """
    sent = sum(len(message.text.encode("utf-8", "replace")) for message in request.messages)
    prompt = -(-sent // _BYTES_PER_TOKEN)
    completion = max(len(said), sum(map(len, said)) // _BYTES_PER_TOKEN)
    return Usage(prompt, completion, prompt + completion, estimated=True)
