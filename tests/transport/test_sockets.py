"""The socket transport keeps the contract."""

from __future__ import annotations

from typing import Literal

from .contract_bodies import BodyContract
from .contract_connections import ConnectionContract
from .contract_failures import FailureContract
from .contract_secure import SecureContract, authority

__all__ = ["authority"]

KIND: Literal["gevent"] = "gevent"


class TestBodies(BodyContract):
    kind = KIND


class TestConnections(ConnectionContract):
    kind = KIND


class TestFailures(FailureContract):
    kind = KIND


class TestSecure(SecureContract):
    kind = KIND
