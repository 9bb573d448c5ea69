"""The billing pair that NextChat and one-api ask for, in OpenAI's old shape.

Nothing is billed here. The amount is what the calling key's counted tokens would cost at a
nominal price, which is 0 unless the operator sets one, against a limit that is never reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from services.api.auth import Authenticator, presented_credential
from services.api.openapi import decode_query
from services.keys import KeyLookup, UsageQuery, UsageRow, UsageStore

HARD_LIMIT_USD = 1_000_000.0
"""What stands for no limit: large, and still a number that callers can do sums with."""

FAR_AHEAD = timedelta(days=365)
_PATHS = ("/dashboard/billing", "/v1/dashboard/billing")


class _Range(msgspec.Struct, frozen=True):
    """Days, both included."""

    start_date: date | None = None
    end_date: date | None = None


Prices = Mapping[str, float]
"""US dollars for 1,000 tokens of either direction, by model; "*" for all others."""


def blueprint(
    auth: Authenticator, book: KeyLookup, usage: UsageStore, prices: Prices | None = None
) -> Blueprint:
    """The billing routes, with and without /v1."""
    nominal = prices or {}
    msgspec.json.Decoder(_Range)  # now, and not by several threads at once
    bp = Blueprint("billing", __name__)

    def key_id() -> str | None:
        """The calling key; None for those who bring their own credential, who share no count."""
        record = book.recognise(presented_credential(request.headers))
        if record is None:
            auth.caller(request.headers)
        return record.id if record else None

    def subscription() -> Response:
        key_id()
        until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + FAR_AHEAD
        return _json(_subscription(int(until.timestamp())))

    def used() -> Response:
        key = key_id()
        asked = decode_query(request.args.to_dict(), _Range)
        query = UsageQuery(asked.start_date, asked.end_date, ("day", "model"), key)
        rows = usage.rows(query) if key else []
        return _json(_usage(rows, nominal))

    for path in _PATHS:
        for name, view in (("subscription", subscription), ("usage", used)):
            where = f"{path}/{name}"
            bp.add_url_rule(where, endpoint=where.replace("/", "_"), view_func=view)
    return bp


def _subscription(until: int) -> dict[str, Any]:
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "canceled": False,
        "soft_limit_usd": HARD_LIMIT_USD,
        "hard_limit_usd": HARD_LIMIT_USD,
        "system_hard_limit_usd": HARD_LIMIT_USD,
        "access_until": until,
    }


def _usage(rows: list[UsageRow], prices: Prices) -> dict[str, Any]:
    """`rows` by day and model; amounts are in cents."""
    days: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        items = days.setdefault(row.day or "", [])
        items.append({"name": row.model, "cost": _cents(row, prices)})
    costs = [{"timestamp": _epoch(day), "line_items": items} for day, items in days.items()]
    total = sum(_cents(row, prices) for row in rows)
    return {"object": "list", "total_usage": total, "daily_costs": costs}


def _cents(row: UsageRow, prices: Prices) -> float:
    """What a model's counts come to."""
    price = prices.get(row.model or "", prices.get("*", 0.0))
    return row.tokens / 1000 * price * 100


def _epoch(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json")
