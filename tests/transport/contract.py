"""A transport and the usual questions to it: the base of the test classes here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from services.transport import Timeouts, Transport, UpstreamRequest, UpstreamResponse

from .server import ScriptedServer

LIMIT = 1 << 26
SOON = Timeouts(connect=5.0, first_byte=5.0, idle=5.0, total=10.0)


class Contract:
    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        transport = Transport(SOON)
        yield transport
        transport.close()

    @staticmethod
    def get(transport: Transport, server: ScriptedServer, **options: Any) -> UpstreamResponse:
        return transport.open(UpstreamRequest("GET", server.url), **options)

    @classmethod
    def fetch(cls, transport: Transport, server: ScriptedServer, **options: Any) -> bytes:
        with cls.get(transport, server, **options) as response:
            return response.read_all(LIMIT)


def read_some(response: UpstreamResponse) -> bytes:
    """The next body bytes, however often the upstream is silent before."""
    while (piece := response.read(1.0)) is None:
        pass
    return piece
