"""Posts conversation requests and reads the answers: server-sent events in the response, or
WebSocket messages that hold them in base64.

Either way comes as frames: the data of complete events, one list a read; None is a second of
silence. They end with the end mark, or where the upstream ends without one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from time import monotonic
from typing import Any

import msgspec
import websocket
from websocket import _handshake

from services.core.errors import (
    GatewayError,
    InvalidRequest,
    ProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.providers.backend_api.calls import Calls, Waiting, error_of, read_body
from services.providers.base import TICK
from services.providers.framing import SSEDecoder
from services.providers.refusals import not_an_answer
from services.transport import Timeouts, Transport, UpstreamResponse

Frames = Generator[list[bytes] | None, None, None]

DONE = b"[DONE]"
MAX_MESSAGE = 32 * 1024 * 1024
_OPENING = 30.0
_LAST_READ = 0.02
"""Seconds to wait for a body's end after its end mark, so that the connection can serve again."""
_SCHEMES = {"ws://": "http://", "wss://": "https://"}


class _SocketAnswer(msgspec.Struct):
    """What the response holds where the events come over a WebSocket."""

    response_id: str = ""
    wss_url: str = ""
    conversation_id: str = ""


class _Registered(msgspec.Struct):
    wss_url: str = ""


class ConversationStream:
    """The conversation requests of one answer. Their WebSocket stays open in between: the upstream
    may go on using it.

    `conversation_id` is known early where the events come over a WebSocket, else "".
    """

    def __init__(self, calls: Calls, connector: SocketConnector) -> None:
        self.conversation_id = ""
        self._calls = calls
        self._connector = connector
        self._socket: EventSocket | None = None

    def post(self, body: dict[str, Any], arkose_token: str | None = None) -> Waiting[Frames]:
        """The frames of the answer to `body`. Raises what a response without events means."""
        headers = {"Accept": "text/event-stream"}
        if arkose_token is not None:
            headers["Openai-Sentinel-Arkose-Token"] = arkose_token
        response = yield from self._calls.open("POST", "conversation", body, headers=headers)
        kind = response.headers.get("content-type", "").lower()
        if response.status == 200 and "text/event-stream" in kind:
            return sse_frames(response)
        with response:
            data = yield from read_body(response)
        answer = self._socket_answer(response, data)
        self.conversation_id = answer.conversation_id
        socket = yield from self._open(answer.wss_url)
        return socket_frames(socket, answer.response_id)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _socket_answer(self, response: UpstreamResponse, data: bytes) -> _SocketAnswer:
        """Raises what the response means if no WebSocket is named in it."""
        if response.status == 200:
            if not data.lstrip().startswith(b"{"):
                raise not_an_answer(response.headers.get("content-type", ""))
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                answer = msgspec.json.decode(data, type=_SocketAnswer)
                if answer.response_id:
                    return answer
        raise error_of(response.status, response.headers, data, self._calls.credential)

    def _open(self, url: str) -> Waiting[EventSocket]:
        """The socket that is open already, if it is the one; else a new one."""
        if self._socket is not None and url in ("", self._socket.url):
            return self._socket
        self.close()
        if not url:
            registered = yield from self._calls.ask("POST", "register-websocket", _Registered)
            url = registered.wss_url
        self._socket = self._connector.open(url, secure=self._calls.is_secure)
        return self._socket


def sse_frames(response: UpstreamResponse) -> Frames:
    """Events of a response's body. The response is closed at the end."""
    decoder = SSEDecoder()
    with response:
        while (data := response.read(TICK)) != b"":
            frames = None if data is None else decoder.feed(data)
            yield frames
            if frames and DONE in frames:
                with contextlib.suppress(GatewayError):
                    response.read(_LAST_READ)
                return
        yield decoder.finish()


class _Content(msgspec.Struct):
    """`body` is base64 in the message; msgspec decodes it."""

    response_id: str = ""
    body: bytes = b""


class _Nested(msgspec.Struct):
    data: _Content


def socket_frames(socket: EventSocket, response_id: str) -> Frames:
    """Events of one response; those of others on the same socket are left out."""
    decoder = SSEDecoder()
    ours = response_id.encode()
    socket.restart_idle()
    while (message := socket.read(TICK)) != b"":
        if message is None or ours not in message:
            yield None
            continue
        body = _body(message, response_id)
        if not body:
            continue
        socket.restart_idle()
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


class SocketConnector:
    """Opens WebSockets over `transport`, through `proxy` where there is one, so that limits,
    proxies and the checking of certificates are the same as everywhere.
    """

    def __init__(self, transport: Transport, proxy: str | None = None) -> None:
        self._transport = transport
        self._proxy = proxy

    def open(self, url: str, *, secure: bool) -> EventSocket:
        """The socket at `url`; with `secure`, an unencrypted one is refused.

        Raises `UpstreamUnreachable`, `UpstreamTimeout`, `ProtocolError`. The URL holds a ticket and
        is in none of their texts.
        """
        scheme = next((s for s in _SCHEMES if url.startswith(s)), "")
        if not scheme or (secure and scheme != "wss://"):
            raise ProtocolError("the upstream gave no usable address for its socket")
        try:
            wire = self._transport.connect(_SCHEMES[scheme] + url[len(scheme) :], proxy=self._proxy)
        except InvalidRequest as exc:
            raise ProtocolError("the upstream gave no usable address for its socket") from exc
        connection: Any = websocket.WebSocket(skip_utf8_validation=True)
        wire.settimeout(_OPENING)  # the library leaves that to whoever brings a socket
        try:
            connection.connect(url, socket=wire, suppress_origin=True, redirect_limit=0)
        except websocket.WebSocketBadStatusException as exc:
            raise UpstreamUnreachable(f"the upstream's socket answered {exc.status_code}") from exc
        except websocket.WebSocketTimeoutException as exc:
            raise UpstreamTimeout("the upstream's socket did not open in time") from exc
        except (websocket.WebSocketException, OSError, ValueError) as exc:
            raise UpstreamUnreachable("the upstream's socket did not open") from exc
        finally:
            # the library keeps cookies for the whole process, and so for other accounts
            _handshake.CookieJar.jar.clear()
        return EventSocket(connection, url, self._transport.timeouts)


class EventSocket:
    """One open WebSocket, for one thread or greenlet. `url` tells whether it can be used again."""

    def __init__(self, connection: Any, url: str, timeouts: Timeouts) -> None:
        self.url = url
        self._connection = connection
        self._timeouts = timeouts
        self._total_at = monotonic() + timeouts.total
        self.restart_idle()

    def restart_idle(self) -> None:
        """The idle limit begins anew: something of ours came, or is asked for."""
        self._idle_at = monotonic() + self._timeouts.idle

    def read(self, tick: float) -> bytes | None:
        """The next message, None after `tick` seconds without one, b"" at the end.

        Raises `UpstreamTimeout` and `ProtocolError`.
        """
        if monotonic() >= min(self._idle_at, self._total_at):
            raise UpstreamTimeout("the upstream went silent within its answer")
        self._connection.settimeout(tick)
        try:
            opcode, data = self._connection.recv_data()
        except websocket.WebSocketTimeoutException:
            return None
        except (websocket.WebSocketException, OSError) as exc:
            raise ProtocolError("the socket of the upstream broke off") from exc
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return b""
        if len(data) > MAX_MESSAGE:
            raise ProtocolError("a socket message of the upstream is too large")
        return bytes(data) or b" "

    def close(self) -> None:
        """Say goodbye without waiting for an answer."""
        self._connection.close(timeout=0)
        self._connection.shutdown()  # close does nothing once the other side has said goodbye
