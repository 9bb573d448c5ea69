"""A stream tells the truth about its end: no finish reason from the upstream is an error."""

from __future__ import annotations

from collections.abc import Iterator

from services.core.errors import ProtocolError
from services.core.events import Finish, Usage, WireEvent, WireEvents


def end_truthfully(events: WireEvents) -> WireEvents:
    """Pass batches on; raise `ProtocolError` if they end and no choice was finished."""
    finished = False
    for batch in events:
        if not finished and batch:
            finished = _is_finished(reversed(batch))
        yield batch
    if not finished:
        raise ProtocolError("the upstream's answer stopped before its end")


def _is_finished(batch: Iterator[WireEvent]) -> bool:
    """A finish is the last event of a choice; only usage may come after it."""
    for event in batch:
        if type(event) is Finish:
            return True
        if type(event) is not Usage:
            return False
    return False
