"""Our own connections under the llhttp parser: the transport for gevent.

It uses the plain socket module, cooperative where gevent has patched it, and works as well in
threads. geventhttpclient's own reads wait for the bytes asked for; here one recv is one read.
"""

from __future__ import annotations

from time import monotonic

from geventhttpclient.response import HTTPParseError

from services.core.errors import ProtocolError
from services.transport.base import Exchange, Timeouts, Transport, UpstreamRequest
from services.transport.clock import STALE_WINDOW, Clock
from services.transport.decode import Decoder, decoder_for
from services.transport.head import build_head
from services.transport.line import Line
from services.transport.parser import ResponseParser
from services.transport.pool import Pool
from services.transport.reason import reason
from services.transport.route import parse_proxy, parse_url
from services.transport.tls import Tls

# Bytes that may come in a row without any body: headers, chunk framing, trailers.
MAX_BARREN = 262144


class SocketTransport(Transport):
    """Connections of our own, pooled by route."""

    def __init__(self, timeouts: Timeouts, pool_size: int, proxy: str | None, tls: Tls) -> None:
        self._timeouts = timeouts
        self._proxy = parse_proxy(proxy) if proxy else None
        self._pool = Pool(pool_size)
        self._tls = tls

    def open(
        self,
        request: UpstreamRequest,
        *,
        timeouts: Timeouts | None = None,
        proxy: str | None = None,
    ) -> Exchange:
        via = self._proxy if proxy is None else parse_proxy(proxy) if proxy else None
        route, path = parse_url(request.url, via)
        head = build_head(request, route, path)
        line = Line(route, self._pool, self._tls, timeouts or self._timeouts)
        return SocketExchange(line, request.method, head, request.body)

    def close(self) -> None:
        self._pool.close()


class SocketExchange(Exchange):
    """See Exchange; connects and sends when made."""

    def __init__(self, line: Line, method: str, head: bytes, body: bytes) -> None:
        self._line = line
        self._clock = Clock(line.limits)
        self._parser = ResponseParser(method)
        self._decoder: Decoder | None = None
        self._failure: ProtocolError | None = None
        # Kept until something comes back: what a stale connection has to be told again.
        self._unanswered: tuple[bytes, bytes] | None = (head, body)
        self._sent_whole = True
        self._barren = 0
        line.connect()
        self._send(head, body)

    def wait(self, tick: float) -> bool:
        while not self.status:
            if self._failure is not None:
                raise self._failure
            got = self._receive(self._clock.until_headers(tick))
            if got is None:
                self._clock.until_headers(tick)
                return False
            if self._parser.status:
                self._begin_body()
            else:
                tick = self._spend(tick, got)
        return True

    def read(self, tick: float) -> bytes | None:
        if not self.status and not self.wait(tick):
            return None
        parts, clock = self._parser.parts, self._clock
        while True:
            if parts or (self._decoder is not None and self._decoder.pending):
                if body := self._take():
                    clock.heard()
                    return body
                continue
            if self._failure is not None:
                raise self._failure
            if self._parser.done:
                return self._end()
            got = self._receive(clock.until_body(tick))
            if got is None:
                clock.until_body(tick)
                return None
            if not parts:
                tick = self._spend(tick, got)

    def close(self) -> None:
        self._line.drop()
        if not self._parser.done:
            self._parser.parts.clear()
            self._fail("the exchange with the upstream was closed")

    def _send(self, head: bytes, body: bytes) -> None:
        try:
            self._line.send(head, body)
        except OSError:
            if self._line.reused:
                self._send_again()
                return
            # It may have answered before it hung up, with a 413 for instance: wait() looks.
            self._sent_whole = False
        self._clock.sent()

    def _send_again(self) -> None:
        """Repeat the request, once: on a connection of its own, which is never stale."""
        assert self._unanswered is not None
        self._line.drop()
        self._line.connect(fresh=True)
        self._send(*self._unanswered)

    def _receive(self, seconds: float) -> int | None:
        """Feed the parser once; return the count of bytes, 0 when the connection ended or was
        replaced, None after silence. What went wrong is in `_failure`, for after the body."""
        try:
            data = self._line.receive(seconds)
        except OSError as exc:
            self._lost(reason(exc))
            return 0
        if data is None:
            return None
        if not data and self._unanswered is not None:
            self._lost("closed")
            return 0
        self._unanswered = None
        try:
            self._parser.feed(data)
        except HTTPParseError as exc:
            self._misframed(data, exc)
        if self._parser.done:
            self._hang_up()
        return len(data)

    def _lost(self, why: str) -> None:
        """The connection broke, or closed before a single byte: stale, or the upstream's fault."""
        if self._unanswered is None:
            self._fail(f"the connection to the upstream broke within its answer: {why}")
        elif self._line.reused and monotonic() - self._clock.sent_at < STALE_WINDOW:
            self._send_again()
        else:
            self._fail(f"the upstream broke the connection without an answer: {why}")

    def _misframed(self, data: bytes, exc: HTTPParseError) -> None:
        if data:
            self._fail("the upstream does not speak http/1.1 correctly")
        else:
            self._fail("the upstream closed the connection within its answer")
        assert self._failure is not None
        self._failure.__cause__ = exc

    def _fail(self, message: str) -> None:
        self._line.drop()
        if self._failure is None:
            self._failure = ProtocolError(message)

    def _hang_up(self) -> None:
        if self._parser.reusable and self._sent_whole:
            self._line.keep()
        else:
            self._line.drop()

    def _begin_body(self) -> None:
        self.status, self.headers = self._parser.status, self._parser.fields
        self._barren = 0
        try:
            self._decoder = decoder_for(self.headers.get("content-encoding", ""))
        except ProtocolError as exc:
            self._parser.parts.clear()
            self._fail(exc.message)

    def _take(self) -> bytes:
        """Return the body parsed so far, decoded."""
        self._barren = 0
        parts = self._parser.parts
        body = b"".join(parts)
        parts.clear()
        if self._decoder is None:
            return body
        try:
            return self._decoder.feed(body)
        except ProtocolError as exc:
            self._fail(exc.message)
            raise

    def _end(self) -> bytes:
        if self._decoder is not None and not self._decoder.complete:
            raise ProtocolError("the upstream's compressed answer is cut short")
        return b""

    def _spend(self, tick: float, got: int) -> float:
        """Bytes came, but no body: return what is left of the tick."""
        self._barren += got
        if self._barren > MAX_BARREN:
            self._fail("the upstream sends headers or framing without end")
        return max(tick - (monotonic() - self._clock.asked_at), 0.0)
