"""The two ways an answer travels: server-sent events in the response, or WebSocket messages that
hold them in base64.

Both give the data of complete events, one list a read; None is a second of silence. They end with
the end mark, or where the upstream ends without one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import msgspec

from services.core.errors import GatewayError, ProtocolError
from services.providers.backend_api.event_socket import EventSocket
from services.providers.base import TICK
from services.providers.framing import SSEDecoder
from services.transport import UpstreamResponse

Frames = Generator[list[bytes] | None, None, None]

DONE = b"[DONE]"
_LINGER = 0.02
"""Seconds to wait for a body's end after its end mark, so that the connection can serve again."""


class _Content(msgspec.Struct):
    """`body` is base64 on the wire; msgspec decodes it."""

    response_id: str = ""
    body: bytes = b""


class _Nested(msgspec.Struct):
    data: _Content


def sse_frames(response: UpstreamResponse) -> Frames:
    """Events of a response's body. The response is closed at the end."""
    decoder = SSEDecoder()
    with response:
        while (data := response.read(TICK)) != b"":
            frames = None if data is None else decoder.feed(data)
            yield frames
            if frames and DONE in frames:
                with contextlib.suppress(GatewayError):
                    response.read(_LINGER)
                return
        yield decoder.finish()


def socket_frames(socket: EventSocket, response_id: str) -> Frames:
    """Events of one response; those of others on the same socket are left out."""
    decoder = SSEDecoder()
    ours = response_id.encode()
    socket.expect()
    while (message := socket.read(TICK)) != b"":
        if message is None or ours not in message:
            yield None
            continue
        body = _body(message, response_id)
        if not body:
            continue
        socket.expect()
        frames = decoder.feed(body)
        yield frames
        if DONE in frames:
            return


def _body(message: bytes, response_id: str) -> bytes:
    """The bytes in a message of this response, flat or nested; b"" if it only mentions it."""
    try:
        content = msgspec.json.decode(message, type=_Content)
        if not content.response_id:
            content = msgspec.json.decode(message, type=_Nested).data
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProtocolError("the upstream sent a socket message that cannot be read") from exc
    return content.body if content.response_id == response_id else b""
