"""Deletes a conversation at the upstream, after the answer."""

from __future__ import annotations

from urllib.parse import quote

from services.core.errors import UpstreamError
from services.providers.backend_api.calls import QUICK, Calls
from services.providers.backend_api.waiting import result_of
from services.providers.base import MAX_ERROR_BODY


class Deletion:
    """A task for the background. Raises on failure, so that it is tried again."""

    def __init__(self, calls: Calls, conversation_id: str) -> None:
        self._calls = calls
        self._path = f"conversation/{quote(conversation_id, safe='')}"

    def __call__(self) -> None:
        """Hide the conversation for good; one that is gone already is no failure."""
        body = {"is_visible": False}
        response = result_of(self._calls.open("PATCH", self._path, body, timeouts=QUICK))
        with response:
            response.read_all(MAX_ERROR_BODY)
        if response.status not in (200, 204, 404):
            raise UpstreamError(f"the upstream answered {response.status} to a deletion")
