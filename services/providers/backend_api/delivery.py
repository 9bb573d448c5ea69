"""Sends a turn's requests and finds out how each answer travels."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec

from services.core.events import Event
from services.providers.backend_api.calls import Calls
from services.providers.backend_api.event_socket import EventSocket, SocketDialler
from services.providers.backend_api.frames import Frames, socket_frames, sse_frames
from services.providers.backend_api.refused import refused
from services.providers.backend_api.waiting import body_of
from services.providers.base import MAX_ERROR_BODY
from services.providers.refusals import not_an_answer
from services.transport import UpstreamResponse


class _SocketAnswer(msgspec.Struct):
    """What comes instead of events where they travel over a socket."""

    response_id: str = ""
    wss_url: str = ""
    conversation_id: str = ""


class _Registered(msgspec.Struct):
    wss_url: str = ""


class Delivery:
    """One turn's requests. The socket stays open between them: the upstream may go on using it.

    `conversation_id` is known early where the answer comes over a socket, else "".
    """

    def __init__(self, calls: Calls, dialler: SocketDialler) -> None:
        self.conversation_id = ""
        self._calls = calls
        self._dialler = dialler
        self._socket: EventSocket | None = None

    def ask(
        self, body: dict[str, Any], arkose_token: str | None = None
    ) -> Generator[list[Event], None, Frames]:
        """POST a conversation request. Raises what an answer without events means."""
        headers = {"Accept": "text/event-stream"}
        if arkose_token is not None:
            headers["Openai-Sentinel-Arkose-Token"] = arkose_token
        response = yield from self._calls.open("POST", "conversation", body, headers=headers)
        kind = response.headers.get("content-type", "").lower()
        if response.status == 200 and "text/event-stream" in kind:
            return sse_frames(response)
        with response:
            data = yield from body_of(response, MAX_ERROR_BODY)
        answer = self._socket_answer(response, data)
        self.conversation_id = answer.conversation_id
        socket = yield from self._open(answer.wss_url)
        return socket_frames(socket, answer.response_id)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _socket_answer(self, response: UpstreamResponse, data: bytes) -> _SocketAnswer:
        """Raises what the answer means if no socket is in it."""
        if response.status == 200:
            if not data.lstrip().startswith(b"{"):
                raise not_an_answer(response.headers.get("content-type", ""))
            answer = _decoded(data)
            if answer is not None and answer.response_id:
                return answer
        raise refused(response.status, response.headers, data, self._calls.credential)

    def _open(self, url: str) -> Generator[list[Event], None, EventSocket]:
        """The socket that is open already, if it is the one; else a new one."""
        if self._socket is not None and url in ("", self._socket.url):
            return self._socket
        self.close()
        if not url:
            registered = yield from self._calls.ask("POST", "register-websocket", _Registered)
            url = registered.wss_url
        self._socket = self._dialler.open(url, secure=self._calls.secure)
        return self._socket


def _decoded(data: bytes) -> _SocketAnswer | None:
    try:
        return msgspec.json.decode(data, type=_SocketAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
