"""The same interface on requests: the transport for gthread, where a thread more is no matter."""

from __future__ import annotations

from requests import PreparedRequest
from requests.structures import CaseInsensitiveDict

from services.core.errors import GatewayError, ProtocolError, UpstreamTimeout
from services.transport.base import Exchange, Timeouts, Transport, UpstreamRequest
from services.transport.clock import Clock, connect_timeout, send_timeout
from services.transport.decode import Decoder, decoder_for
from services.transport.head import headers_for
from services.transport.reader import Reader
from services.transport.route import parse_proxy, parse_url
from services.transport.tls import Tls
from services.transport.watched import WatchedAdapter


class RequestsTransport(Transport):
    """requests' adapter without its session: no cookies shared between users, no redirects,
    no proxies or passwords from the environment."""

    def __init__(self, timeouts: Timeouts, pool_size: int, proxy: str | None, tls: Tls) -> None:
        if proxy:
            parse_proxy(proxy)
        self._timeouts = timeouts
        self._proxy = proxy or ""
        self._adapter = WatchedAdapter(tls, pool_size)

    def open(
        self,
        request: UpstreamRequest,
        *,
        timeouts: Timeouts | None = None,
        proxy: str | None = None,
    ) -> Exchange:
        limits = timeouts or self._timeouts
        via = self._proxy if proxy is None else proxy
        route, path = parse_url(request.url, parse_proxy(via) if via else None)
        prepared = PreparedRequest()
        url = f"{route.scheme}://{route.host_header}{path}"
        prepared.prepare(request.method, url, data=request.body or None)
        prepared.headers = CaseInsensitiveDict(headers_for(request, route))
        proxies = {"http": via, "https": via} if via else {}
        clock = Clock(limits)
        reader = Reader(self._adapter, prepared, proxies, limits, clock, route)
        exchange = RequestsExchange(reader, clock)
        reader.start()
        exchange.await_sent()
        return exchange

    def close(self) -> None:
        self._adapter.close()


class RequestsExchange(Exchange):
    """See Exchange; takes what its reader thread hands over."""

    def __init__(self, reader: Reader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._decoder: Decoder | None = None
        self._failure: ProtocolError | None = None

    def await_sent(self) -> None:
        """Return when the request is out, or was handed over and then failed: `wait` says how."""
        reader = self._reader
        limits = reader.limits
        with reader.changed:
            reader.changed.wait_for(lambda: reader.is_connected or reader.over, limits.connect)
            if not reader.is_connected:
                reader.stop()
                raise reader.failure or connect_timeout(limits)
            reader.changed.wait_for(lambda: reader.is_sent or reader.over, reader.send_seconds)
            if reader.is_sent:
                return
            if not reader.over:
                reader.stop()
                raise send_timeout(limits)
            if isinstance(reader.failure, UpstreamTimeout):
                raise reader.failure

    def wait(self, tick: float) -> bool:
        reader = self._reader
        if self.status:
            return True
        pause = self._clock.until_headers(tick)
        with reader.changed:
            reader.changed.wait_for(lambda: reader.status or reader.over, pause)
            if not reader.status and (reader.over or self._failure is not None):
                raise self._why()
        if not reader.status:
            self._clock.until_headers(tick)
            return False
        self.status, self.headers = reader.status, reader.headers
        try:
            self._decoder = decoder_for(self.headers.get("content-encoding", ""))
        except ProtocolError as exc:
            self._fail(exc)
        return True

    def read(self, tick: float) -> bytes | None:
        if not self.status and not self.wait(tick):
            return None
        while True:
            if self._failure is not None:
                raise self._failure
            if self._decoder is not None and self._decoder.pending:
                body = self._decode(b"")
            else:
                piece = self._await_piece(tick)
                if not piece:
                    return self._end() if piece == b"" else None
                body = self._decode(piece)
            if body:
                self._clock.heard()
                return body

    def close(self) -> None:
        with self._reader.changed:
            self._reader.stop()
            finished = self._reader.complete
        if not finished and self._failure is None:
            self._failure = ProtocolError("the exchange with the upstream was closed")

    def _await_piece(self, tick: float) -> bytes | None:
        """Return body as it came, b"" at its end, None after silence."""
        reader = self._reader
        pause = self._clock.until_body(tick)
        with reader.changed:
            reader.changed.wait_for(lambda: reader.has_body or reader.over, pause)
            if reader.has_body:
                return reader.take()
            if reader.over and not reader.complete:
                raise self._why()
            if reader.over:
                return b""
        self._clock.until_body(tick)
        return None

    def _decode(self, piece: bytes) -> bytes:
        if self._decoder is None:
            return piece
        try:
            return self._decoder.feed(piece)
        except ProtocolError as exc:
            self._fail(exc)
            raise

    def _end(self) -> bytes:
        if self._decoder is not None and not self._decoder.complete:
            raise ProtocolError("the upstream's compressed answer is cut short")
        return b""

    def _fail(self, failure: ProtocolError) -> None:
        self._failure = failure
        self.close()

    def _why(self) -> GatewayError:
        stopped = ProtocolError("reading the upstream's answer stopped unexpectedly")
        return self._failure or self._reader.failure or stopped
