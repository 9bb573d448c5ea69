"""The stages between a provider and a dialect, in order."""

from __future__ import annotations

from services.core.events import Events, WireEvents
from services.core.requests import ChatRequest
from services.pipeline.guard import end_truthfully
from services.pipeline.render import Profile, render
from services.pipeline.usage import report_usage


def run(events: Events, request: ChatRequest, profile: Profile) -> WireEvents:
    """A provider's answer to `request` as wire events.

    Nothing is sent upstream before the first `next`.
    """
    wire = render(events, profile)
    wire = report_usage(wire, request)
    return end_truthfully(wire)
