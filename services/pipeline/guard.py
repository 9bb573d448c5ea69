"""A stream tells the truth about its end: no finish reason from the upstream is an error."""

from __future__ import annotations

from services.core.errors import ProtocolError
from services.core.events import Finish, WireEvents

_ENDS = frozenset((Finish,))


def end_truthfully(events: WireEvents) -> WireEvents:
    """Pass batches on; raise `ProtocolError` if they end and no choice was finished."""
    finished = False
    for batch in events:
        finished = finished or not _ENDS.isdisjoint(map(type, batch))
        yield batch
    if not finished:
        raise ProtocolError("the upstream's answer stopped before its end")
